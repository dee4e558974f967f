"""How far to trust a prediction: the cost model beside times that others recorded.

``judged.json`` holds only statistics, no recorded row. ``python -m reports trust TABLE...``
computes it from the recorded tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from autotune.calibrate import held_out
from autotune.few_measurements import MEASURED, shares_after
from autotune.judge import Cell, judge, mean_share
from autotune.nvidia import available, first_choice
from autotune.recordings import Recording
from reports.figures import canvas
from reports.page import Grid, Part, Picture, Section, Text
from tconv import svg
from tconv.extras import extra

with extra("reports"):
    from matplotlib.figure import Figure

STATISTICS = Path(__file__).parent / "judged.json"
TITLE = "How far to trust a prediction"
PAGE = "trust"
SOURCES = {
    "A100": "AlnisM/autoheuristic-datasets 3ed2bc47: Triton matrix products, as 1x1 convolutions",
    "H100": "AlnisM/autoheuristic-datasets 3ed2bc47: Triton matrix products, as 1x1 convolutions",
    "RTX 3070": "masahi/tvm-cutlass-eval 63d5ee62: CUTLASS convolutions, results in float32",
}
EDGES = np.linspace(-3.0, 5.0, 49)  # log10 of milliseconds: six bins a decade
COUNTS = (1, 2, 4, 8, 16)
SAMPLED = 24  # problems of a GPU whose search is simulated
GPU_COLOURS = {"A100": "#0072b2", "H100": "#d55e00", "RTX 3070": "#009e73"}
MARKS = {"A100": "o", "H100": "s", "RTX 3070": "^"}
INTRO = (
    "The model's times and its order of tiles beside times that others recorded on GPUs and "
    "published. Nothing here was measured by this project. Of the A100's and the H100's problems, "
    "constants were fitted to one half, chosen by a hash; all figures here are of the other half. "
    "The RTX 3070's problems are too few to halve: constants were fitted to all of them, so its "
    "figures are optimistic."
)
ERRS = (
    "Where it errs: gradients in 16 bits that take over a second, as only the smallest tiles of "
    "the largest products do, are predicted at 0.5 to 0.8 of the recorded time. For the largest "
    "tf32 input gradient on an H100, the fastest tile has two warps, which use no wgmma, and is "
    "predicted 1.5 times too slow. Some tiles that are too large for shared memory according to "
    "the model did run; they are left out of the ratios. On the RTX 3070, one in ten CUTLASS "
    "kernels with two stages takes over 1.25 times the predicted time."
)
NOT_KNOWN = (
    "There are no recordings of other targets (sm_100, gfx942): no measurement supports their "
    "figures. Nor were the families direct, depthwise, grouped and few_channels recorded, "
    "nor splits of the reduction, persistent kernels and tensor maps."
)


def statistics(recordings: Sequence[Recording]) -> dict[str, Any]:
    """Return the page's figures on each GPU's held-out problems, or on all if it has none."""
    unseen = held_out(recordings)
    halved = {each.gpu for each in unseen}
    judged = unseen + [each for each in recordings if each.gpu not in halved]
    cells = judge(judged)
    gpus = list(dict.fromkeys(cell.name.split("/")[0] for cell in cells))
    return {
        "cells": {cell.name: _cell(cell) for cell in cells},
        "gpus": {gpu: _gpu([c for c in cells if c.name.startswith(f"{gpu}/")]) for gpu in gpus},
    }


def _cell(cell: Cell) -> dict[str, Any]:
    found = {**cell.as_json(), "error": cell.error, "error_90": cell.error_90}
    if not np.isnan(cell.library):
        found["library"] = cell.library
    if available() and (beside := cell.beside(first_choice)).problems:
        found["nvidia"] = {"problems": beside.problems, "top1": beside.theirs, "ours": beside.ours}
    return found


def _gpu(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return counts of predicted against recorded times, shares of the best, simulated searches."""
    verdicts = [each for cell in cells for each in cell.verdicts]
    recorded = np.log10(np.concatenate([each.recording.milliseconds for each in verdicts]))
    predicted = np.log10(np.concatenate([each.predicted for each in verdicts]))
    counts, _, _ = np.histogram2d(recorded, np.clip(predicted, *EDGES[[0, -1]]), (EDGES, EDGES))
    picks = {
        str(count): mean_share([_best_of_first(each.recording, each.predicted, count)
                                for each in verdicts])
        for count in COUNTS
    }  # fmt: skip
    sample = verdicts[:: -(-len(verdicts) // SAMPLED)]
    searched = np.array([shares_after(each.recording) for each in sample])
    return {
        "problems": len(verdicts),
        "tiles": len(recorded),
        "histogram": {f"{x},{y}": int(counts[x, y]) for x, y in np.argwhere(counts)},
        "picks": picks,
        "searched": {
            "problems": len(sample),
            **{str(count): mean_share(list(column))
               for count, column in zip(MEASURED, searched.T, strict=True)},
        },
    }  # fmt: skip


def _best_of_first(recording: Recording, predicted: np.ndarray, count: int) -> float:
    first = np.argsort(predicted, kind="stable")[:count]
    return recording.best / float(recording.milliseconds[first].min())


def write_statistics(found: dict[str, Any], path: Path = STATISTICS) -> None:
    """Write the statistics to the file that reports read.

    Raises:
        OSError: where the file cannot be written.
    """
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.4g}"))
    path.write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


@lru_cache(maxsize=1)
def published() -> dict[str, Any]:
    """The statistics that ship with the reports."""
    return dict(json.loads(STATISTICS.read_text(encoding="utf-8")))


def content() -> dict[str, Any]:
    """Return the values for the page's templates."""
    found = published()
    cells = found["cells"].values()
    tops = [cell["top1"] for cell in cells]
    return {
        "title": f"{TITLE}: predicted beside recorded",
        "verdict": f"In {len(tops)} groups of a GPU, arithmetic and pass, the model's first tile "
        f"reaches {min(tops):.0%} to {max(tops):.0%} of the best recorded tile's speed, "
        f"{float(np.median(tops)):.0%} in the median group.",
        "facts": [(gpu, f"recorded by {SOURCES[gpu]}") for gpu in found["gpus"]],
        "first": (),
        "notes": [],
        "commands": ("python -m autotune judge --held-out --nvidia TABLE...",
                     "python -m reports trust TABLE...",
                     "python -m autotune calibrate --from TABLE... --target sm_90"),
        "reproduce": "The recorded tables are not part of this project; their sources stand above. "
        "A search is simulated from seed 0.",
        "files": [],
        "trust": "",
    }  # fmt: skip


def chapters() -> list[Section]:
    """The page's sections."""
    found = published()
    return [
        Section("What was compared", (Text(INTRO), Text(ERRS), Text(NOT_KNOWN))),
        Section("The order of tiles", (_order_grid(found["cells"]), *_picks(found["gpus"]))),
        Section("The times", (_time_grid(found["cells"]), *_histograms(found["gpus"]))),
        Section("A tuner that measures a few", (_searched_grid(found["gpus"]),)),
    ]


def _order_grid(cells: dict[str, Any]) -> Grid:
    heads = ["recorded", "problems", "rank correlation", "first tile", "best of 4", "best of 8",
             "NVIDIA's first", "ours on the same", "of them", "best tile / library"]  # fmt: skip
    rows = []
    for name, cell in cells.items():
        nvidia = cell.get("nvidia")
        beside = ["", "", ""]
        if nvidia:
            beside = [f"{nvidia['top1']:.3f}", f"{nvidia['ours']:.3f}", str(nvidia["problems"])]
        library = f"{cell['library']:.2f}" if "library" in cell else ""
        shares = [f"{cell[key]:.3f}" for key in ("spearman", "top1", "top4", "top8")]
        rows.append([name, str(cell["problems"]), *shares, *beside, library])
    return Grid(heads, rows, frozenset({0}))


def _time_grid(cells: dict[str, Any]) -> Grid:
    decades = sorted({name for cell in cells.values() for name in cell["ratio_by_decade"]},
                     key=lambda name: float(name.split()[0]))  # fmt: skip
    heads = ["recorded", "half within", "nine in ten within", *(f"from {each}" for each in decades)]
    rows = [
        [name, *(f"x {np.exp(cell[key]):.2f}" for key in ("error", "error_90")),
         *(_figure(cell["ratio_by_decade"].get(decade)) for decade in decades)]
        for name, cell in cells.items()
    ]  # fmt: skip
    return Grid(heads, rows, frozenset({0}))


def _figure(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _searched_grid(gpus: dict[str, Any]) -> Grid:
    heads = ["recorded", "problems", "nothing", *(f"{count} tiles" for count in MEASURED)]
    rows = [
        [gpu, str(each["searched"]["problems"]), f"{each['picks']['1']:.3f}",
         *(f"{each['searched'][str(count)]:.3f}" for count in MEASURED)]
        for gpu, each in gpus.items()
    ]  # fmt: skip
    return Grid(heads, rows, frozenset({0}), common="share of the best recorded tile's speed")


def _picks(gpus: dict[str, Any]) -> list[Part]:
    figure, axes = canvas(7, 3.6)
    for gpu, each in gpus.items():
        counts = [int(count) for count in each["picks"]]
        axes.plot(counts, list(each["picks"].values()), MARKS[gpu], linestyle="-", label=gpu,
                  color=GPU_COLOURS[gpu])  # fmt: skip
    axes.set(
        xscale="log", xlabel="best of so many first tiles, as predicted", ylabel="share of the best"
    )
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    caption = "Best recorded time over the best among the model's first k, geometric mean."
    return [_picture("trust-picks", "Share of the best by k, recorded", caption, figure)]


def _histograms(gpus: dict[str, Any]) -> list[Part]:
    parts: list[Part] = []
    for gpu, each in gpus.items():
        counts = np.zeros((len(EDGES) - 1, len(EDGES) - 1))
        for places, count in each["histogram"].items():
            x, y = map(int, places.split(","))
            counts[x, y] = count
        name = f"trust-times-{gpu.lower().replace(' ', '-')}"
        caption = (
            f"{each['tiles']:,} tiles of {each['problems']} problems; darker is more. On the line "
            "both agree, between the thin lines within a factor of two."
        )
        figure = _histogram(counts)
        parts.append(_picture(name, f"Predicted against recorded time, {gpu}", caption, figure))
    return parts


def _histogram(counts: np.ndarray) -> Figure:
    figure, axes = canvas(6, 4.6)
    shown = np.ma.masked_equal(counts.T, 0)
    edges = 10**EDGES
    axes.pcolormesh(edges, edges, np.ma.log10(shown), cmap="viridis_r", rasterized=True)
    used = np.flatnonzero(counts.sum(1))
    low, high = edges[used[0]], edges[used[-1] + 1]
    for factor, width in ((1.0, 1.2), (2.0, 0.5), (0.5, 0.5)):
        axes.plot([low, high], [low * factor, high * factor], color="#808080", linewidth=width)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low / 3, high * 3),
             xlabel="recorded, ms", ylabel="predicted, ms")  # fmt: skip
    return figure


def _picture(name: str, title: str, caption: str, figure: Figure) -> Picture:
    return Picture(name, title, f"{title}. {caption}", svg.as_svg(figure, name, title))
