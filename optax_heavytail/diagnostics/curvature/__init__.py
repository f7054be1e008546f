"""Products with the Hessian, its spectrum, and smoothness."""
