"""VLM families."""
