"""Tests of reading recorded spaces and replaying searches on them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autotune.cli import app
from autotune.recorded import SpaceError, read_space
from autotune.replay import replay
from autotune.strategies import DEFAULT
from tests.tconv.test_files import SPOILT

GOOD = "a,b,time\n" + "".join(
    f"{a},{b},{'' if a * b > 32 else 1 + abs(a - 4) + abs(b - 2)}\n"
    for a in (1, 2, 4, 8, 16) for b in (1, 2, 3, 4)
)  # fmt: skip


@pytest.fixture
def space(tmp_path: Path) -> Path:
    (tmp_path / "space.csv").write_text(GOOD)
    return tmp_path / "space.csv"


def test_a_space_is_read(space: Path) -> None:
    recorded = read_space(space)
    assert recorded.space.names == ("a", "b")
    assert recorded.space.values.shape == (20, 2)
    assert recorded.optimum == 1
    assert np.isnan(recorded.times).sum() == 2


BAD = {
    "a,b\n1,2\n": "the last column is 'b'",
    "time\n1\n": "parameters come first",
    "a,time\n": "only a header",
    "": "not a CSV table",
    "a,time\n1,2\nwide,3\n": "line 3, column 'a': 'wide' is not a number",
    "a,time\n1,fast\n": "line 2, column 'time': 'fast' is not a positive number",
    "a,time\n1,-2\n": "'-2' is not a positive number",
    "a,time\n1,inf\n": "'inf' is not a positive number",
    "a,time\n,2\n": "column 'a': '' is not a number",
    "a,time\n1,\n2,\n": "every configuration failed",
    "a,time\n1,2\n1,3\n": "line 3: repeats an earlier configuration",
    "a,time\n1,1e999\n": "'1e999' is not a positive number",
    "a,time\n1e300,1\n": "'1e300' is not a number of at most 1e+15",
    f"a,time\n{'9' * 5000},1\n": "is not a number of at most 1e+15",
    "a,time\n../../etc,1\n": "'../../etc' is not a number",
    "a,time\n1,2,3\n4,5,6\n": "line 2: more cells than columns in the header",
    'a,time\n1,"2\n': "not a CSV table",
}


@pytest.mark.parametrize("text", BAD, ids=[f"{n} {words}" for n, words in enumerate(BAD.values())])
def test_a_file_that_is_not_a_space_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(SpaceError, match=r"bad\.csv") as raised:
        read_space(tmp_path / "bad.csv")
    assert BAD[text] in str(raised.value)
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "bad.csv")])
    assert result.exit_code != 0
    assert "bad.csv" in result.output


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__[1:])
def test_a_path_that_is_not_a_text_file_is_refused(spoil: object, tmp_path: Path) -> None:
    assert callable(spoil)
    spoil(tmp_path / "bad.csv")
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "bad.csv")])
    assert result.exit_code == 2
    assert "bad.csv" in result.output


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"none\.csv: there is no such file"):
        read_space(tmp_path / "none.csv")


def test_workers_change_nothing(space: Path) -> None:
    alone = replay(space, "random", 12, repeats=4, seed=5, workers=1)
    assert replay(space, "random", 12, repeats=4, seed=5, workers=2) == alone
    assert list(alone.optimum_share) == [10]
    assert list(alone.curve) == sorted(alone.curve)


def test_the_share_is_relative_to_the_optimum(space: Path) -> None:
    found = replay(space, "exhaustive", 20, repeats=2, seed=0)
    times = read_space(space).times
    assert found.curve[9] == pytest.approx(1 / np.nanmin(times[:10]))
    assert found.curve[-1] == 1


def test_the_share_is_zero_if_nothing_was_found(tmp_path: Path) -> None:
    (tmp_path / "late.csv").write_text("a,time\n1,\n2,\n3,4\n")
    assert replay(tmp_path / "late.csv", "exhaustive", 3, 1, 0).curve == (0, 0, 1)


def two_regions(path: Path) -> Path:
    """Write a space with a wide region up to 0.8 of the optimum and a distant narrow optimum."""
    rows = ["a,b,c,d,time"]
    for a, b, c, d in itertools.product(range(6), range(6), range(4), (0, 1)):
        wide = 1.25 + 0.5 * ((a - 1) ** 2 + (b - 1) ** 2 + (c - 1) ** 2 + d)
        narrow = 1 + 1.5 * ((a - 4) ** 2 + (b - 4) ** 2 + (c - 2) ** 2 + 1 - d)
        time = "" if a + b == 10 else f"{min(wide, narrow)}"
        rows.append(f"{2**a},{2**b},{c + 1},{d},{time}")
    path.write_text("\n".join(rows))
    return path


def test_the_default_finds_a_good_region_sooner_than_random_search(tmp_path: Path) -> None:
    space = two_regions(tmp_path / "regions.csv")
    learnt, blind = (replay(space, name, 25, 8, 0, workers=1) for name in (DEFAULT, "random"))
    assert learnt.curve[-1] > 0.75 > blind.curve[-1] + 0.05


def test_the_command_prints_json(space: Path) -> None:
    arguments = [
        "replay",
        str(space),
        "--strategy",
        "combined",
        "--evaluations",
        "25",
        "--repeats",
        "3",
    ]
    result = CliRunner().invoke(app, [*arguments, "--seed", "1", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["strategy"] == "combined"
    assert found["optimum_share"].keys() == {"10", "25"}
    assert found["optimum_share"]["25"] == 1  # the space is smaller
    assert "after 10" in CliRunner().invoke(app, arguments).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--evaluations", "0"], "--evaluations is 0"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--strategy", "guess"], "unknown strategy 'guess'"),
        (["--strategy", "ranked"], "follows a model's order"),
    ],
)
def test_bad_input_is_named(space: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["replay", str(space), *arguments])
    assert result.exit_code != 0
    assert words in result.output
