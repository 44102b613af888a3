"""The demo: simulated arm and policy node as processes of their own, an examiner that talks to both over DDS."""
