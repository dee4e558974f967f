"""Differential fuzzing against torch in fp64: ``nox -s fuzz -- --minutes 10``."""
