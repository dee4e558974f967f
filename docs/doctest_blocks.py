"""A griffe extension: the API reference shows a docstring's ``>>>`` lines as Python sessions."""

from __future__ import annotations

import re
from typing import Any

import griffe

# A session: its first line begins with >>>, and a blank line or the end closes it.
SESSION = re.compile(r"^([ ]*)>>> .*?(?=\n[ ]*\n|\Z)", re.M | re.S)


def fenced(docstring: str) -> str:
    """The docstring with each session in a fenced block."""
    return SESSION.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", docstring)


class DoctestBlocks(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
