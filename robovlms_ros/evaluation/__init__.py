"""Measuring a policy: closed loop in the simulated arm, streaming against a controller model."""
