"""The trainer: steps, loop, devices and checkpoints."""
