"""Breaks a copy of the code on purpose, to see whether the tests notice."""
