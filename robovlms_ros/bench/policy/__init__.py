"""Cost of one policy step."""
