"""Measuring on a GPU: layers and pools beside cuDNN, networks beside torch, and memory.

Everything is measured in one run, side by side, to typed rows that lie in the user's folder until a
report is rendered from them. Without a GPU the same code runs in Triton's interpreter, on tiny
layers, to be rehearsed: what that gives is called so and stands in no report of a GPU.
"""
