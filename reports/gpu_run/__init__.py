"""A resumable GPU session: ``python -m reports.gpu_run --minutes 9 --out DIR``.

Steps in order: tests, compute-sanitizer, ceilings and tuning, the bench beside cuDNN, results to
take home, and profiles of the losses. All results are stored in DIR; the next run with the same DIR
continues from there. ``--rehearse`` runs the same steps on a CPU, on small layers: in Triton's
interpreter, or on the emulated GPU that ``TCONV_EMULATE`` names.
"""
