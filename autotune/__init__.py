"""The tuner: finds the fastest kernel and tile for each layer on this GPU."""

from autotune.first_call import on_first_call

__all__ = ["on_first_call"]
