"""The tables of a page: headings and cells as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reports.collect import Tables
from reports.rows import LayerRow, TrialRow, number_text, pair_text
from reports.story import geometric_mean, passed, side_of_roofline, suites, why
from tconv.geometry import PASSES


@dataclass(frozen=True)
class Grid:
    """Headings and cells as text, and which columns hold words rather than figures."""

    headings: list[str]
    rows: list[list[str]]
    words: frozenset[int] = field(default_factory=frozenset)
    common: str = ""  # what all rows share, in place of its columns


Cell = Callable[[LayerRow, TrialRow | None], str]

FIRST_RULE = "every combination"  # what the space calls its count before any rule
WHY = "why it won over the runner-up"
ONLY_IF_UNUSUAL = ("dilation", "groups")  # left out where all are 1
ONCE = ("dtype", "batch", "kernel")  # said above the table where all rows agree
WORDS = ("layer", "pass", "dtype", "tile", "kernel", "roof", "bound by (model)", WHY)


def layer_grid(tables: Tables, rows: Sequence[LayerRow]) -> Grid:
    """The table of layers and passes; columns without a single figure are left out."""
    ranked = passed(tables.trials)
    columns = [*_layer_columns(), *_figure_columns(tables.about.kind), *_code_columns(tables)]
    content: list[list[str]] = []
    for row in rows:
        rivals = ranked.get(row.problem.key, []) if row.filters is not None else []
        won = (row.algorithm, row.tile)
        best = next((t for t in rivals if (t.algorithm, t.tile) == won), None)
        second = next((trial for trial in rivals if trial is not best), None)
        cells = [cell(row, best) for _, cell in columns]
        content.append([*cells, why(best, second) if best is not None else ""])
    headings = [*(heading for heading, _ in columns), WHY]
    values = {heading: {cells[i] for cells in content} for i, heading in enumerate(headings)}
    shared = {heading: values[heading] for heading in ONCE if len(values[heading]) == 1}
    common = ", ".join(f"{heading} {value}" for heading, (value,) in shared.items())
    usual = {heading: {"", "1"} if heading in ONLY_IF_UNUSUAL else {""} for heading in headings}
    kept = [
        i
        for i, heading in enumerate(headings)
        if heading not in shared and not values[heading] <= usual[heading]
    ]
    words = frozenset(at for at, i in enumerate(kept) if headings[i] in WORDS)
    figures = [[cells[i] for i in kept] for cells in content]
    return Grid([headings[i] for i in kept], figures, words, common)


def _layer_columns() -> list[tuple[str, Cell]]:
    """The layer in the lecture's words."""

    def output(row: LayerRow) -> str:
        return row.geometry.output_volume if row.filters is not None else ""

    return [
        ("layer", lambda row, _: row.layer),
        ("pass", lambda row, _: row.direction),
        ("dtype", lambda row, _: row.dtype),
        ("batch", lambda row, _: str(row.batch)),
        ("input CxH1xW1", lambda row, _: f"{row.in_channels}x{row.in_h}x{row.in_w}"),
        ("K", lambda row, _: "" if row.filters is None else str(row.filters)),
        ("F", lambda row, _: pair_text(row.filter_h, row.filter_w)),
        ("S", lambda row, _: row.stride),
        ("P", lambda row, _: row.padding),
        ("dilation", lambda row, _: row.dilation),
        ("groups", lambda row, _: str(row.groups)),
        ("output KxH2xW2", lambda row, _: output(row)),
        ("kernel", lambda row, _: row.algorithm),
        ("tile", lambda row, _: row.tile),
    ]


def _figure(value: float | None) -> str:
    return "" if value is None else number_text(value)


def _figure_columns(kind: str) -> list[tuple[str, Cell]]:
    on_what = "a small copy, interpreted" if kind == "predicted" else "measured"
    return [
        (f"{kind} ms", lambda row, _: _figure(row.tconv_ms)),
        (f"{kind} ms, 20th percentile", lambda row, _: _figure(row.tconv_ms_p20)),
        (f"{kind} ms, 80th percentile", lambda row, _: _figure(row.tconv_ms_p80)),
        ("measured cuDNN ms, channels_last", lambda row, _: _figure(row.cudnn_nhwc_ms)),
        ("measured cuDNN ms, contiguous", lambda row, _: _figure(row.cudnn_nchw_ms)),
        (f"{kind} TFLOP/s", lambda row, _: _figure(row.tflops)),
        (f"{kind} GB/s", lambda row, _: _figure(row.gbps)),
        (f"{kind} share of roofline", lambda row, _: _figure(row.roofline_share)),
        (f"error against fp64, {on_what}", lambda row, _: _figure(row.error_fp64)),
        ("cuDNN's error against fp64", lambda row, _: _figure(row.cudnn_error_fp64)),
    ]


def _code_columns(tables: Tables) -> list[tuple[str, Cell]]:
    def taken(name: str) -> Cell:
        def text(_: LayerRow, best: TrialRow | None) -> str:
            return _figure(getattr(best, name)) if best is not None else ""

        return text

    return [
        ("registers, compiled", taken("registers")),
        ("spilled bytes, compiled", taken("spill_bytes")),
        ("shared memory bytes, compiled", taken("shared_bytes")),
        ("occupancy, compiled", taken("occupancy")),
        ("roof", lambda row, _: side_of_roofline(row, tables)),
        ("bound by (model)", lambda _, best: best.bound if best is not None else ""),
    ]


def pass_grid(tables: Tables) -> Grid:
    """Geometric means of the roofline's share, by suite and pass."""
    kind = tables.about.kind
    rows: list[list[str]] = []
    for suite in suites(tables):
        for direction in PASSES:
            shares = _shares(tables, suite, direction)
            if shares:
                mean, least, most = geometric_mean(shares), min(shares), max(shares)
                figures = [f"{value:.1%}" for value in (mean, least, most)]
                rows.append([suite, direction, str(len(shares)), *figures])
    words = ("geometric mean", "least", "most")
    headings = [f"{kind} share of roofline, {word}" for word in words]
    return Grid(["suite", "pass", "layers", *headings], rows, frozenset((0, 1)))


def _shares(tables: Tables, suite: str, direction: str) -> list[float]:
    return [
        row.roofline_share
        for row in tables.layers
        if (row.suite, row.direction) == (suite, direction) and row.roofline_share
    ]


def search_grid(tables: Tables) -> Grid:
    """By pass: what each rule left of the space, how many were tried, and how they fared."""
    stages: dict[str, dict[str, Counter[str]]] = {"space": {}, "passed": {}, "rejected": {}}
    for row in tables.space:
        first = row.rule == FIRST_RULE
        label = row.rule if first else f"left by the rule: {row.rule}"
        counts = stages["space"].setdefault(label, Counter())
        counts[row.problem.split("/")[0]] += row.remaining
    for trial in tables.trials:
        direction, good = trial.problem.split("/")[0], trial.status == "ok"
        label = "passed" if good else f"rejected: {trial.status}"
        stages["space"].setdefault("ranked first by the model, and tried", Counter())[
            direction
        ] += 1
        stages["passed" if good else "rejected"].setdefault(label, Counter())[direction] += 1
    lines = {label: counts for stage in stages.values() for label, counts in stage.items()}
    known = [name for name in PASSES if any(counts[name] for counts in lines.values())]
    rows = [[label, *(f"{counts[name]:,}" for name in known)] for label, counts in lines.items()]
    return Grid(["candidates, all problems together", *known], rows, frozenset((0,)))
