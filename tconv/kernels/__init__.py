"""Device code and its index arithmetic: no torch, no policy, no list of configurations."""
