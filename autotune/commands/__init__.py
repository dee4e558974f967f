"""The commands of ``python -m autotune``, by what they work on."""
