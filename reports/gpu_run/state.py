"""What a GPU run has done so far: one JSON file, written after each part of a step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["done", "failed", "cannot"]
LONGEST_NOTE = 4000  # characters of a part's last words


@dataclass(frozen=True)
class Part:
    """A part of a step: how it ended, what it cost, and its last words."""

    outcome: Outcome
    seconds: float
    note: str = ""


@dataclass
class State:
    """Parts that ended, by step and name; those of other kernels are forgotten."""

    path: Path
    code: str  # version of the kernels
    parts: dict[str, dict[str, Part]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, code: str) -> State:
        """What an earlier run left; nothing where there was none, or its kernels were others.

        Raises:
            ValueError: for a file that is no such state.
        """
        if not path.exists():
            return cls(path, code)
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            parts = {step: {name: Part(**part) for name, part in held.items()}
                     for step, held in content["parts"].items()}  # fmt: skip
            found = cls(path, content["code"], parts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no state of a GPU run: {error!r}") from error
        return found if found.code == code else cls(path, code)

    def known(self, step: str, name: str) -> bool:
        return name in self.parts.get(step, {})

    def keep(self, step: str, name: str, part: Part) -> None:
        """Note how a part ended."""
        short = Part(part.outcome, round(part.seconds, 1), part.note[-LONGEST_NOTE:])
        self.parts.setdefault(step, {})[name] = short
        content = {
            "code": self.code,
            "parts": {
                step: {name: asdict(part) for name, part in held.items()}
                for step, held in self.parts.items()
            },
        }
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)
