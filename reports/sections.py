"""The chapters of a report, built from its tables, in the order of both pages."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

import numpy as np

from autotune.judge import spearman
from autotune.search import SEED
from reports import beside_torch, beside_torch_figures, figures, grids, tuner_figures, verdicts
from reports.bench.layers import DRAWS
from reports.glossary import glossary
from reports.goals import goals_grid
from reports.page import Grid, Heading, Part, Picture, Section, Text
from reports.roofline import NAMED, roofline
from reports.rows import MODES
from reports.tables import Tables
from tconv import svg
from tconv.extras import extra
from tconv.problem import Problem

with extra("reports"):
    from matplotlib.figure import Figure

LAYERS_INTRO = (
    "One row per layer and pass, in the lecture's terms: K filters of extent F, stride S, zero "
    "padding P. A row without K is a max-pool."
)
NOT_MEASURED = (
    "No GPU was used: the report has no comparison with cuDNN, no whole networks and no memory."
)

COUNTED = (
    "An emulated GPU ran the compiled code of each chosen tile on a scaled-down copy of its "
    "layer, checked every access and barrier, and counted events; it measures no times. A result "
    "is an element of y, dx or dw. A sector is 32 bytes; a warp's request needs at least four "
    "sectors for each 128 bytes. Bank conflicts are shared-memory wavefronts beyond the necessary "
    "ones."
)


def verdict(tables: Tables) -> str:
    """Summarise the report in a sentence or two."""
    return beside_torch.verdict(tables) or verdicts.verdict(tables)


def facts(tables: Tables) -> list[tuple[str, str]]:
    """Return the facts about the figures: kind, machine, date and method."""
    about = tables.about
    used = dict.fromkeys(row.dtype for row in tables.layers)
    peaks = [f"{about.peaks[d]:g} TFLOP/s {d}" for d in used if d in about.peaks]
    if about.bandwidth_gbps > 1:
        peaks.append(f"{about.bandwidth_gbps:g} GB/s")
    reached = [
        f"{value:g} TFLOP/s {name}" for name, value in about.ceilings.items() if name != "copy"
    ]
    if "copy" in about.ceilings:
        reached.append(f"{about.ceilings['copy']:g} GB/s, a copy's reads and writes")
    origin = {
        "predicted": "predicted by the tuner's model from code compiled for this target; nothing "
        "was measured",
        "measured": "measured on this machine: medians, caches flushed before each run, all sides "
        "in turn on the same numbers",
    }
    return [
        ("Target", f"{about.product} ({about.arch}), {about.processors} processors"),
        *([("Peaks, the vendor's", ", ".join(peaks))] if peaks else []),
        *([("Reached here", ", ".join(reached))] if reached else []),
        ("Times are", origin[about.kind]),
        ("Versions", about.versions or "not recorded"),
        *about.facts.items(),
        ("Date", about.date),
    ]


def reproduce(tables: Tables) -> str:
    """Return what decides the figures besides the commands."""
    if tables.about.kind == "predicted":
        return (
            f"A search starts from seed {SEED}, and predictions are deterministic: the same "
            "versions give the same figures. The inputs of the correctness checks are drawn at "
            "random."
        )
    drawn = ", ".join(map(str, range(DRAWS)))
    return (
        f"Inputs have unit variance and are drawn from the seeds {drawn}, which the runs use in "
        f"turn. A search starts from seed {SEED}. The inputs of the correctness checks are drawn "
        "at random. The versions are given at the top."
    )


def first_screen(tables: Tables) -> tuple[Part, ...]:
    """Return the parts below the facts: geometric means by pass."""
    return (grids.pass_grid(tables),)


def notes(tables: Tables) -> list[str]:
    """Return notes on everything that is missing."""
    found = [NOT_MEASURED] if tables.about.kind == "predicted" else []
    served = {row.problem.key for row in tables.layers if row.filters is not None}
    failed = sorted({trial.problem for trial in tables.trials} - served)
    if failed:
        named = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
        found.append(f"Problems without a passing candidate: {len(failed)} ({named}).")
    if tables.layers and not tables.trials:
        found.append("The tuner's trials are missing: resources and reasons cannot be shown.")
    if tables.about.kind == "measured":
        lacking = [name for name in ("networks", "memory") if not getattr(tables, name)]
        if lacking:
            found.append(f"Not measured yet: {' and '.join(lacking)}.")
        uncompared = sum(row.times_nhwc is None for row in tables.layers)
        if uncompared:
            found.append(f"Not measured beside cuDNN: {uncompared} of {len(tables.layers)} rows.")
    for suite in verdicts.suites(tables):
        layers = {row.layer for row in tables.layers if row.suite == suite}
        if len(layers) > NAMED:
            found.append(
                f"Of {suite}'s {len(layers)} layers the roofline plot names {NAMED}, and a bar "
                f"chart shows {figures.BARS}."
            )
    return [*found, *tables.about.notes]


def sections(tables: Tables) -> list[Section]:
    """Return the chapters, without empty ones."""
    kind = tables.about.kind
    chapters: list[tuple[str, Callable[[Tables], list[Part]]]] = [
        ("Goals", _goals),
        (f"Layers, {kind}", _layers),
        (f"Against the roofline, {kind}", _roofline),
        ("Faster and slower than cuDNN, measured", _compared),
        ("What the tuner did", _tuner),
        ("End to end, measured", _networks),
        ("Memory, measured", _memory),
        ("How to read it", _glossary),
    ]
    made = [(title, tuple(build(tables))) for title, build in chapters]
    return [Section(title, parts) for title, parts in made if parts]


def _goals(tables: Tables) -> list[Part]:
    if tables.about.kind != "measured" or not any(row.times_nhwc for row in tables.layers):
        return []
    words = (
        "The project's targets for a data-centre GPU (float16 and batch 64 unless stated), and "
        "what was measured here: the speed-up over the other side, or the share of a copy's "
        "bandwidth."
    )
    return [Text(words), goals_grid(tables)]


def _layers(tables: Tables) -> list[Part]:
    parts: list[Part] = [Text(LAYERS_INTRO)]
    for suite in verdicts.suites(tables):
        rows = [row for row in tables.layers if row.suite == suite]
        grid = grids.layer_grid(tables, rows)
        parts.append(Heading(f"{suite}, {tables.about.kind}"))
        if grid.common:
            parts.append(Text(f"All rows: {grid.common}."))
        parts.append(grid)
    return parts


def _picture(name: str, title: str, caption: str, figure: Figure | None) -> list[Part]:
    if figure is None:
        return []
    return [Picture(name, title, f"{title}. {caption}", svg.as_svg(figure, name, title))]


def _roofline(tables: Tables) -> list[Part]:
    kind = tables.about.kind
    under = (
        "Each layer is drawn above its name, with one mark per pass. Under the slope it is "
        "limited by memory, under the flat roof by arithmetic."
    )
    if any(row.times_nhwc for row in tables.layers):
        under += " Rings are our passes, small filled marks cuDNN's; a line joins the two."
    if tables.about.ceilings:
        under += (
            " The dashed roof is the measured rate of large products and copies on this machine."
        )
    least = "100% is the least time that the machine's peaks allow."
    parts: list[Part] = []
    for suite in verdicts.suites(tables):
        rows = [row for row in tables.layers if row.suite == suite]
        name, title = _file_name("roofline", suite), f"Roofline of {suite}, {kind}"
        parts += _picture(name, title, under, roofline(tables, suite))
        if not verdicts.ratios(rows):  # otherwise the comparison's bars show these rows
            name, title = _file_name("shares", suite), f"Share of the roofline, {suite}, {kind}"
            parts += _picture(name, title, least, figures.shares(tables, suite))
    return parts


def _file_name(kind: str, suite: str) -> str:
    return f"{kind}-" + suite.replace("+", "-").replace("_", "-")


def _compared(tables: Tables) -> list[Part]:
    parts: list[Part] = []
    for suite in verdicts.suites(tables):
        figure = beside_torch_figures.speedups(tables, suite)
        caption = (
            "Longer is better; a hatched bar to the left of 1 is a loss. Both sides were measured "
            "in one run, on the same numbers and in the same precision."
        )
        name = _file_name("speedup", suite)
        parts += _picture(name, f"Times as fast as torch, {suite}, measured", caption, figure)
    if not parts:
        return []
    losses = beside_torch.losses_grid(tables)
    if not losses.rows:
        return [*parts, Text("No pass was slower than cuDNN's on channels_last tensors.")]
    intro = f"Passes that cuDNN computes faster, costliest first, at most {beside_torch.LOSSES}:"
    return [*parts, Heading("The losses"), Text(intro), losses]


def _tuner(tables: Tables) -> list[Part]:
    kind = tables.about.kind
    if not tables.trials and not tables.map:
        return []
    flat = (
        "One thin line per problem, and the geometric mean of all. A line that is flat from the "
        "start tried its best tile first."
    )
    progress = tuner_figures.progress(tables)
    parts: list[Part] = [grids.search_grid(tables)]
    parts += _picture("progress", f"Best so far, {kind}", flat, progress)
    pairs = verdicts.predictions_and_times(tables.trials)
    every = [spearman(*np.array(held).T) for held in pairs.values()]
    ranks = [rank for rank in every if not math.isnan(rank)]
    if kind == "measured" and ranks:
        caption = (
            "Rank correlation of predictions before compilation with measurements, mean over "
            f"{len(ranks)} problems: {fmean(ranks):.2f}."
        )
        foreseen = tuner_figures.prediction(tables)
        parts += _picture(
            "prediction", "The model's times and the measured ones", caption, foreseen
        )
    source = (
        "predicted by the model before compilation"
        if kind == "predicted"
        else "measured (an empty cell was not measured)"
    )
    for number, key in enumerate(tuner_figures.mapped_problems(tables), 1):
        problem = Problem.from_key(key)
        shape = problem.geometry
        caption = (
            f"For {shape.input_volume}, batch {shape.batch}: the best milliseconds of all tiles "
            f"with each block size, {source}. The winner's blocks are marked."
        )
        title = f"Tile map, {kind}: {problem.direction} of {shape.describe()}"
        parts += _picture(f"tiles-{number}", title, caption, tuner_figures.tile_map(tables, key))
    code = grids.code_grid(tables)
    if code.rows:
        parts += [Heading("Resources of each chosen tile, and why it won")]
        parts += [Text(f"All rows: {code.common}.")] * bool(code.common) + [code]
    counters = grids.counters_grid(tables)
    if counters.rows:
        parts += [Heading("Counted: compiled code, emulated"), Text(COUNTED)]
        parts += [Text(f"All rows: {counters.common}.")] * bool(counters.common) + [counters]
    return parts


def _networks(tables: Tables) -> list[Part]:
    if not tables.networks:
        return []
    words = (
        "The same weights and images on all backends, which took turns in one run, by the host's "
        'clock: what a user waits for. tconv is torch.compile(model, backend="tconv"); graphed '
        "is one CUDA graph; torch.compile is in mode max-autotune."
    )
    parts: list[Part] = [Text(words)]
    for mode in MODES:
        ratio = "Longer is better; 1 is torch, eager, on channels_last tensors."
        figure = beside_torch_figures.networks(tables, mode)
        parts += _picture(f"networks-{mode}", f"End to end, {mode}, measured", ratio, figure)
    grid: Grid = beside_torch.networks_grid(tables)
    parts.append(grid)
    for mode in MODES:
        shares = "By operator, on the device, eager; each network's longer bar is 100%."
        figure = beside_torch_figures.operators(tables, mode)
        parts += _picture(f"operators-{mode}", f"Where the time goes, {mode}", shares, figure)
    return parts


def _memory(tables: Tables) -> list[Part]:
    if not tables.memory:
        return []
    words = (
        "Peak memory of a layer's forward and backward pass, including the layer's own tensors; "
        "channels_last on both sides."
    )
    figure = beside_torch_figures.memory(tables)
    shorter = "Shorter is better."
    return [
        Text(words),
        *_picture("memory", "Peak memory, measured", shorter, figure),
        beside_torch.memory_grid(tables),
    ]


def _glossary(tables: Tables) -> list[Part]:
    parts: list[Part] = []
    for word, meaning in glossary(tables.about.kind):
        parts += [Heading(word), Text(meaning)]
    return parts
