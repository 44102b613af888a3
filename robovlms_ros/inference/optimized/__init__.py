"""Optimized inference stages."""
