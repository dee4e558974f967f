"""Commands on the cost model: judge it by recorded times, and refit its constants."""

from __future__ import annotations

from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from autotune import show
from autotune.commands.options import EXIT_FAILED, StoredOption, fail, stored_trials
from autotune.tune import local_gpu
from tconv.cost.constants import user_constants, write_calibrated
from tconv.extras import extra
from tconv.target import TARGETS
from tconv.winners import TableError

with extra("tune"):
    import typer
    from rich.console import Console

if TYPE_CHECKING:
    from autotune.calibrate import Calibration


def judge(
    tables: Annotated[
        list[Path], typer.Argument(help="Recorded tables, CSV or CSV.gz, or folders of them.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    unseen: Annotated[
        bool, typer.Option("--held-out", help="Only problems that no constant was fitted to.")
    ] = False,
    nvidia: Annotated[
        bool, typer.Option("--nvidia", help="Also judge the choice of NVIDIA's heuristics.")
    ] = False,
    hold: Annotated[
        Path | None, typer.Option("--hold", help="Fail below the scores published in this file.")
    ] = None,
) -> None:
    """Judge the cost model by recorded kernel times of an A100, an H100 or an RTX 3070."""
    from autotune import nvidia as theirs
    from autotune.calibrate import held_out
    from autotune.judge import below_published, read_published
    from autotune.judge import judge as run
    from autotune.recordings import RecordingError, read_recordings, tables_of

    try:
        published = {} if hold is None else read_published(hold)
        recordings = read_recordings(tables_of(tables))
    except (RecordingError, ValueError) as error:
        fail(str(error))
    cells = run(held_out(recordings) if unseen else recordings)
    if not cells:
        fail("no problem in these tables has enough timed tiles")
    console = Console(soft_wrap=True)
    if json:
        typer.echo(dumps({cell.name: cell.as_json() for cell in cells}))
    else:
        show.print_judgement(cells, console)
    if nvidia and not theirs.available():
        missing = "nvidia-matmul-heuristics is missing, so its column is left out"
        typer.echo(f"{missing}: {theirs.INSTALL}", err=True)
    elif nvidia and not json:
        console.print(show.nvidia_table(cells, theirs.first_choice))
    if worse := below_published(cells, published):
        fail("\n".join(["worse than published:", *worse]), EXIT_FAILED)


def calibrate(
    target: StoredOption = None,
    tables: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Fit to recorded tables of one GPU instead."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="File; default: the user's own.")] = None,
    source: Annotated[str, typer.Option("--source", help="Citation for the tables.")] = "",
) -> None:
    """Refit the cost model's constants to times measured here or recorded by others."""
    from autotune.calibrate import CalibrationError

    try:
        found, gpu = _calibration_from(tables, target) if tables else _calibration(target)
    except CalibrationError as error:
        fail(str(error))
    console = Console(soft_wrap=True)
    console.print(show.calibration_table(found))
    if not found.better:
        console.print("The fit predicts held-out problems no better; the constants are unchanged.")
    path = to or user_constants(gpu)
    try:
        write_calibrated(path, gpu, replace(found.calibrated, source=source))
    except (TableError, OSError) as error:
        fail(f"the constants were not written: {error}")
    console.print(f"Untuned layers are served by the {found.untuned}. Constants: {path}")


def _calibration(target: str | None) -> tuple[Calibration, str]:
    """Return a calibration from the store's measured trials, and the GPU's name."""
    from autotune.calibrate import calibrate as run

    here = local_gpu()
    if target is not None and target in TARGETS:
        gpu = TARGETS[target]
    elif here is not None and target in (None, here[0].name):
        gpu = here[0]
    else:
        fail(f"--target must name the GPU of this machine, or one of {', '.join(TARGETS)}")
    return run(stored_trials(gpu.name, "measured"), gpu), gpu.name


def _calibration_from(tables: list[Path], target: str | None) -> tuple[Calibration, str]:
    """Return a calibration from recorded tables; ``target`` selects a GPU if they hold several."""
    from autotune.calibrate import calibrate_from
    from autotune.recordings import RECORDED, RecordingError, read_recordings, tables_of

    try:
        recordings = read_recordings(tables_of(tables))
    except RecordingError as error:
        fail(str(error))
    known = {gpu.name for name, gpu in RECORDED.items() if any(r.gpu == name for r in recordings)}
    if target is None and len(known) != 1:
        fail(f"--target: these tables are of {', '.join(sorted(known)) or 'no GPU'}; name one")
    wanted = target or known.pop()
    return calibrate_from([each for each in recordings if each.target.name == wanted]), wanted
