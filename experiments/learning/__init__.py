"""Training learned optimizers: what they learn from, how, and what came of it."""
