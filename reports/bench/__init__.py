"""Measurements on a GPU: layers and pools beside cuDNN, networks beside torch, and memory.

All sides are measured in turn in one run. The typed rows are kept in the user's folder until a
report is rendered from them. Without a GPU the same code can be rehearsed in Triton's interpreter
on tiny layers; such results are labelled and never appear in a GPU's report.
"""
