"""Gradient noise and curvature of a model at points of its training."""
