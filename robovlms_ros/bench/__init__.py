"""Measurements of the package, one module per subject."""
