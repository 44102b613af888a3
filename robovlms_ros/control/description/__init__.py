"""Robot descriptions (URDF, MJCF) as kinematic models."""
