"""Tests that wrong or malicious tuned data is refused with the file's name and never used."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tconv import select, winners
from tconv.cost.constants import (
    Calibrated,
    Constants,
    bounds_of,
    calibrated,
    read_calibrated,
    shipped_constants,
    user_constants,
    write_calibrated,
)
from tconv.cost.space import broken_rule
from tconv.families import FAMILIES
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Tile
from tconv.winners import (
    TableError,
    Winner,
    load_table,
    read_table,
    table_target,
    user_table,
    write_table,
)
from tests.tconv.test_files import SPOILT

TARGET = TARGETS["sm_90"]
PROBLEM = Problem(ConvGeometry(64, 64, 56, 56, 64, 3, 3, pad_h=1, pad_w=1), "fprop")
TILE = "64x32x16 s2 w2 g8 k1"
ENTRY: dict[str, Any] = {
    "family": "implicit_gemm", "tile": TILE, "kind": "measured", "ms": 0.5
}  # fmt: skip
VALID: dict[str, Any] = {"format": 1, "target": "sm_90", "winners": {PROBLEM.key: ENTRY}}
NESTED = "[" * 900 + "]" * 900  # accepted by the parser


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    select.forget()
    yield
    select.forget()


def entry(field: str, text: str) -> str:
    """Return a table whose winner has ``text`` as ``field``."""
    plain = json.dumps(VALID | {"winners": {PROBLEM.key: ENTRY | {field: "HERE"}}})
    return plain.replace('"HERE"', text)


HOSTILE = {
    "ms 1e999": entry("ms", "1e999"),
    "ms -1": entry("ms", "-1"),
    "ms true": entry("ms", "true"),
    "ms NaN": entry("ms", "NaN"),
    "ms Infinity": entry("ms", "Infinity"),
    "ms of 400 digits": entry("ms", "1" + "0" * 400),
    "ms of 10^5 digits": entry("ms", "9" * 100_000),
    "ms null": entry("ms", "null"),
    "ms nested": entry("ms", NESTED),
    "tile a path": entry("tile", '"../../etc"'),
    "tile a number": entry("tile", "7"),
    "tile nested": entry("tile", NESTED),
    "tile of zero": entry("tile", '"0x16x16 s1 w4 g1 k1"'),
    "tile negative": entry("tile", '"-16x16x16 s1 w4 g1 k1"'),
    "tile huge": entry("tile", '"1099511627776x16x16 s1 w4 g1 k1"'),
    "tile no power of two": entry("tile", '"48x16x16 s1 w4 g1 k1"'),
    "tile of 10^5 digits": entry("tile", f'"{"1" * 100_000}x16x16 s1 w4 g1 k1"'),
    "tile in other digits": entry("tile", '"\\u0661\\u0666x16x16 s1 w4 g1 k1"'),
    "tile of a megabyte": entry("tile", json.dumps("x" * 1_000_000)),
    "family a list": entry("family", "[]"),
    "kind unknown": entry("kind", '"guessed"'),
    "kind a list": entry("kind", "[]"),
    "entry a list": json.dumps(VALID | {"winners": {PROBLEM.key: []}}),
    "entry without tile": json.dumps(VALID | {"winners": {PROBLEM.key: {"ms": 1}}}),
    "entry twice": entry("ms", "1").replace('"winners": {', f'"winners": {{"{PROBLEM.key}": 1, '),
    "field twice": entry("ms", '1, "ms": 2'),
    "winners a list": json.dumps(VALID | {"winners": []}),
    "winners missing": json.dumps({"format": 1}),
    "format true": json.dumps(VALID | {"format": True}),
    "format 1.0": json.dumps(VALID | {"format": 1.0}),
    "format newer": json.dumps(VALID | {"format": 2}),
    "format missing": json.dumps({"winners": {}}),
    "target a path": json.dumps(VALID | {"target": "../../etc/passwd"}),
    "target another file": json.dumps(VALID | {"target": "sm_90.constants"}),
    "target a list": json.dumps(VALID | {"target": []}),
    "no object": "[1, 2]",
    "a word": '"format"',
    "nothing": "",
    "cut off": json.dumps(VALID)[:-5],
    "more behind": json.dumps(VALID) + "{}",
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "winners.json"
    path.write_text(HOSTILE[name], encoding="utf-8")
    with pytest.raises(TableError, match=r"winners\.json") as raised:
        read_table(path)
    assert len(str(raised.value)) < 400 + len(str(path))
    with pytest.warns(UserWarning, match=r"winners\.json"):
        assert load_table(path) == {}
    with pytest.raises(TableError, match=r"winners\.json"):
        write_table(path, "sm_90", {PROBLEM.key: Winner("direct", Tile(64, 1, 1), "measured", 1.0)})
    assert path.read_text(encoding="utf-8") == HOSTILE[name]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__[1:])
def test_a_path_that_is_not_a_file_is_refused_by_name(spoil: object) -> None:
    assert callable(spoil)
    path, constants = user_table("sm_90"), user_constants("sm_90")
    path.parent.mkdir(parents=True)
    spoil(path)
    spoil(constants)
    with pytest.warns(UserWarning, match="ignored") as caught:
        assert select.choose(PROBLEM, TARGET).ground == "heuristic"
    words = [str(warning.message) for warning in caught]
    assert any("heuristics take over" in line and str(path) in line for line in words)
    assert any("assumed ones hold" in line and str(constants) in line for line in words)
    for refused in (read_table, table_target):
        with pytest.raises(TableError, match=r"sm_90\.json"):
            refused(path)


HOSTILE_CONSTANTS = {
    "zero": ('"matrix_share": 0', "matrix_share is 0,"),
    "negative": ('"l2_share": -1', "l2_share is -1,"),
    "huge": ('"launch_milliseconds": 1e999', "launch_milliseconds is inf,"),
    "400 digits": ('"l2_share": 1' + "0" * 400, "401 digits"),
    "NaN": ('"l2_share": NaN', "NaN is not a JSON number"),
    "true": ('"l2_share": true', "l2_share is True"),
    "a list": ('"l2_share": []', r"l2_share is \[\]"),
    "beyond reach": ('"overlap": 1000', "overlap is 1000, no number from 1.5 to 12"),
    "twice": ('"l2_share": 0.5, "l2_share": 0.6', "'l2_share' appears twice"),
    "unknown": ('"../../etc": 1', "no constant '../../etc'"),
}


@pytest.mark.parametrize("name", HOSTILE_CONSTANTS)
def test_hostile_constants_are_refused_by_name(name: str) -> None:
    text, words = HOSTILE_CONSTANTS[name]
    path = user_constants("sm_90")
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"format": 1, "constants": {{{text}}}}}')
    before = path.read_bytes()
    with pytest.raises(TableError, match=words) as raised:
        read_calibrated(path)
    assert str(path) in str(raised.value)
    calibrated.cache_clear()
    with pytest.warns(UserWarning, match="assumed ones hold"):
        assert calibrated(TARGET) == read_calibrated(shipped_constants("sm_90"))
    calibrated.cache_clear()
    with pytest.raises(TableError, match=words):  # an existing file is not overwritten
        write_calibrated(path, "sm_90", Calibrated())
    assert path.read_bytes() == before


@pytest.mark.parametrize("end", [0, 1], ids=["least", "most"])
def test_constants_at_their_bounds_stop_no_layer(end: int) -> None:
    names = Constants().__dataclass_fields__
    extreme = Constants(**{name: bounds_of(name)[end] for name in names})
    write_calibrated(user_constants("sm_90"), "sm_90", Calibrated(extreme))
    assert calibrated(TARGETS["sm_90"]).constants == extreme
    image = ConvGeometry(256, 64, 224, 224, 64, 3, 3, pad_h=1, pad_w=1)
    for geometry in (image, ConvGeometry(1, 1, 1, 1, 1, 1, 1)):
        for direction in PASSES:
            assert select.choose(Problem(geometry, direction), TARGET).ground == "heuristic"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([TILE, "0x0x0 s0 w0 g0 k0", "../../etc", 10**400, 1 << 70, "direct"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a valid table in which values, then bytes, are replaced."""
    content = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(0, 2))):
        place: Any = content
        while isinstance(place, dict) and place:
            name = draw(st.sampled_from(sorted(place)))
            if draw(st.booleans()) or not isinstance(place[name], dict):
                place[name] = draw(VALUES)
                break
            place = place[name]
    text = bytearray(json.dumps(content).encode())
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        text[start : start + draw(st.integers(0, 5))] = draw(st.binary(max_size=5))
    return bytes(text)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=mutated())
def test_a_mutated_table_gives_legal_winners_or_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "winners.json"
    path.write_bytes(content)
    try:
        winners = read_table(path)
    except TableError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    for key, winner in winners.items():
        assert isinstance(key, str)
        assert isinstance(winner.family, str)
        assert winner.kind in ("measured", "predicted")
        assert 0 <= winner.milliseconds < float("inf")
        assert Tile.parse(str(winner.tile)) == winner.tile


def tuned(winner: Winner, problem: Problem = PROBLEM) -> None:
    """Write ``winner`` to the user's table."""
    write_table(user_table("sm_90"), "sm_90", {problem.key: winner})
    select.forget()


CANNOT_RUN = {
    "more shared memory than there is": ("implicit_gemm", "256x256x128 s5 w8 g8 k1"),
    "more registers than there are": ("implicit_gemm", "1024x64x16 s1 w2 g8 k1"),
    "more threads than a program may have": ("implicit_gemm", "256x64x16 s1 w64 g8 k1"),
    "narrower than the matrix unit": ("implicit_gemm", "64x4x16 s2 w2 g8 k1"),
    "splits of nothing": ("implicit_gemm", "64x64x64 s2 w4 g8 k100000"),
    "more elements than a block may have": ("implicit_gemm", "1048576x1048576x16 s1 w4 g8 k1"),
    "a pipeline without end": ("direct", "64x8x1 s1000000 w4 g8 k1"),
    "split and shared out at once": ("implicit_gemm", "64x64x64 s2 w4 g8 k2 p1"),
    "more programs than there are tiles": ("implicit_gemm", "64x64x64 s2 w4 g8 k1 p1048576"),
}


@pytest.mark.parametrize("name", CANNOT_RUN)
def test_a_winner_that_cannot_run_is_ignored_with_a_warning(name: str) -> None:
    family, tile = CANNOT_RUN[name]
    tuned(Winner(family, Tile.parse(tile), "measured", 0.1))
    with pytest.warns(UserWarning, match="is ignored; tuning") as caught:
        choice = select.choose(PROBLEM, TARGET)
    assert (choice, choice.ground) == (select.heuristic(PROBLEM, TARGET), "heuristic")
    (words,) = [str(warning.message) for warning in caught]
    for part in (str(user_table("sm_90")), PROBLEM.key, tile):
        assert part in words
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select.choose(PROBLEM, TARGET) == choice  # warned once, not at each call


def test_a_family_of_another_version_is_ignored() -> None:
    tuned(Winner("../../etc", Tile.parse(TILE), "measured", 0.1))
    assert select.choose(PROBLEM, TARGET).ground == "heuristic"


@pytest.mark.parametrize(
    "key",
    ["", "fprop", "fprop/float16/nhwc/n0c0h0w0-k0f0x0-s0x0-p0x0-d0x0-g0", PROBLEM.key + "0" * 5000,
     f"fprop/float16/nhwc/n{'9' * 4000}c64h56w56-k64f3x3-s1x1-p1x1-d1x1-g1", "\ud800", "../../etc",
     PROBLEM.key.replace("g1", "g0"), PROBLEM.key.replace("s1x1", "s0x0")],
    ids=lambda key: ascii(key)[:24],
)  # fmt: skip
def test_a_key_that_names_no_layer_affects_no_layer(key: str) -> None:
    """This holds also where neighbours are searched by their keys."""
    path = user_table("sm_90")
    write_table(path, "sm_90", {key: Winner("direct", Tile(64, 1, 1), "measured", 1.0)})
    write_calibrated(user_constants("sm_90"), "sm_90", Calibrated(untuned="neighbour"))
    select.forget()
    assert select.choose(PROBLEM, TARGET).ground == "heuristic"


def test_predictions_for_an_architecture_are_legal_on_its_smaller_gpus() -> None:
    """Splits depend on the processors; with half as many, the architecture's entries stay legal."""
    split = Winner("implicit_gemm", Tile(64, 32, 64, 3, 4, splits=8), "predicted", 0.1)
    small = Problem(ConvGeometry(1, 512, 7, 7, 512, 3, 3, pad_h=1, pad_w=1), "fprop")
    tuned(split, small)
    assert select.choose(small, TARGET).tile == split.tile
    slower = replace(TARGET, name="nvidia-half", processors=TARGET.processors // 2)
    choice = select.choose(small, slower)
    assert (choice.tile, choice.ground) == (split.tile, "predicted")


POWERS = st.integers(0, 20).map(lambda power: 1 << power)
FEW = st.integers(1, 64) | st.integers(1, 1 << 20)
TILES = st.builds(
    Tile, POWERS, POWERS, POWERS, FEW, POWERS, FEW, FEW, st.just(0) | FEW
) | st.builds(
    Tile, *[st.sampled_from([1, 16, 32, 64, 128])] * 3, st.integers(1, 4),
    st.sampled_from([2, 4, 8]), st.sampled_from([1, 8]), st.integers(1, 16), st.integers(0, 2),
)  # fmt: skip
LAYERS = (
    PROBLEM.geometry,
    ConvGeometry(8, 96, 14, 14, 96, 3, 3, pad_h=1, pad_w=1, groups=96),
    ConvGeometry(8, 128, 14, 14, 128, 3, 3, groups=32),
    ConvGeometry(4, 3, 33, 31, 10, 5, 3, 2, 1),
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tile=TILES, family=st.sampled_from(sorted(FAMILIES)), layer=st.sampled_from(LAYERS),
    direction=st.sampled_from(PASSES), name=st.sampled_from(sorted(TARGETS)),
    layout=st.sampled_from(["nhwc", "nchw"]),
)  # fmt: skip
def test_the_choice_can_be_planned_for_any_tile_in_a_table(
    tile: Tile, family: str, layer: ConvGeometry, direction: Any, name: str, layout: Any
) -> None:
    target, problem = TARGETS[name], Problem(layer, direction, layout=layout)
    write_table(user_table(name), name, {problem.key: Winner(family, tile, "measured", 0.1)})
    select.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choice = select.choose(problem, target)
    user_table(name).unlink()
    assert broken_rule(choice, problem, target) is None or choice.ground == "heuristic"
    plan = FAMILIES[choice.family].plan(problem, choice.tile, target)
    assert all(0 < extent < 1 << 31 for launch in plan.launches for extent in launch.grid)


def test_a_home_that_others_may_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TCONV_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_table("sm_90").is_relative_to(tmp_path)
    winner = Winner("implicit_gemm", Tile.parse(TILE), "measured", 0.5)
    tuned(winner)
    write_calibrated(user_constants("sm_90"), "sm_90", Calibrated(untuned="neighbour"))
    assert select.choose(PROBLEM, TARGET).tile == winner.tile
    folder = user_table("sm_90").parent
    folder.chmod(0o777)
    select.forget()
    with pytest.warns(UserWarning, match="ignored") as caught:
        assert select.choose(PROBLEM, TARGET).ground == "heuristic"
    assert all(str(folder) in str(warning.message) for warning in caught)
    assert {str(warning.message).split()[0] for warning in caught} == {"tuned", "constants"}
    with pytest.raises(TableError, match="anyone may write"):
        write_table(user_table("sm_90"), "sm_90", {PROBLEM.key: winner})
    monkeypatch.setenv("TCONV_HOME", str(tmp_path / "tconv"))  # a folder named there is trusted
    select.forget()
    assert select.choose(PROBLEM, TARGET).tile == winner.tile


def test_tables_are_kept_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCONV_HOME", str(tmp_path / "new" / "home"))
    tuned(Winner("implicit_gemm", Tile.parse(TILE), "measured", 0.5))
    for folder in (tmp_path / "new", tmp_path / "new" / "home", user_table("sm_90").parent):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_table_never_grows_too_large_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, winner = tmp_path / "winners.json", Winner("direct", Tile(64, 1, 1), "measured", 1.0)
    write_table(path, "sm_90", {"a": winner})
    before = path.read_bytes()
    monkeypatch.setattr(winners, "LARGEST_FILE", 400)
    with pytest.raises(TableError, match="would be larger"):
        write_table(path, "sm_90", {str(number): winner for number in range(9)})
    assert path.read_bytes() == before
