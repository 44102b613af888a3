"""Training of policies: never needed to run one.

`data`: recordings as training windows, and whether they are fit to be learned. `engine`: the
training of any policy on any windows, on accelerate; `sim.training` supplies the simulated arm's.
`runs`: from a configuration and recordings to a checkpoint, as `robovlms train` does.
"""
