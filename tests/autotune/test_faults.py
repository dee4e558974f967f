"""The tuner killed at any instant, and eight of it at once."""

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
    """The process that forks tunes."""

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
        """What was said, as words; each process is killed ``kill_after`` seconds from its start."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(tunes).encode() + b"\n")
        said = []
        while (line := self._line()) != "over":
            pid, *words = line.split(" ", 2)
            said.append(words)
            if words == ["start"] and kill_after is not None:
                time.sleep(kill_after)
                with contextlib.suppress(ProcessLookupError):  # it was quicker
                    os.kill(int(pid), signal.SIGKILL)
        return said

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
    """By candidate, what its trial found out."""
    return {name(t.problem, t.choice): values(t) for t in trials_at(str(home))}


def steps(of: list[Any]) -> int:
    return sum(value is not None for value in of)


def disturbed(tuner: Tuner, home: Path, kills: int, chance: random.Random, span: float) -> int:
    """Tune until it is done, killed up to ``kills`` times within ``span`` seconds; how often."""
    tried: Counter[str] = Counter()
    killed = 0
    while True:
        fatal = chance.uniform(0, span) if killed < kills else None
        asked = {"home": str(home), "batches": BATCHES, "seed": killed}
        said = tuner.run(asked, kill_after=fatal)
        kept = found(home) if (home / "trials.sqlite").exists() else {}
        for kind, *what in said:
            if kind == "try":
                tried[what[0]] += 1
            elif kind == "done":
                candidate, told = json.loads(what[0])
                assert candidate in kept, "a trial that was reported done is lost"
                assert steps(kept[candidate]) >= steps(told)
                if steps(kept[candidate]) == steps(told):
                    assert kept[candidate] == told
        if ["end"] in said:
            assert sum(tried.values()) <= len(tried) + killed, "what was measured, was again"
            return killed
        killed += 1


def killed_and_resumed(tuner: Tuner, folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """So many kills over as many runs as it takes; runs, and trials of each."""
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


def test_a_killed_tune_goes_on_to_the_same_winners(tuner: Tuner, tmp_path: Path) -> None:
    runs, trials = killed_and_resumed(tuner, tmp_path, kills=10, seed=0)
    print(f"10 kills over {runs} tunes of {trials} trials")


@pytest.mark.thorough
def test_fifty_kills(tuner: Tuner, tmp_path: Path) -> None:
    runs, trials = killed_and_resumed(tuner, tmp_path, kills=50, seed=1)
    print(f"50 kills over {runs} tunes of {trials} trials")


def test_eight_tune_at_once_and_no_winner_is_lost(tuner: Tuner, tmp_path: Path) -> None:
    """Each has a layer of its own, and one that all of them tune."""
    home = tmp_path / "home"
    shared, own = 64, range(1, 9)
    tunes = [{"home": str(home), "batches": [batch, shared], "seed": batch} for batch in own]
    said = tuner.run(*tunes)
    assert said.count(["end"]) == len(tunes)
    winners = table(home)
    assert len(winners) == 3 * (len(own) + 1)
    tuner.run({"home": str(tmp_path / "alone"), "batches": [*own, shared], "seed": 0})
    assert table(tmp_path / "alone") == winners
    assert found(tmp_path / "alone") == found(home)
