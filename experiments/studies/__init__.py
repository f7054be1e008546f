"""Studies: what the methods of this package deliver, measured under one protocol."""
