"""A policy: backbone and head, its checkpoint, and the session that gives it a history."""
