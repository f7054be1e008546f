"""Gradient noise: its collection, and the diagnosis of it."""
