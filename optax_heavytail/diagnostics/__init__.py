"""Instruments that tell whether gradient noise is heavy-tailed, and where."""

__all__: list[str] = []
