"""The kernels, broken on purpose: do the tests notice? ``nox -s mutate``.

Tools for Python break a file and start the tests anew. Here a kernel's source is what Triton reads
anyway, the rules know masks, phases and strides, and a start would cost more than most checks.
"""
