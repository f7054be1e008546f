"""Training runs that compare optimizers; they use the public API alone."""
