"""Policy heads."""
