"""Torch modules of a policy: backbones, heads, tokenization."""
