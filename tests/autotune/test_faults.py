"""Tests of tuners that are killed at random times, and of eight tuners at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tconv.winners import read_table
from tests.autotune.killable import GPU, name, trials_at, values

BATCHES = [8, 16]


class Tuner:
    """The process that forks tuning runs."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.autotune.killable"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0,
        )  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().rstrip("\n")

    def run(self, *tunes: dict[str, Any], kill_after: float | None = None) -> list[list[str]]:
        """Return the lines as lists of words; kill each process ``kill_after`` seconds in."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(tunes).encode() + b"\n")
        printed = []
        while (line := self._line()) != "over":
            pid, *words = line.split(" ", 2)
            printed.append(words)
            if words == ["start"] and kill_after is not None:
                time.sleep(kill_after)
                with contextlib.suppress(ProcessLookupError):  # it ended before
                    os.kill(int(pid), signal.SIGKILL)
        return printed

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def tuner() -> Iterator[Tuner]:
    tuner = Tuner()
    yield tuner
    tuner.close()


def table(home: Path) -> dict[str, Any]:
    return read_table(home / "tuned" / f"{GPU.name}.json")


def found(home: Path) -> dict[str, list[Any]]:
    """Return each candidate's trial values."""
    return {name(t.problem, t.choice): values(t) for t in trials_at(str(home))}


def steps(of: list[Any]) -> int:
    return sum(value is not None for value in of)


def disturbed(tuner: Tuner, home: Path, kills: int, chance: random.Random, span: float) -> int:
    """Tune to the end, with up to ``kills`` kills within ``span`` seconds; return their number."""
    tried: Counter[str] = Counter()
    killed = 0
    while True:
        fatal = chance.uniform(0, span) if killed < kills else None
        request = {"home": str(home), "batches": BATCHES, "seed": killed}
        printed = tuner.run(request, kill_after=fatal)
        kept = found(home) if (home / "trials.sqlite").exists() else {}
        for kind, *what in printed:
            if kind == "try":
                tried[what[0]] += 1
            elif kind == "done":
                candidate, outcome = json.loads(what[0])
                assert candidate in kept, "a trial that was reported done is lost"
                assert steps(kept[candidate]) >= steps(outcome)
                if steps(kept[candidate]) == steps(outcome):
                    assert kept[candidate] == outcome
        if ["end"] in printed:
            assert sum(tried.values()) <= len(tried) + killed, "what was measured, was again"
            return killed
        killed += 1


def killed_and_resumed(tuner: Tuner, folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Repeat runs until ``kills`` were killed; return the numbers of runs and trials."""
    began = time.monotonic()
    tuner.run({"home": str(folder / "whole"), "batches": BATCHES, "seed": 0})
    span = time.monotonic() - began
    whole, winners = found(folder / "whole"), table(folder / "whole")
    assert len(winners) == 3 * len(BATCHES)
    chance, left, runs = random.Random(seed), kills, 0
    while left:
        home = folder / f"home{runs}"
        left -= disturbed(tuner, home, min(left, 8), chance, span)
        runs += 1
        assert found(home) == whole
        assert table(home) == winners
        names = {entry.name for entry in (home / "tuned").iterdir()}
        assert names == {f"{GPU.name}.json", f".{GPU.name}.json.lock"}
    return runs, len(whole)


def test_a_killed_run_resumes_to_the_same_winners(tuner: Tuner, tmp_path: Path) -> None:
    runs, trials = killed_and_resumed(tuner, tmp_path, kills=10, seed=0)
    print(f"10 kills over {runs} tunes of {trials} trials")


@pytest.mark.thorough
def test_fifty_kills(tuner: Tuner, tmp_path: Path) -> None:
    runs, trials = killed_and_resumed(tuner, tmp_path, kills=50, seed=1)
    print(f"50 kills over {runs} tunes of {trials} trials")


def test_eight_tuners_at_once_lose_no_winner(tuner: Tuner, tmp_path: Path) -> None:
    """Each tuner has its own layer and one that all tune."""
    home = tmp_path / "home"
    shared, own = 64, range(1, 9)
    tunes = [{"home": str(home), "batches": [batch, shared], "seed": batch} for batch in own]
    printed = tuner.run(*tunes)
    assert printed.count(["end"]) == len(tunes)
    winners = table(home)
    assert len(winners) == 3 * (len(own) + 1)
    tuner.run({"home": str(tmp_path / "alone"), "batches": [*own, shared], "seed": 0})
    assert table(tmp_path / "alone") == winners
    assert found(tmp_path / "alone") == found(home)
