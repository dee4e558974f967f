"""The tuner: which kernel and tile is best for a layer, on this GPU."""

from autotune.first_call import on_first_call

__all__ = ["on_first_call"]
