"""What runs a policy: robot description, kinematics, planning, scheduling, safety, inference worker."""
