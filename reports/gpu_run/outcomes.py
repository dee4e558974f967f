"""A pytest plugin that resumes a stopped run: ``pytest -p reports.gpu_run.outcomes``.

The file named by ``TCONV_OUTCOMES`` gets a line when each test begins and ends: "began ID", then
"passed ID", "failed ID" or "skipped ID". Tests that ended in an earlier run are skipped, and so are
tests that began in ``MOST_BEGUN`` runs without ending: they hang or kill their process.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

VARIABLE = "TCONV_OUTCOMES"
MOST_BEGUN = 2


@dataclass
class Outcomes:
    """The recorded outcome of each test."""

    ended: dict[str, str] = field(default_factory=dict)
    begun: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, path: Path) -> Outcomes:
        """Read the outcomes in ``path``, if it exists; a truncated line is ignored."""
        found = cls()
        if not path.exists():
            return found
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            word, _, test = line.partition(" ")
            if not line.endswith("\n"):
                continue
            if word == "began":
                found.begun[test[:-1]] += 1
            # a test's teardown may fail after its call passed
            elif found.ended.get(test[:-1]) != "failed":
                found.ended[test[:-1]] = word
        return found

    def count(self, outcome: str) -> int:
        return sum(word == outcome for word in self.ended.values())

    def failed(self) -> list[str]:
        return [test for test, word in self.ended.items() if word == "failed"]

    def hung(self) -> list[str]:
        """Return the tests that are not begun again."""
        return [test for test, times in self.begun.items()
                if times >= MOST_BEGUN and test not in self.ended]  # fmt: skip


def _path() -> Path:
    return Path(os.environ[VARIABLE])


def _note(word: str, test: str) -> None:
    with _path().open("a", encoding="utf-8") as file:
        file.write(f"{word} {test}\n")


class _Recorder:
    """Records outcomes in the process that receives all reports, pytest-xdist's controller."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        _note("began", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.when == "call" or (report.when == "setup" and report.skipped):
            _note(report.outcome, report.nodeid)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    outcomes = Outcomes.read(_path())
    over = {*outcomes.ended, *outcomes.hung()}
    if left_out := [item for item in items if item.nodeid in over]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in over]
