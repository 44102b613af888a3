"""The simulated arm: scene, cameras, scripted expert, and a model of the controller that drives it."""
