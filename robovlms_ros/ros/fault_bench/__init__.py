"""Faults injected through the real graph into an arm at working speed."""
