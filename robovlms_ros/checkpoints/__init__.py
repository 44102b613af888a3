"""Checkpoints: load, save, convert, check."""
