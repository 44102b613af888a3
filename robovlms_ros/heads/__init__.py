"""Policy heads: from the backbone's action features to chunks of normalised actions."""
