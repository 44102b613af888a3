"""The simulated arm's own training: the demonstrations that it records, behaviour cloning of its expert, ablations."""
