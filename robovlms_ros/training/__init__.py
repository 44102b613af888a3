"""Training of policies: never needed to run one.

`data`: recordings as training windows, and whether they are fit to be learned. `engine`: the training of any policy on
any windows, on accelerate. `simulated`: the simulated arm's own way, from demonstrations that it records to ablations.
`runs`: from a configuration and recordings to a checkpoint, what `robovlms train` does.
"""
