"""The cost model's predictions for a run's layers, compared with later measurements.

    python -m reports.gpu_run.predictions --out DIR

writes the predictions for an H100 and an H200 into DIR, on any machine. A GPU run with the same DIR
does so before it measures anything. A prediction is the model's best time of an untuned layer; the
later measurement is of the tuned winner. An existing file is kept: it was written earlier.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from reports.bench.cases import ConvCase, cases
from reports.row_files import write_rows
from reports.rows import BY_TYPE, LayerRow, rounded, tile_text
from tconv.aot.build import ENVIRONMENT
from tconv.command_line import command_line
from tconv.cost.model import predict
from tconv.extras import extra
from tconv.geometry import PASSES, Pass
from tconv.select import heuristic
from tconv.source import source_hash
from tconv.target import TARGETS, Target, bandwidth_of
from tconv_workers import Failure, Task, Workers

with extra("reports"):
    import attrs
    import pandas as pd
    import typer

# The suites that a run tunes and measures: those of the goals, then some in other arithmetics.
TUNED = (
    ("vgg16", "float16"), ("lenet5", "float16"), ("resnet50", "float16"),
    ("depthwise", "float16"), ("grouped", "float16"), ("mobilenet_v2", "float16"),
    ("alexnet", "float16"), ("vgg16", "tf32x3"), ("vgg16", "bfloat16"), ("resnet50", "tf32x3"),
    ("resnet50", "bfloat16"), ("vgg16", "tf32"),
)  # fmt: skip
GPUS = {"nvidia-h100-80gb-hbm3": "NVIDIA H100 80GB HBM3", "nvidia-h200": "NVIDIA H200"}
SECONDS = 300.0  # limit for one suite's predictions


@attrs.frozen(field_transformer=BY_TYPE)
class Predicted:
    """The model's prediction for one pass of one layer, in milliseconds."""

    suite: str
    layer: str
    direction: Pass  # column "pass"
    dtype: str
    batch: int
    family: str
    tile: str = attrs.field(converter=tile_text)
    predicted_ms: float

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return self.suite, self.layer, self.direction, self.dtype, self.batch


@dataclass(frozen=True)
class Compared:
    """A prediction and the later measurement; ``ratio`` is measured over predicted."""

    predicted: Predicted
    measured_ms: float

    @property
    def ratio(self) -> float:
        return self.measured_ms / self.predicted.predicted_ms


def target_named(name: str) -> Target:
    """Return a GPU of ``GPUS`` as a target: Hopper's architecture with its own memory."""
    product, nearest = GPUS[name], TARGETS["sm_90"]
    return replace(
        nearest, name=name, product=product, bandwidth_gbps=bandwidth_of(product, nearest)
    )


def predictions_of(
    suite: str, dtype: str, target: Target, batch: int = 64, most: int | None = None
) -> list[Predicted]:
    """Predict all passes of a suite's layers, or the first ``most`` of them."""
    found = []
    posed = [case for case in cases([suite], PASSES, [dtype], batch)
             if isinstance(case, ConvCase) and not case.epilogue]  # fmt: skip
    for case in posed[:most]:
        choice = heuristic(case.problem, target)
        milliseconds = rounded(predict(case.problem, choice, target).milliseconds)
        assert milliseconds is not None
        row = (case.layer, case.problem.direction, case.problem.arithmetic, batch)
        found.append(Predicted(suite, *row, choice.family, str(choice.tile), milliseconds))
    return found


def file_of(out: Path, name: str) -> Path:
    """Return the path of the predictions for one GPU, which contains the kernels' version."""
    return out / "predicted" / source_hash() / f"{name}.csv"


def write_predictions(
    out: Path, names: Iterable[str] = tuple(GPUS), work: Sequence[tuple[str, str]] = TUNED,
    most: int | None = None,
) -> list[Path]:  # fmt: skip
    """Write the predictions for each GPU, in worker processes; existing files are kept.

    Raises:
        RuntimeError: if a prediction fails.
    """
    files = [file_of(out, name) for name in names]
    lacking = [name for name, file in zip(names, files, strict=True) if not file.exists()]
    tasks = [Task((name, part), predictions_of, (*part, target_named(name), 64, most))
             for name in lacking for part in work]  # fmt: skip
    rows: dict[str, dict[tuple[str, str], list[Predicted]]] = {name: {} for name in lacking}
    with Workers(min(len(tasks), os.cpu_count() or 1) or 1, ENVIRONMENT) as workers:
        for task, result, _ in workers.run(tasks, SECONDS):
            if isinstance(result, Failure):
                raise RuntimeError(f"{task.key} could not be predicted: {result.detail}")
            assert isinstance(task.key, tuple)
            rows[task.key[0]][task.key[1]] = result
    for name in lacking:
        path = file_of(out, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, Predicted, (row for part in work for row in rows[name][part]))
    return files


def compared(predicted: Iterable[Predicted], rows: Iterable[LayerRow]) -> list[Compared]:
    """Pair each prediction with the measurement of the same layer and pass."""
    measured = {
        (row.suite, row.layer, row.direction, row.dtype, row.batch): row.tconv_ms
        for row in rows
        if row.kind == "measured" and row.tconv_ms and not row.epilogue
    }
    return [Compared(each, measured[each.key]) for each in predicted if each.key in measured]


def page(found: Sequence[Compared], product: str) -> str:
    """Return the comparison in Markdown: one line per pass, then one per layer and pass."""
    lines = [
        f"# Predicted before, measured after: {product}", "",
        "Predicted: the cost model's best tile of a layer that was never tuned, written down "
        "before the first measurement. Measured: the tuned winner.", "",
        "| pass | layers | measured / predicted, geometric mean | spread, factor | "
        "rank correlation |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for direction in PASSES:
        held = [each for each in found if each.predicted.direction == direction]
        if held:
            lines.append(f"| {direction} | {len(held)} | {_summary(held)} |")
    lines += ["", "| suite | layer | pass | dtype | predicted ms | measured ms | ratio |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    for each in found:
        of = each.predicted
        words = (of.suite, of.layer, of.direction, of.dtype, f"{of.predicted_ms:.4g}",
                 f"{each.measured_ms:.4g}", f"{each.ratio:.2f}")  # fmt: skip
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join([*lines, ""])


def _summary(held: Sequence[Compared]) -> str:
    """Return the ratios' geometric mean and geometric standard deviation, and Spearman's rho."""
    logs = [math.log(each.ratio) for each in held]
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / len(logs))
    if len(held) < 3:
        return f"{math.exp(mean):.2f} | {math.exp(spread):.2f} | too few"
    times = pd.DataFrame([(e.predicted.predicted_ms, e.measured_ms) for e in held]).rank()
    return f"{math.exp(mean):.2f} | {math.exp(spread):.2f} | {times[0].corr(times[1]):.3f}"


def main(out: Annotated[Path, typer.Option(help="folder of the GPU run")]) -> None:
    """Write the cost model's predictions for an H100 and an H200."""
    for path in write_predictions(out.resolve()):
        typer.echo(f"predicted: {path}")


if __name__ == "__main__":
    with command_line():
        typer.run(main)
