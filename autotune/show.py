"""Output of the command line: tables of winners, and layers in the lecture's terms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.counted import COUNTERS_TITLE, HEADINGS, Counted
from autotune.gate import checked_by
from autotune.suites import Layer
from autotune.tune import Finding, Job, Outcome
from tconv.cost.constants import support
from tconv.cost.model import predict
from tconv.cost.space import rules_report
from tconv.extras import extra
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import Problem
from tconv.select import choose, forget
from tconv.target import Target
from tconv.tile import TILE_LEGEND

with extra("tune"):
    from rich.console import Console
    from rich.table import Table

if TYPE_CHECKING:
    from autotune.calibrate import Calibration
    from autotune.emulate import Emulation
    from autotune.judge import Cell, Chooser
    from autotune.replay import Replay

MOST_DRIFT = 1.05  # drift of the GPU's clock that is not worth reporting
FILE_WIDTH = 200  # columns, so that tables written to a file are not broken


def announcement(target: Target, kind: str, dtype: str) -> str:
    """Return one line that announces what a run will do."""
    if kind == "measured":
        return f"Measuring {dtype} on this machine's {target.product}."
    return (
        f"Predicting {dtype} for {target.name} ({target.product}): candidates are compiled for "
        f"it and costed by a model. Nothing is measured. {support(target)} "
        f"Finalists are checked: {how_checked(target)}."
    )


def how_checked(target: Target) -> str:
    """Return how results for ``target`` are checked on a machine without its GPU."""
    if checked_by(target) == "emulated":
        return "compiled code, emulated"
    return f"source, in Triton's interpreter ({target.name} is not covered by the emulator)"


def roofline_share(finding: Finding, target: Target) -> float | None:
    """Return the roofline's least time over the winner's time."""
    if finding.winner is None or not finding.winner.milliseconds:
        return None
    problem = finding.job.problem
    seconds = target.roofline_seconds(
        problem.geometry.flops, problem.least_bytes, problem.arithmetic
    )
    return 1e3 * seconds / finding.winner.milliseconds


def winners_table(outcome: Outcome) -> Table:
    """Return a table with one row per problem."""
    share = f"roofline share, {outcome.kind}"
    headings = ("layer", "input", "K F S P", "pass", "kernel", "tile", f"{outcome.kind} ms", share)
    table = Table(*headings, "registers", "spills", "occupancy", "bound (model)")
    for finding in outcome.findings:
        job, winner = finding.job, finding.winner
        shape = job.problem.geometry
        name = f"{job.layer.suite} {job.layer.name}"
        head = (name, shape.input_volume, shape.describe(), job.problem.direction)
        if winner is None:
            failed = finding.trials[0].status if finding.trials else "no candidate"
            table.add_row(*head, f"none: {failed}", *("-",) * 7)
            continue
        assert winner.resources is not None
        assert winner.milliseconds is not None
        bound = predict(job.problem, winner.choice, outcome.target, winner.resources).bound
        portion = roofline_share(finding, outcome.target)
        figures = (
            f"{winner.milliseconds:.4f}",
            "-" if portion is None else f"{portion:.0%}",
            str(winner.resources.registers),
            f"{winner.resources.spill_bytes} B",
            "-" if winner.occupancy is None else f"{winner.occupancy:.0%}",
        )
        table.add_row(*head, winner.family, str(winner.tile), *figures, bound)
    return table


def counters_table(outcome: Outcome) -> Table | None:
    """Return a table of each winner's emulated counters, or None if none was emulated."""
    table = Table("layer", "pass", *HEADINGS, title=COUNTERS_TITLE)
    for finding in outcome.findings:
        if finding.winner is not None and finding.winner.counters:
            name = f"{finding.job.layer.suite} {finding.job.layer.name}"
            cells = Counted.of(finding.winner.counters).cells()
            table.add_row(name, finding.job.problem.direction, *cells)
    return table if table.row_count else None


def emulation_line(emulation: Emulation) -> str:
    """Return one line with the result of one emulated problem."""
    verdict, choice = emulation.verdict, emulation.choice
    head = f"{emulation.problem.key}: {choice.family} {choice.tile}"
    if not verdict.passed:
        return f"{head}: FAILED: {verdict.detail}"
    cells = zip(HEADINGS, Counted.of(verdict.counters or {}).cells(), strict=True)
    listed = ", ".join(f"{heading} {cell}" for heading, cell in cells if cell)
    return f"{head}: passed on {emulation.geometry}, error {verdict.error:.2g}; {listed}"


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Print the winners and where they and the trials are stored."""
    # Wide enough for the table when output goes to a file.
    wide = console if console.is_terminal else Console(file=console.file, width=FILE_WIDTH)
    wide.print(winners_table(outcome))
    console.print(TILE_LEGEND, markup=False)
    if (counters := counters_table(outcome)) is not None:
        wide.print(counters)
    trials = [trial for finding in outcome.findings for trial in finding.trials]
    failed = sum(trial.status != "ok" for trial in trials)
    console.print(
        f"{len(outcome.findings)} problems, {len(trials)} candidates: {outcome.compiled} compiled "
        f"now, {outcome.recalled} recalled, {failed} failed."
    )
    if outcome.left:
        names = ", ".join(
            f"{job.layer.suite} {job.layer.name} {job.problem.direction}" for job in outcome.left
        )
        console.print(
            f"{len(outcome.left)} problems are left for the next run: {names}",
            soft_wrap=True,
        )
    if abs(math.log(outcome.drift)) > math.log(MOST_DRIFT):
        console.print(
            f"The GPU drifted: the same work took {outcome.drift:.2f} times what it took at first. "
            "Finalists were measured in turn; other times may differ in clock."
        )
    if outcome.table is not None:
        console.print(f"Winners ({outcome.kind}): {outcome.table}", soft_wrap=True)
    where = outcome.store if outcome.store is not None else "in memory only, not saved"
    console.print(f"Trials: {where}", soft_wrap=True)


def _output_line(name: str, size: int, stride: int, pad: int, reach: int) -> str:
    """Return (W - F + 2P)/S + 1 with numbers; a dilated filter covers ``reach`` instead of F."""
    span = size - reach + 2 * pad
    exact = span / stride + 1
    formula = f"({size} - {reach} + 2*{pad})/{stride} + 1"
    if span % stride == 0:
        return f"{name}: {formula} = {exact:g}"
    plain = f"({size}-{reach}{f'+2*{pad}' if pad else ''})/{stride}+1"
    left = span % stride
    lines = "row" if name == "height" else "column"
    side = "bottom" if name == "height" else "right"
    return (
        f"{name}: {plain} = {exact:.2f} does not fit; torch rounds down to {span // stride + 1}, "
        f"and the last {left} {lines}{'s' if left > 1 else ''} at the {side} border "
        f"{'are' if left > 1 else 'is'} dropped"
    )


def layer_lines(geometry: ConvGeometry, dtype: str, target: Target) -> list[str]:
    """Describe a layer in the lecture's terms, and what bounds its time on ``target``."""
    shape = geometry
    reach_h = shape.dilation_h * (shape.filter_h - 1) + 1
    reach_w = shape.dilation_w * (shape.filter_w - 1) + 1
    weights = f"{shape.filter_h}*{shape.filter_w}*{shape.group_in_channels}"
    count = shape.parameters()
    posed = Problem.of(shape, "fprop", dtype)
    arithmetic, least = posed.arithmetic, posed.least_bytes
    intensity = shape.flops / least if least else 0.0
    ridge = target.peak_tflops[arithmetic] * 1e3 / target.bandwidth_gbps
    side = "compute-bound" if intensity >= ridge else "memory-bound"
    limit = 1e3 * target.roofline_seconds(shape.flops, least, arithmetic)
    return [
        f"input volume {shape.input_volume}, {shape.describe()}, batch {shape.batch}, {dtype}",
        f"output volume {shape.output_volume}: (W - F + 2P)/S + 1",
        "  " + _output_line("height", shape.in_h, shape.stride_h, shape.pad_h, reach_h),
        "  " + _output_line("width", shape.in_w, shape.stride_w, shape.pad_w, reach_w),
        f"{count} parameters: ({weights} + 1) * {shape.out_channels}",
        f"{shape.flops:,} FLOPs per pass, at least {least:,} bytes moved",
        f"arithmetic intensity {intensity:.1f} FLOPs a byte; {target.name} ({target.product}) "
        f"turns at {ridge:.0f}: {side}",
        f"roofline limit: {limit:.4f} ms per pass (data-sheet peaks)",
    ]


def print_layer(geometry: ConvGeometry, dtype: str, target: Target, console: Console) -> None:
    """Print ``layer_lines``, and each pass's kernel and tile with the reason for it."""
    for line in layer_lines(geometry, dtype, target):
        console.print(line, markup=False)
    forget()  # a table may have been written since
    console.print(f"what would run on {target.name}: {support(target)}", markup=False)
    for direction in PASSES:
        problem = Problem.of(geometry, direction, dtype)
        choice = choose(problem, target)
        console.print(
            f"  {direction}: {choice.family}, tile {choice.tile} ({choice.ground})",
            markup=False,
        )
    console.print(TILE_LEGEND, markup=False)


def draw_layer(geometry: ConvGeometry, dtype: str, target: Target, path: Path) -> None:
    """Draw the layer's volumes to scale, with the forward pass's tile, to a file."""
    from autotune.picture import layer_picture
    from tconv import svg

    problem = Problem.of(geometry, "fprop", dtype)
    figure = layer_picture(problem, choose(problem, target))
    svg.save(figure, path, f"{geometry.input_volume} to {geometry.output_volume}")


def print_space(jobs: Sequence[Job], target: Target, console: Console) -> None:
    """Print how many tiles remain after each rule, one row per problem."""
    table: Table | None = None
    for job in jobs:
        report = rules_report(job.problem, target)
        if table is None:
            table = Table("layer", "pass", *(name for name, _ in report))
        name = f"{job.layer.suite} {job.layer.name}"
        table.add_row(name, job.problem.direction, *(str(count) for _, count in report))
    wide = console if console.is_terminal else Console(file=console.file, width=FILE_WIDTH)
    wide.print(table)


def replay_table(found: Replay) -> Table:
    """Return a table of the strategy's share of the optimum by number of evaluations."""
    title = f"{found.strategy} on {found.space}: share of the optimum, mean of {found.repeats} runs"
    table = Table(*(f"after {count}" for count in found.optimum_share), title=title)
    table.add_row(*(f"{share:.3f}" for share in found.optimum_share.values()))
    return table


def calibration_table(found: Calibration) -> Table:
    """Return a table of the fit's improvement and its constants."""
    title = (
        f"{found.trials} measured trials of {found.problems} problems; error and rank correlation "
        "on problems that were held out"
    )
    table = Table("constant", "in force", "fitted", title=title)
    for name, before in asdict(found.before).items():
        after = getattr(found.constants, name)
        table.add_row(name, f"{before:.4g}", f"{after:.4g}")
    table.add_section()
    table.add_row("error of ln, 2 in 3", f"{found.error_before:.3f}", f"{found.error_after:.3f}")
    table.add_row("rank correlation", f"{found.rank_before:.3f}", f"{found.rank_after:.3f}")
    table.add_section()
    compared = f"of {found.compared} problems left out, share of the best"
    table.add_row(f"{compared}: the model", "", f"{found.model_share:.3f}")
    table.add_row(f"{compared}: the nearest neighbour", "", f"{found.neighbour_share:.3f}")
    return table


def print_judgement(cells: Sequence[Cell], console: Console) -> None:
    """Print the cost model's accuracy on recorded tiles by cell, then the worst problems."""
    from autotune.judge import PICKS, worst

    title = "best time / best of the model's first k; predicted / recorded by decade of time"
    decades = dict.fromkeys(name for cell in cells for name in cell.ratio_by_decade)
    ordered = sorted(decades, key=lambda name: float(name.split()[0]))
    heads = ("problems", "rank corr.", *(f"top {count}" for count in PICKS), "best / library")
    table = Table("recorded", *heads, *(f"from {name}" for name in ordered), title=title)
    for cell in cells:
        ratios = cell.ratio_by_decade
        table.add_row(
            cell.name,
            str(len(cell.verdicts)),
            f"{cell.spearman:.3f}",
            *(f"{cell.top(place):.3f}" for place in range(len(PICKS))),
            "" if math.isnan(cell.library) else f"{cell.library:.2f}",
            *(f"{ratios[name]:.2f}" if name in ratios else "" for name in ordered),
        )
    wide = console if console.is_terminal else Console(file=console.file, width=FILE_WIDTH)
    wide.print(table)
    table = Table("worst problem", "first tile's share", "first tile", "best tile")
    for each in worst(cells):
        tiles, times = each.recording.tiles, each.recording.milliseconds
        first, best = tiles[each.predicted.argmin()], tiles[times.argmin()]
        name = f"{each.recording.gpu} {each.recording.problem.key}"
        table.add_row(name, f"{each.shares[0]:.3f}", str(first), str(best))
    wide.print(table)


def nvidia_table(cells: Sequence[Cell], choose: Chooser) -> Table:
    """Return a table of our first tile beside NVIDIA's: a row for each cell that timed theirs."""
    table = Table(
        "recorded", "problems", "tconv's first tile", "NVIDIA's", title="share of the best"
    )
    for cell in cells:
        if (found := cell.beside(choose)).problems:
            shares = f"{found.ours:.3f}", f"{found.theirs:.3f}"
            table.add_row(cell.name, str(found.problems), *shares)
    return table


def print_suites(suites: Iterable[Sequence[Layer]], console: Console) -> None:
    """Print every suite's distinct layers."""
    table = Table("suite", "layer", "input volume", "K F S P", "output volume", "layers alike")
    for layers in suites:
        for layer in layers:
            shape = layer.geometry
            table.add_row(
                layer.suite,
                layer.name,
                shape.input_volume,
                shape.describe(),
                shape.output_volume,
                str(layer.repeats),
            )
    console.print(table)
