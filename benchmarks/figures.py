"""The command line of a benchmark that prints its figures by name, or as one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence


def print_figures(
    description: str,
    measure: Callable[[], Mapping[str, object]],
    arguments: Sequence[str],
    number: str,
) -> None:
    """Print the figures of ``measure``, run without the user's own tables."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TCONV_HOME"] = folder
        found = measure()
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28} {format(value, number) if isinstance(value, float) else value}")
