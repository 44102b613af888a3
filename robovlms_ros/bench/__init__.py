"""Measurement commands."""
