"""The training of any policy on any windows: losses, steps, what trains, memory, a run's state,
curves and report."""
