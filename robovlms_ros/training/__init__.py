"""Training of policies: demonstrations, data sets, losses and the loop. Never needed to run one."""
