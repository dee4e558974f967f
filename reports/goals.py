"""The project's goals on a GPU, compared with measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from reports.beside_torch import EAGER, by_network
from reports.page import Grid
from reports.rows import LayerRow, NetworkRow
from reports.tables import Tables


@dataclass(frozen=True)
class Goal:
    """The target for some figures' geometric mean, and optionally for each figure."""

    work: str
    against: str
    mean: float | None = None
    least: float | None = None
    share: bool = False  # percent of a ceiling instead of a speed-up


@dataclass(frozen=True)
class Reached:
    """A goal and its figures; no figures means that it was not measured."""

    goal: Goal
    figures: tuple[float, ...]

    @property
    def mean(self) -> float:
        return geometric_mean(self.figures)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if nothing was measured."""
        if not self.figures:
            return None
        goal = self.goal
        return self.mean >= (goal.mean or 0.0) and min(self.figures) >= (goal.least or 0.0)


def _plain(dtype: str, suites: Sequence[str], *passes: str) -> Callable[[LayerRow], bool]:
    def wanted(row: LayerRow) -> bool:
        mine = row.filters is not None and row.suite in suites
        return mine and row.dtype == dtype and row.direction in passes

    return wanted


def _first(row: LayerRow) -> bool:
    """True for a network's first layer, with three channels: forward pass and filter gradient."""
    return (
        row.in_channels == 3 and row.filters is not None and not row.epilogue
        and row.direction in ("fprop", "wgrad") and row.dtype == "float16"
    )  # fmt: skip


def _depthwise(extent: int) -> Callable[[LayerRow], bool]:
    def wanted(row: LayerRow) -> bool:
        return row.suite == "depthwise" and row.filter_h == extent and row.dtype == "float16"

    return wanted


def _pool(direction: str) -> Callable[[LayerRow], bool]:
    return lambda row: row.filters is None and row.direction == direction and row.dtype == "float16"


HALF = "float16"
CUDNN = "cuDNN, channels_last"
COPY = "the measured copy"
# Speed-ups over torch on channels_last tensors.
RATIOS: tuple[tuple[Goal, Callable[[LayerRow], bool]], ...] = (
    (Goal("VGG-16 fprop", CUDNN, 1.0, 0.9), _plain(HALF, ["vgg16"], "fprop")),
    (Goal("the same with bias and ReLU", "torch, eager", 1.4),
     _plain(HALF, ["vgg16+relu"], "fprop")),
    (Goal("with bias, ReLU and 2x2 pool", "torch, eager", 1.7),
     _plain(HALF, ["vgg16+relu+pool"], "fprop")),
    (Goal("VGG-16 dgrad", CUDNN, 1.0), _plain(HALF, ["vgg16"], "dgrad")),
    (Goal("VGG-16 wgrad", CUDNN, 1.0), _plain(HALF, ["vgg16"], "wgrad")),
    (Goal("ResNet-50, three passes", CUDNN, 1.0),
     _plain(HALF, ["resnet50"], "fprop", "dgrad", "wgrad")),
    (Goal("accurate float32 (tf32x3), VGG-16", "cuDNN, TF32 off", 2.0),
     _plain("tf32x3", ["vgg16"], "fprop", "dgrad", "wgrad")),
    (Goal("depthwise 3x3", CUDNN, 5.0), _depthwise(3)),
    (Goal("depthwise 5x5", CUDNN, 5.0), _depthwise(5)),
    (Goal("depthwise 7x7", CUDNN, 5.0), _depthwise(7)),
    (Goal("grouped: ResNeXt 32x4d, AlexNet", CUDNN, 1.5),
     _plain(HALF, ["grouped"], "fprop", "dgrad", "wgrad")),
    (Goal("first layers of three channels, fprop and wgrad", CUDNN, 1.3), _first),
    (Goal("max-pool, forward", "torch, channels_last", 1.7), _pool("fprop")),
    (Goal("max-pool, backward", "torch, channels_last", 2.0), _pool("dgrad")),
)  # fmt: skip
# Shares of the bandwidth that a large copy reaches on the same machine.
SHARES: tuple[tuple[Goal, Callable[[LayerRow], bool]], ...] = (
    (Goal("depthwise 3x3", COPY, 0.85, share=True), _depthwise(3)),
    (Goal("depthwise 5x5", COPY, 0.75, share=True), _depthwise(5)),
    (Goal("depthwise 7x7", COPY, 0.60, share=True), _depthwise(7)),
    (Goal("max-pool, forward", COPY, 0.9, share=True), _pool("fprop")),
    (Goal("max-pool, backward", COPY, 0.9, share=True), _pool("dgrad")),
)
COMPILED, GRAPHED = "torch.compile", "torch graphed"
NETWORKS: tuple[tuple[Goal, str, str], ...] = (
    (Goal("inference, batch 64 and 1", "torch, eager", least=1.3), "vgg16 inference", EAGER),
    (Goal("inference, batch 64 and 1", COMPILED, least=1.1), "vgg16 inference", COMPILED),
    (Goal("training step", "torch, eager", least=1.15), "vgg16 training", EAGER),
    (Goal("inference, batch 64", "torch, eager", least=4.0), "lenet5 inference", EAGER),
    (Goal("inference, batch 64", GRAPHED, least=1.3), "lenet5 inference", GRAPHED),
    (Goal("training step", "torch, eager", least=4.0), "lenet5 training", EAGER),
    (Goal("training step", GRAPHED, least=1.3), "lenet5 training", GRAPHED),
    (Goal("inference", "torch, eager", least=1.5), "mobilenet_v2 inference", EAGER),
    (Goal("training step", "torch, eager", least=1.5), "mobilenet_v2 training", EAGER),
)
OURS = ("tconv", "tconv graphed")


def reached(tables: Tables) -> list[Reached]:
    """Return every goal with its figures."""
    found = [
        Reached(
            goal, tuple(row.times_nhwc for row in tables.layers if wanted(row) and row.times_nhwc)
        )
        for goal, wanted in RATIOS
    ]
    copy = tables.about.ceilings.get("copy")
    for goal, wanted in SHARES:
        rates = [row.gbps / copy for row in tables.layers if copy and wanted(row) and row.gbps]
        found.append(Reached(goal, tuple(rates)))
    for goal, case, rival in NETWORKS:
        model, mode = case.split()
        named = Goal(f"{model} {goal.work}", goal.against, goal.mean, goal.least)
        found.append(Reached(named, tuple(_whole(tables.networks, model, mode, rival))))
    return found


def _whole(rows: Sequence[NetworkRow], model: str, mode: str, rival: str) -> list[float]:
    """Return the speed-up over ``rival`` of our faster launch mode at each batch size."""
    figures = []
    for (name, how, _, dtype), backends in by_network(rows).items():
        ours = [backends[each].ms for each in OURS if each in backends]
        if (name, how, dtype) == (model, mode, HALF) and ours and rival in backends:
            figures.append(backends[rival].ms / min(ours))
    return figures


def goals_grid(tables: Tables) -> Grid:
    """Return a table of each goal's target, its result, and whether it is met."""
    rows = []
    for each in reached(tables):
        goal = each.goal
        wanted = [
            f"{word} {_text(value, goal)}"
            for word, value in (("mean", goal.mean), ("each", goal.least))
            if value is not None
        ]
        figures = ["not measured", ""]
        if each.figures:
            figures = [_text(each.mean, goal), _text(min(each.figures), goal)]
        met = {None: "", True: "met", False: "not met"}[each.met]
        count = str(len(each.figures))
        rows.append([goal.work, goal.against, ", ".join(wanted), count, *figures, met])
    headings = ["work", "against", "wanted", "figures", "geometric mean", "least", "met"]
    return Grid(headings, rows, frozenset((0, 1, 2, 6)), "goals")


def _text(value: float, goal: Goal) -> str:
    return f"{value:.0%}" if goal.share else f"{value:.2f}"
