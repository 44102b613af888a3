"""What a step of a policy costs, against the machine's limits and against what one would write by hand.

Everything that reads a clock for it is here; the core does not.
"""
