"""Minutes on a GPU, spent well: ``python -m reports.gpu_run --minutes 9 --out DIR``.

Steps in order: tests, compute-sanitizer, ceilings and tuning, the bench beside cuDNN, results to
take home, and the losses with what the profiler says of them. All that was found lies in DIR; the
next run with the same DIR goes on from there. ``--rehearse`` takes the same way on a CPU, on small
layers in Triton's interpreter.
"""
