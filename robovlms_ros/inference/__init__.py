"""Inference of one policy: history, session, action pipeline, reference and optimized stages."""
