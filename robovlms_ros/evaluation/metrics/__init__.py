"""Errors as sums that add up, trivial policies, paired intervals."""
