"""The cost of a kernel and tile by arithmetic alone: search space, estimates, model."""
