"""Tables and text that compare our times with torch's: losing layers, networks, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import geometric_mean

from reports.grids import times_text
from reports.page import Grid
from reports.rows import LayerRow, MemoryRow, NetworkRow, TrialRow, number_text
from reports.tables import Tables
from reports.verdicts import name_of, passed, ratios
from tconv.geometry import PASSES

EAGER = "torch"  # the backend that the others are compared with
LOSSES = 40  # most rows in the table of losses


def verdict(tables: Tables) -> str | None:
    """Summarise our speed relative to cuDNN in a sentence or two; None without a comparison."""
    rows = [row for row in tables.layers if row.times_nhwc]
    if not rows:
        return None
    means = []
    for direction in PASSES:
        if held := ratios(row for row in rows if row.direction == direction):
            means.append(f"{direction} {times_text(geometric_mean(held))}")
    every, plain = ratios(rows), ratios(rows, contiguous=True)
    worst = min(rows, key=lambda row: row.times_nhwc or 1.0)
    best = max(rows, key=lambda row: row.times_nhwc or 1.0)
    beside = f", and {times_text(geometric_mean(plain))} on contiguous ones" if plain else ""
    return (
        f"On {tables.about.product}, our kernels are {times_text(geometric_mean(every))} times as "
        f"fast as torch's on channels_last tensors (geometric mean of {len(rows)} layer passes: "
        f"{', '.join(means)}){beside}. {sum(ratio < 1 for ratio in every)} are slower; the range "
        f"is from {times_text(worst.times_nhwc)} ({name_of(worst, tables)}, {worst.direction}) to "
        f"{times_text(best.times_nhwc)} ({name_of(best, tables)}, {best.direction})."
    )


def losses_grid(tables: Tables) -> Grid:
    """Return a table of the passes that cuDNN computes faster on channels_last, costliest first."""
    lost = [row for row in tables.layers if (row.times_nhwc or 1.0) < 1]
    lost.sort(key=lambda row: (row.cudnn_nhwc_ms or 0.0) - (row.tconv_ms or 0.0))
    why = cause_of(tables)
    rows = [
        [name_of(row, tables), row.direction, row.dtype, number_text(row.tconv_ms or 0.0),
         number_text(row.cudnn_nhwc_ms or 0.0), times_text(row.times_nhwc), row.family, why(row)]
        for row in lost[:LOSSES]
    ]  # fmt: skip
    headings = ["layer", "pass", "dtype", "measured ms", "measured cuDNN ms", "times as fast",
                "kernel", "why, if known"]  # fmt: skip
    return Grid(headings, rows, frozenset((0, 1, 2, 6, 7)), "losses")


def cause_of(tables: Tables) -> Callable[[LayerRow], str]:
    """Explain why a row is slow: a recorded cause, or else the resource that the model blames."""
    known_causes = {(c.suite, c.layer, c.direction, c.dtype): c.cause for c in tables.causes}
    ranked: dict[str, list[TrialRow]] = passed(tables.trials)

    def cause(row: LayerRow) -> str:
        found = known_causes.get((row.suite, row.layer, row.direction, row.dtype))
        if found is not None or row.filters is None:
            return found or ""
        won = (row.family, row.tile)
        tried = ranked.get(row.problem.key, [])
        bound = next((t.bound for t in tried if (t.family, t.tile) == won and t.bound), "")
        return f"bound by {bound}, according to the model" if bound else ""

    return cause


Key = tuple[str, str, int, str]


def by_network(rows: Iterable[NetworkRow]) -> dict[Key, dict[str, NetworkRow]]:
    """Group a network's rows of one mode, batch and dtype by backend."""
    grouped: dict[Key, dict[str, NetworkRow]] = {}
    for row in rows:
        key = (row.model, row.mode, row.batch, row.dtype)
        grouped.setdefault(key, {})[row.backend] = row
    return grouped


def networks_grid(tables: Tables) -> Grid:
    """Return a table of networks, one row per backend, with speed-ups over eager torch."""
    rows = []
    for (model, mode, batch, dtype), backends in by_network(tables.networks).items():
        eager = backends.get(EAGER)
        for row in sorted(backends.values(), key=lambda row: row.ms):
            ratio = times_text(eager.ms / row.ms) if eager else ""
            peak = "" if row.peak_mib is None else number_text(row.peak_mib)
            figures = [number_text(row.ms), number_text(row.images_per_s), ratio, peak]
            rows.append([model, mode, str(batch), dtype, row.backend, *figures])
    headings = ["network", "mode", "batch", "dtype", "backend", "measured ms",
                "measured images/s", "times as fast as torch", "measured peak MiB"]  # fmt: skip
    return Grid(headings, rows, frozenset((0, 1, 3, 4)), "networks")


def memory_grid(tables: Tables) -> Grid:
    """Return a table of each layer's peak bytes in the forward and backward pass."""

    def cells(row: MemoryRow) -> list[str]:
        ours, theirs = row.tconv_peak_mib, row.torch_peak_mib
        figures = [
            number_text(ours),
            number_text(theirs),
            times_text(ours / theirs if theirs else None),
        ]
        return [row.suite, row.layer, row.operator, row.dtype, str(row.batch), *figures]

    headings = ["suite", "layer", "operator", "dtype", "batch", "measured peak MiB",
                "torch's measured peak MiB", "ours over torch's"]  # fmt: skip
    return Grid(headings, [cells(row) for row in tables.memory], frozenset((0, 1, 2, 3)), "memory")
