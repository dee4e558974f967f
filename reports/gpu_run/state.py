"""Progress of a GPU run: one JSON file, written after each part of a step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# An unfinished part exceeded its own time limit or its machine failed; it is retried.
Outcome = Literal["done", "failed", "cannot", "unfinished"]
MOST_TRIES = 3
LONGEST_NOTE = 4000  # characters of a part's last output


@dataclass(frozen=True)
class Part:
    """A part of a step: its outcome, its time, and its last output."""

    outcome: Outcome
    seconds: float
    note: str = ""
    tries: int = 1

    @property
    def over(self) -> bool:
        """True if it must not be started again."""
        return self.outcome != "unfinished" or self.tries >= MOST_TRIES


@dataclass
class State:
    """The parts that ended, by step and name; parts of other kernels are discarded."""

    path: Path
    code: str  # version of the kernels
    parts: dict[str, dict[str, Part]] = field(default_factory=dict)
    at_work: tuple[str, str] | None = None  # step and name of the part that is running

    @classmethod
    def read(cls, path: Path, code: str) -> State:
        """Read an earlier run's state; empty if there is none, or if its kernels differ.

        Raises:
            ValueError: if the file is not such a state.
        """
        if not path.exists():
            return cls(path, code)
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            parts = {step: {name: Part(**part) for name, part in held.items()}
                     for step, held in content["parts"].items()}  # fmt: skip
            at_work = content["at_work"]
            found = cls(path, content["code"], parts, at_work and (at_work[0], at_work[1]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not the state of a GPU run: {error!r}") from error
        return found if found.code == code else cls(path, code)

    def known(self, step: str, name: str) -> bool:
        """Return whether a part must not be started: it ended, or was unfinished too often."""
        part = self.parts.get(step, {}).get(name)
        return part is not None and part.over

    def troubles(self) -> Iterator[tuple[str, Part]]:
        """Yield the parts that are not done, with their steps and names."""
        for step, parts in self.parts.items():
            for name, part in parts.items():
                if part.outcome != "done":
                    yield f"{step} {name}", part

    def begin(self, step: str, name: str) -> None:
        """Record which part is running, in case it kills the process."""
        self.at_work = step, name
        self._write()

    def leave(self) -> None:
        """Record that the running part stopped and that the next run continues it."""
        self.at_work = None
        self._write()

    def keep(self, step: str, name: str, part: Part) -> None:
        """Record how a part ended."""
        before = self.parts.setdefault(step, {}).get(name)
        tries = before.tries + 1 if before and before.outcome == "unfinished" else 1
        short = Part(part.outcome, round(part.seconds, 1), part.note[-LONGEST_NOTE:], tries)
        self.parts[step][name] = short
        self.at_work = None
        self._write()

    def _write(self) -> None:
        content = {
            "code": self.code,
            "at_work": self.at_work,
            "parts": {
                step: {name: asdict(part) for name, part in held.items()}
                for step, held in self.parts.items()
            },
        }
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)
