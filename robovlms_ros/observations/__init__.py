"""Sensor messages as observations, for live topics and bags."""
