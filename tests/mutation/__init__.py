"""Mutation check of the kernels: do tests fail for a broken kernel? ``nox -s mutate``.

General mutation tools edit a file and restart the tests. Here the rules know masks, phases and
strides, Triton reads a kernel's source at run time, and a restart would cost more than most checks.
"""
