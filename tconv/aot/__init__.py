"""Ahead-of-time compilation: in worker processes, for a GPU that may be absent."""
