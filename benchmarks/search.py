"""Compare our search strategies with Kernel Tuner's and Optuna's on the same recorded spaces.

    nox -s bench_search -- SPACE.csv ... --repeats 40

Each run tries a number of distinct configurations; after each, the best so far is recorded as a
share of the optimum. Without a space, the spaces of a few layers are used with the cost model's
times, and labelled predicted. Kernel Tuner runs in its own simulation mode. If an Optuna sampler
proposes a configuration outside the space or one tried before, it may propose another at no cost.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from autotune.recorded import TIME, RecordedSpace, SpaceError, read_space
from autotune.replay import MILESTONES, shares
from autotune.strategies import STRATEGIES
from tconv.command_line import command_line

COLUMNS = ["space", "contender", "runs", "evaluations", "optimum_share", "deviation"]
Shares = NDArray[np.float64]
OURS = tuple(name for name in STRATEGIES if name not in ("ranked", "corrected", "exhaustive"))
KERNEL_TUNER = ("random_sample", "genetic_algorithm", "diff_evo", "pso", "simulated_annealing",
                "firefly_algorithm", "adaptive_tabu_greywolf", "hybrid_vndx", "greedy_ils",
                "greedy_mls", "mls", "dual_annealing", "basinhopping", "bayes_opt")  # fmt: skip
OPTUNA = ("TPESampler", "RandomSampler")
ASKED_AGAIN = 50  # limit on an Optuna sampler's proposals, in budgets
PREDICTED_LAYERS = (("vgg16", "features.10", "fprop"), ("resnet50", "layer2.0.conv2", "wgrad"))


@dataclass(frozen=True)
class Contender:
    """A strategy and the package it belongs to."""

    package: str
    strategy: str

    @property
    def name(self) -> str:
        return f"{self.package} {self.strategy}"


@lru_cache(maxsize=4)
def _space(path: Path) -> RecordedSpace:
    return read_space(path)


def best_so_far(times: Iterable[float], optimum: float, budget: int) -> list[float]:
    """Return the share of the optimum after each evaluation; an early end keeps its last share."""
    padded = (list(times) + [math.nan] * budget)[:budget]
    best = np.fmin.accumulate(np.where(np.isnan(padded), np.inf, padded))
    return [float(optimum / time) for time in best]


def run(contender: Contender, path: Path, budget: int, seed: int) -> list[float]:
    """Return one run's shares of the optimum."""
    how = {"tconv": _ours, "Kernel Tuner": _kernel_tuner, "Optuna": _optuna}[contender.package]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return how(path, contender.strategy, budget, seed)


def _ours(path: Path, strategy: str, budget: int, seed: int) -> list[float]:
    return shares(_space(path), STRATEGIES[strategy], budget, seed)


@lru_cache(maxsize=4)
def _cache_file(path: Path) -> Path:
    """Write the space as a cache file of Kernel Tuner and return its path."""
    recorded = _space(path)
    names, values = recorded.space.names, recorded.space.values
    cache = {}
    for row, time in zip(_plain(values), recorded.times, strict=True):
        entry: dict[str, Any] = dict(zip(names, row, strict=True))
        entry[TIME] = "RuntimeFailedConfig" if math.isnan(time) else float(time)
        cache[",".join(map(str, row))] = entry
    levels = {name: sorted({row[i] for row in _plain(values)}) for i, name in enumerate(names)}
    content = {"device_name": "recorded", "kernel_name": "recorded", "problem_size": 1,
               "tune_params_keys": list(names), "tune_params": levels, "objective": TIME,
               "cache": cache}  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    file = folder / "cache.json"
    file.write_text(json.dumps(content))
    return file


def _plain(values: Any) -> list[tuple[Any, ...]]:
    """Return the rows with whole numbers as integers, as Kernel Tuner writes its keys."""
    return [tuple(int(v) if float(v).is_integer() else float(v) for v in row) for row in values]


def _kernel_tuner(path: Path, strategy: str, budget: int, seed: int) -> list[float]:
    import random

    from kernel_tuner import tune_kernel

    recorded, file = _space(path), _cache_file(path)
    levels = json.loads(file.read_text())["tune_params"]
    rows = set(_plain(recorded.space.values))

    def recorded_configuration(configuration: dict[str, Any]) -> bool:
        return tuple(configuration[name] for name in recorded.space.names) in rows

    random.seed(seed)
    np.random.seed(seed)
    found, _ = tune_kernel(
        "recorded", "__global__ void recorded() {}", 1, [], levels, lang="CUDA",
        restrictions=recorded_configuration, strategy=strategy,
        strategy_options={"max_fevals": budget}, simulation_mode=True, cache=str(file),
        block_size_names=list(recorded.space.names[:1]), quiet=True, seed=seed,
    )  # fmt: skip
    times: dict[tuple[Any, ...], float] = {}
    for result in found:
        row = tuple(result[name] for name in recorded.space.names)
        time = result.get(TIME)
        times.setdefault(row, float(time) if isinstance(time, (int, float)) else math.nan)
    return best_so_far(times.values(), recorded.optimum, budget)


def _optuna(path: Path, strategy: str, budget: int, seed: int) -> list[float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recorded = _space(path)
    names = recorded.space.names
    times = dict(zip(_plain(recorded.space.values), recorded.times, strict=True))
    levels = {name: sorted({row[i] for row in times}) for i, name in enumerate(names)}
    how = {"multivariate": True} if strategy == "TPESampler" else {}
    study = optuna.create_study(sampler=getattr(optuna.samplers, strategy)(seed=seed, **how))
    tried: dict[tuple[Any, ...], float] = {}
    for _ in range(ASKED_AGAIN * budget):
        if len(tried) == budget:
            break
        trial = study.ask()
        row = tuple(trial.suggest_categorical(name, levels[name]) for name in names)
        time = times.get(row, math.nan)
        if row in times:
            tried.setdefault(row, time)
        if math.isnan(time):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, time)
    return best_so_far(tried.values(), recorded.optimum, budget)


def predicted_spaces(folder: Path) -> list[Path]:
    """Write the spaces of a few layers with the cost model's times for sm_90, named predicted."""
    from autotune.ship import record_spaces
    from autotune.suites import suite
    from autotune.trial import Trial
    from tconv.cost.model import predict
    from tconv.cost.space import candidates
    from tconv.problem import Problem
    from tconv.target import TARGETS

    target, written = TARGETS["sm_90"], []
    for network, name, direction in PREDICTED_LAYERS:
        (layer,) = (each for each in suite(network) if each.name == name)
        problem = Problem(layer.geometry, direction)  # type: ignore[arg-type]
        trials = [
            Trial(target.name, problem, choice.family, choice.tile, "predicted", "ok", time)
            for choice in candidates(problem, target)
            if math.isfinite(time := predict(problem, choice, target).milliseconds)
        ]
        (path,) = record_spaces(trials, folder)
        written.append(path.rename(folder / f"predicted_{network}_{name}_{direction}.csv"))
    return written


def contenders(packages: Sequence[str]) -> list[Contender]:
    strategies = {"tconv": OURS, "Kernel Tuner": KERNEL_TUNER, "Optuna": OPTUNA}
    return [Contender(each, name) for each in packages for name in strategies[each]]


def _result(found: Any) -> Any:
    try:
        return found.result()
    except Exception as error:  # a failing strategy must not stop the others
        return f"{type(error).__name__}: {error}"


def draw(table: pd.DataFrame, path: Path, space: str) -> None:
    """Plot the mean share of the optimum against evaluations, ours in bold."""
    from matplotlib.figure import Figure

    from tconv import svg

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    lines = itertools.cycle(["-", "--", ":", "-."])
    for name, group in table.groupby("contender", sort=False):
        mine = str(name).startswith("tconv")
        axes.plot(group["evaluations"], group["optimum_share"], next(lines), label=str(name),
                  linewidth=2.2 if mine else 1.0)  # fmt: skip
    axes.set(xscale="log", xlabel="distinct configurations tried", ylim=(0.4, 1.01), title=space)
    axes.set_ylabel("best so far, share of the optimum (mean of runs)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, loc="lower right")
    svg.save(figure, path, f"Convergence on {space}")


def compare(
    paths: Sequence[Path], who: Sequence[Contender], budget: int, repeats: int, console: Console
) -> pd.DataFrame:
    """Return a row for each space, contender and number of evaluations."""
    rows, work = [], [(path, each) for path in paths for each in who]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        posed = {
            (path, each): [pool.submit(partial(run, each, path, budget, seed))
                           for seed in range(repeats)]
            for path, each in work
        }  # fmt: skip
        for path, each in track(work, "searching", console=console):
            done = [_result(future) for future in posed[path, each]]
            if failed := next((result for result in done if isinstance(result, str)), None):
                console.print(f"{each.name} on {path.name}: {failed}", markup=False)
                continue
            rows += summary(path.name, each.name, np.array(done))
    return pd.DataFrame(rows, columns=COLUMNS)


def summary(space: str, contender: str, runs: Shares) -> list[tuple[object, ...]]:
    """Return table rows with mean and deviation of ``runs`` (runs, evaluations) by milestone."""
    budget = runs.shape[1]
    counts = [count for count in MILESTONES if count <= budget] or [budget]
    return [
        (space, contender, len(runs), count, round(float(part.mean()), 4),
         round(float(part.std()), 4))
        for count, part in ((count, runs[:, count - 1]) for count in counts)
    ]  # fmt: skip


def publish(found: pd.DataFrame, out: Path, console: Console, note: str = "") -> None:
    """Write ``index.md``, ``shares.csv`` and a plot for each space into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    found.to_csv(out / "shares.csv", index=False)
    title = "# Search strategies compared\n\nBest found after so many distinct configurations, "
    text = [
        title + "as a share of the optimum: mean of the runs +- standard deviation over them.\n"
    ]
    text += [note] if note else []
    for space, group in found.groupby("space", sort=False):
        counts = sorted(group["evaluations"].unique())
        shown = Table("strategy", "runs", *map(str, counts), title=str(space))
        text.append(f"## {space}\n\n| strategy | runs | {' | '.join(map(str, counts))} |")
        text.append("|---" * (len(counts) + 2) + "|")
        last = group[group["evaluations"] == counts[-1]].sort_values(
            "optimum_share", ascending=False
        )
        for name in last["contender"]:
            part = group[group["contender"] == name].sort_values("evaluations")
            shares = zip(part["optimum_share"], part["deviation"], strict=True)
            cells = [str(part["runs"].iloc[0])]
            cells += [f"{mean:.3f} +- {off:.3f}" for mean, off in shares]
            shown.add_row(str(name), *cells)
            text.append(f"| {name} | {' | '.join(cells)} |")
        console.print(shown)
        draw(group, out / f"{Path(str(space)).stem}.svg", str(space))
        text.append(f"\n![convergence]({Path(str(space)).stem}.svg)\n")
    (out / "index.md").write_text("\n".join(text))
    console.print(f"table and plots: {out}")


def main(
    spaces: Annotated[list[Path] | None, typer.Argument(help="CSVs; else predicted ones.")] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Evaluations per run.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Runs to average.")] = 40,
    package: Annotated[list[str] | None, typer.Option(help="tconv, Kernel Tuner, Optuna.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the plots.")] = Path(
        "reports/published/search"
    ),
) -> None:
    """Compare search strategies: print and write a table, and a convergence plot for each space."""
    console = Console()
    packages = package or ["tconv", "Kernel Tuner", "Optuna"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            paths = list(spaces or predicted_spaces(Path(folder)))
            for path in paths:
                read_space(path)
            who = contenders(packages)
        except (SpaceError, KeyError) as error:
            console.print(f"error: {error}", markup=False)
            raise typer.Exit(2) from error
        found = compare(paths, who, evaluations, repeats, console)
    if found.empty:
        raise typer.Exit(1)
    publish(found, out, console)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
