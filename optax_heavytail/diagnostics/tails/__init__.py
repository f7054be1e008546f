"""Tail indices: estimators, their intervals and tests."""
