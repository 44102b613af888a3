"""The tabletop tasks: lift, stack, put, push. Words, scenes, judges and experts; see `base` for
what a task is."""
