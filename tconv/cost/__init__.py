"""What a choice of kernel and tile costs, from arithmetic alone: space, estimates, model."""
