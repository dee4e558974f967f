"""A griffe extension that shows a docstring's ``>>>`` lines as Python sessions in the reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

# A session begins with >>> and ends at a blank line or at the end of the docstring.
SESSION = re.compile(r"^([ ]*)>>> .*?(?=\n[ ]*\n|\Z)", re.M | re.S)


def fenced(docstring: str) -> str:
    """Return the docstring with each session in a fenced block."""
    return SESSION.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", docstring)


class DoctestBlocks(griffe.Extension):
    """Extension that rewrites every docstring when griffe loads it."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
