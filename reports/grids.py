"""The tables of a page: headings and cells as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import geometric_mean

from reports.page import Grid
from reports.rows import LayerRow, TrialRow, number_text, pair_text
from reports.tables import Tables
from reports.verdicts import (
    name_of,
    passed,
    ratios,
    reason_it_won,
    side_of_roofline,
)
from tconv.geometry import PASSES

Column = tuple[str, Callable[[LayerRow], str]]

FORMATS = ("channels_last", "contiguous")
FIRST_RULE = "every combination"  # label of the number of tiles before any rule
ONLY_IF_UNUSUAL = ("dilation", "groups")  # columns left out if all values are 1
ONCE = ("dtype", "batch", "kernel", "checked")  # stated once above the table if all rows agree
WHY = "why it won over the runner-up"
WORDS = (
    "layer", "pass", "dtype", "tile", "kernel", "roof", "bound by (model)", "checked",
    "of them", WHY,
)  # fmt: skip


def layer_grid(tables: Tables, rows: Sequence[LayerRow]) -> Grid:
    """Return the table of layers and passes: shape, times, rates, errors, choice."""
    columns = [*_layer_columns(), *_figure_columns(tables.about.kind), *_choice_columns()]
    return _grid(columns, rows, "layers")


def code_grid(tables: Tables) -> Grid:
    """Return the table of each chosen tile's resources, its bound, and why it won."""
    ranked = passed(tables.trials)

    def best(row: LayerRow) -> TrialRow | None:
        won = (row.family, row.tile)
        return next((t for t in ranked.get(row.problem.key, []) if (t.family, t.tile) == won), None)

    def taken(name: str) -> Callable[[LayerRow], str]:
        return lambda row: _figure(getattr(best(row), name, None))

    def reason(row: LayerRow) -> str:
        mine = best(row)
        rivals = (trial for trial in ranked.get(row.problem.key, []) if trial is not mine)
        return "" if mine is None else reason_it_won(mine, next(rivals, None))

    rows = [row for row in tables.layers if row.filters and not row.epilogue and best(row)]
    columns: list[Column] = [
        ("layer", lambda row: name_of(row, tables)),
        ("pass", lambda row: row.direction),
        ("dtype", lambda row: row.dtype),
        *_choice_columns(),
        ("registers, compiled", taken("registers")),
        ("spilled bytes, compiled", taken("spill_bytes")),
        ("shared memory bytes, compiled", taken("shared_bytes")),
        ("occupancy, compiled", taken("occupancy")),
        ("roof", lambda row: side_of_roofline(row, tables)),
        ("bound by (model)", lambda row: getattr(best(row), "bound", "")),
        ("checked", lambda row: CHECKS.get(getattr(best(row), "checked", ""), "")),
        (WHY, reason),
    ]
    return _grid(columns, rows, "code")


CHECKS = {
    "interpreted": "the kernel's source, interpreted",
    "emulated": "compiled code, emulated",
    "gpu": "compiled code, on the GPU",
}


def counters_grid(tables: Tables) -> Grid:
    """Return the table of emulated counters of each winner's code, on a scaled-down copy."""
    winners = {
        (trial.problem, trial.family, trial.tile): trial
        for trial in tables.trials
        if trial.checked == "emulated"
    }

    def counted(name: str) -> Callable[[LayerRow], str]:
        def cell(row: LayerRow) -> str:
            value = getattr(winners[row.problem.key, row.family, row.tile], name)
            return value if isinstance(value, str) else _figure(value)

        return cell

    rows = [
        row
        for row in tables.layers
        if row.filters and (row.problem.key, row.family, row.tile) in winners
    ]
    columns: list[Column] = [
        ("layer", lambda row: name_of(row, tables)),
        ("pass", lambda row: row.direction),
        ("dtype", lambda row: row.dtype),
        *_choice_columns(),
        ("instructions per result", counted("emulated_instructions")),
        ("of them", counted("emulated_kinds")),
        ("global bytes per result", counted("emulated_global_bytes")),
        ("sectors per request", counted("emulated_sectors")),
        ("bank conflicts, share", counted("emulated_bank_conflicts")),
        ("TMA bytes per result", counted("emulated_tma_bytes")),
        ("barriers per program", counted("emulated_barriers")),
    ]
    return _grid(columns, rows, "counters")


def _grid(columns: Sequence[Column], rows: Sequence[LayerRow], name: str) -> Grid:
    """Return a table without empty columns; values shared by all rows are stated once."""
    content = [[cell(row) for _, cell in columns] for row in rows]
    headings = [heading for heading, _ in columns]
    values = {heading: {cells[i] for cells in content} for i, heading in enumerate(headings)}
    shared = {heading: values[heading] for heading in ONCE if len(values.get(heading, ())) == 1}
    common = ", ".join(f"{heading} {value}" for heading, (value,) in shared.items())
    usual = {heading: {"", "1"} if heading in ONLY_IF_UNUSUAL else {""} for heading in headings}
    kept = [
        i
        for i, heading in enumerate(headings)
        if heading not in shared and not values[heading] <= usual[heading]
    ]
    words = frozenset(at for at, i in enumerate(kept) if headings[i] in WORDS)
    figures = [[cells[i] for i in kept] for cells in content]
    return Grid([headings[i] for i in kept], figures, words, name, common)


def _layer_columns() -> list[Column]:
    """Return the columns that describe a layer in the lecture's terms."""
    return [
        ("layer", lambda row: row.layer),
        ("pass", lambda row: row.direction),
        ("dtype", lambda row: row.dtype),
        ("batch", lambda row: str(row.batch)),
        ("input CxH1xW1", lambda row: f"{row.in_channels}x{row.in_h}x{row.in_w}"),
        ("K", lambda row: "" if row.filters is None else str(row.filters)),
        ("F", lambda row: pair_text(row.filter_h, row.filter_w)),
        ("S", lambda row: row.stride),
        ("P", lambda row: row.padding),
        ("dilation", lambda row: row.dilation),
        ("groups", lambda row: str(row.groups)),
        ("output KxH2xW2", lambda row: row.output_volume),
    ]


def _choice_columns() -> list[Column]:
    return [("kernel", lambda row: row.family), ("tile", lambda row: row.tile)]


def _figure(value: float | None) -> str:
    return "" if value is None else number_text(value)


def times_text(ratio: float | None) -> str:
    """Format a speed-up as in all tables.

    >>> times_text(1.2345), times_text(None)
    ('1.23', '')
    """
    return "" if ratio is None else f"{ratio:.2f}"


def _figure_columns(kind: str) -> list[Column]:
    on_what = "a small copy" if kind == "predicted" else "measured"
    return [
        (f"{kind} ms", lambda row: _figure(row.tconv_ms)),
        ("its middle 60%", _middle),
        ("measured cuDNN ms, channels_last", lambda row: _figure(row.cudnn_nhwc_ms)),
        ("measured cuDNN ms, contiguous", lambda row: _figure(row.cudnn_nchw_ms)),
        ("times as fast as channels_last", lambda row: times_text(row.times_nhwc)),
        ("times as fast as contiguous", lambda row: times_text(row.times_nchw)),
        (f"{kind} TFLOP/s", lambda row: _figure(row.tflops)),
        (f"{kind} GB/s", lambda row: _figure(row.gbps)),
        (f"{kind} share of roofline", lambda row: _figure(row.roofline_share)),
        (f"error against fp64, {on_what}", lambda row: _figure(row.error_fp64)),
        ("cuDNN's error against fp64", lambda row: _figure(row.cudnn_error_fp64)),
    ]


def _middle(row: LayerRow) -> str:
    """Return the 20th and the 80th percentile as text."""
    if row.tconv_ms_p20 is None or row.tconv_ms_p80 is None:
        return ""
    return f"{number_text(row.tconv_ms_p20)} to {number_text(row.tconv_ms_p80)}"


def pass_grid(tables: Tables) -> Grid:
    """Return the table of speed-ups over cuDNN and roofline shares, by suite and pass."""
    kind = tables.about.kind
    groups: dict[tuple[str, ...], list[LayerRow]] = {}
    several = len({row.dtype for row in tables.layers}) > 1
    for row in tables.layers:
        suite = row.suite if row.filters is not None else f"{row.suite} pools"
        key = (suite, row.direction, *([row.dtype] if several else []))
        groups.setdefault(key, []).append(row)
    compared = any(row.times_nhwc for row in tables.layers)
    rows: list[list[str]] = []
    for key, held in groups.items():
        cells = list(key)
        if compared:
            last, plain = ratios(held), ratios(held, contiguous=True)
            cells += [times_text(geometric_mean(r)) if r else "" for r in (last, plain)]
            cells.append(str(sum(ratio < 1 for ratio in last)))
        shares = [row.roofline_share for row in held if row.roofline_share]
        near = (geometric_mean(shares), min(shares), max(shares)) if shares else ()
        cells += [f"{share:.1%}" for share in near] or [""] * 3
        rows.append([*cells, str(len(held))])
    headings = ["suite", "pass", *(["dtype"] if several else [])]
    words = frozenset(range(len(headings)))
    if compared:
        means = (f"times as fast as {form}, geometric mean" for form in FORMATS)
        headings += [*means, "slower than channels_last"]
    summaries = ("geometric mean", "least", "most")
    headings += [f"{kind} share of roofline, {word}" for word in summaries]
    return Grid([*headings, "layers"], rows, words, "passes")


def search_grid(tables: Tables) -> Grid:
    """Return, by pass, the tiles left by each rule, the number tried, and their outcomes."""
    stages: dict[str, dict[str, Counter[str]]] = {"space": {}, "passed": {}, "rejected": {}}
    for row in tables.space:
        first = row.rule == FIRST_RULE
        label = row.rule if first else f"left by the rule: {row.rule}"
        counts = stages["space"].setdefault(label, Counter())
        counts[row.problem.split("/")[0]] += row.remaining
    for trial in tables.trials:
        direction, good = trial.problem.split("/")[0], trial.status == "ok"
        label = "passed" if good else f"rejected: {trial.status}"
        stages["space"].setdefault("tried", Counter())[direction] += 1
        stages["passed" if good else "rejected"].setdefault(label, Counter())[direction] += 1
    lines = {label: counts for stage in stages.values() for label, counts in stage.items()}
    known = [name for name in PASSES if any(counts[name] for counts in lines.values())]
    rows = [[label, *(f"{counts[name]:,}" for name in known)] for label, counts in lines.items()]
    return Grid(["candidates, all problems together", *known], rows, frozenset((0,)), "search")
