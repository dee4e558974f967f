"""Choose the default search's settings on all recorded spaces but one, and score them on that one.

    python -m benchmarks.held_out SPACE.csv ... --repeats 40

Each space is held out in turn. Of ``SETTINGS`` the one with the best mean on the other spaces is
chosen: the mean over these spaces and ``FITTED_AT`` evaluations of optimum / best so far. Then it
searches the held-out space, with seeds that took no part in choosing, beside the usual settings.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from autotune.recorded import RecordedSpace, read_space
from autotune.replay import MILESTONES, shares
from autotune.strategies.combined import USUAL, combined
from tconv.command_line import command_line

# The usual settings, and others that differ in what is named.
SETTINGS = {
    "usual": USUAL,
    "3 starts": replace(USUAL, starts=3),
    "12 starts": replace(USUAL, starts=12),
    "no oddness penalty": replace(USUAL, oddness_penalty=1.0),
    "oddness penalty 2": replace(USUAL, oddness_penalty=2.0),
    "oddness penalty 8": replace(USUAL, oddness_penalty=8.0),
    "no trend": replace(USUAL, trends=(0.0,)),
    "trend only": replace(USUAL, trends=(0.3,)),
    "no random picks": replace(USUAL, random_share=0.0),
    "random picks 0.15": replace(USUAL, random_share=0.15),
    "no local picks": replace(USUAL, local_share=0.0),
    "local picks 0.5": replace(USUAL, local_share=0.5),
    "local picks of rank 4": replace(USUAL, local_mean_rank=4.0),
    "elite of 1": replace(USUAL, elite=1),
    "elite of 8": replace(USUAL, elite=8),
    "oddness penalty 2, random picks 0.15": replace(USUAL, oddness_penalty=2.0, random_share=0.15),
    "oddness penalty 2, 12 starts": replace(USUAL, oddness_penalty=2.0, starts=12),
    "oddness penalty 2, local picks 0.5": replace(USUAL, oddness_penalty=2.0, local_share=0.5),
}
FITTED_AT = (25, 50, 100)  # evaluations
FITTING_SEED, SCORING_SEED = 10_000, 20_000  # first of each
COLUMNS = ["stage", "space", "settings", "runs", "evaluations", "optimum_share", "deviation"]
Shares = NDArray[np.float64]


@lru_cache(maxsize=8)
def _space(path: Path) -> RecordedSpace:
    return read_space(path)


def _run(settings: str, path: Path, budget: int, seed: int) -> list[float]:
    return shares(_space(path), partial(combined, settings=SETTINGS[settings]), budget, seed)


def searched(
    pairs: Sequence[tuple[str, Path]],
    budget: int,
    seeds: range,
    pool: ProcessPoolExecutor,
    console: Console,
) -> dict[tuple[str, Path], Shares]:
    """Return for each pair of settings and space the shares by run and evaluation."""
    posed = {pair: [pool.submit(_run, *pair, budget, seed) for seed in seeds] for pair in pairs}
    return {
        pair: np.array([each.result() for each in posed[pair]])
        for pair in track(pairs, f"{budget} evaluations", console=console)
    }


def fitness(runs: Shares) -> float:
    """The mean share over runs and ``FITTED_AT``."""
    return float(runs[:, [count - 1 for count in FITTED_AT if count <= runs.shape[1]]].mean())


def chosen_for(held_out: Path, fits: dict[tuple[str, Path], Shares]) -> str:
    """The settings that do best on the other spaces; the earlier of equals."""
    others = {path for _, path in fits} - {held_out}

    def mean(name: str) -> float:
        return float(np.mean([fitness(fits[name, path]) for path in others]))

    return max(dict.fromkeys(name for name, _ in fits), key=mean)


def rows(stage: str, found: dict[tuple[str, Path], Shares]) -> list[tuple[object, ...]]:
    """Return table rows with the mean and the deviation over runs."""
    return [
        (stage, path.name, name, len(runs), count, round(float(runs[:, count - 1].mean()), 4),
         round(float(runs[:, count - 1].std()), 4))
        for (name, path), runs in found.items() for count in MILESTONES if count <= runs.shape[1]
    ]  # fmt: skip


def page(table: pd.DataFrame, chosen: dict[str, str]) -> str:
    """Return the tables as Markdown."""
    scored = table[table["stage"] == "held out"]
    counts = sorted(scored["evaluations"].unique())
    text = [
        "# The default search's settings on a space that took no part in choosing them",
        "Best found after so many distinct configurations, as a share of the optimum: mean of the"
        " runs +- standard deviation over them. Reproduced by"
        " `python -m benchmarks.held_out SPACE.csv ...`.",
        f"| held out | settings | runs | {' | '.join(map(str, counts))} |\n"
        + "|---" * (len(counts) + 3) + "|",
    ]  # fmt: skip
    for space, name in chosen.items():
        for settings, note in {"usual": "", name: " (chosen)"}.items():
            part = scored[(scored["space"] == space) & (scored["settings"] == settings)]
            part = part.sort_values("evaluations")
            values = zip(part["optimum_share"], part["deviation"], strict=True)
            cells = " | ".join(f"{mean:.3f} +- {off:.3f}" for mean, off in values)
            text[-1] += f"\n| {space} | {settings}{note} | {part['runs'].iloc[0]} | {cells} |"
    fits = table[(table["stage"] == "fitted") & table["evaluations"].isin(FITTED_AT)]
    means = fits.groupby(["settings", "space"], sort=False)["optimum_share"].mean().unstack()
    text += [
        "## What was chosen from",
        f"Mean over {', '.join(map(str, FITTED_AT))} evaluations, with other seeds.",
        f"| settings | {' | '.join(means.columns)} |\n" + "|---" * (len(means.columns) + 1) + "|",
    ]
    for name, values in means.iterrows():
        text[-1] += f"\n| {name} | {' | '.join(f'{value:.3f}' for value in values)} |"
    return "\n\n".join(text) + "\n"


def main(
    spaces: Annotated[list[Path], typer.Argument(help="CSVs, at least two.")],
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each kind to average.")] = 40,
    evaluations: Annotated[int, typer.Option(min=1, help="Evaluations of a scored run.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path(
        "reports/published/search"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.")] = None,
) -> None:
    """Write ``held_out.md`` and ``held_out.csv``: each space under settings chosen without it."""
    if len(spaces) < 2:
        raise typer.BadParameter("one space is held out: name at least two")
    console = Console()
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        pairs = [(name, path) for name in SETTINGS for path in spaces]
        fitting = range(FITTING_SEED, FITTING_SEED + repeats)
        fits = searched(pairs, min(evaluations, max(FITTED_AT)), fitting, pool, console)
        chosen = {path: chosen_for(path, fits) for path in spaces}
        pairs = [(name, path) for path in spaces for name in dict.fromkeys(["usual", chosen[path]])]
        scoring = range(SCORING_SEED, SCORING_SEED + repeats)
        scores = searched(pairs, evaluations, scoring, pool, console)
    table = pd.DataFrame(rows("fitted", fits) + rows("held out", scores), columns=COLUMNS)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "held_out.csv", index=False)
    text = page(table, {path.name: name for path, name in chosen.items()})
    (out / "held_out.md").write_text(text)
    console.print(text, markup=False)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
