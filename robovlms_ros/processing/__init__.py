"""Conversions between raw data and a model: text, images, actions, rotations. Every step has its inverse."""
