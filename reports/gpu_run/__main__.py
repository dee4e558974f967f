"""Entry point of ``python -m reports.gpu_run --minutes 9 --out DIR``; see the package.

The parts run in a child process. It exits if it loses its GPU context, and is killed if it hangs in
a part that no time limit stops. The parent then starts the next child, which continues.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from tconv.command_line import command_line
from tconv.extras import extra

with extra("reports"):
    import typer
    from rich.console import Console

WIDTH = 150  # columns of tables written to a file
INSIDE = "TCONV_GPU_RUN_INSIDE"  # set in the child process that runs the parts
GRACE = 20.0  # seconds past the run's time, for writing results
MOST_STARTS = 20
ENDS = (0, 1, 2)  # exit codes of a child that finished


def main(
    out: Annotated[Path, typer.Option(help="folder for all results; a run continues from it")],
    minutes: Annotated[float, typer.Option(min=0.1, help="stop after this many")] = 9.0,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="small layers on a CPU, interpreted or emulated")
    ] = False,
    again: Annotated[
        list[str] | None, typer.Option(help="steps to repeat: tests, tune, bench, ...")
    ] = None,
) -> None:
    """Run tests, tuning and the bench beside cuDNN on this machine's GPU, resuming earlier runs."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["TCONV_HOME"] = str(out)  # trials, winners and rows are stored there too
    if rehearse and not os.environ.get("TCONV_EMULATE"):
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    if os.environ.get(INSIDE):
        run(out, minutes, rehearse, again or [])
        return
    options = ["--rehearse"] * rehearse

    def command(left: float, first: bool) -> list[str]:
        steps = [word for step in again or [] for word in ("--again", step)] if first else []
        return [sys.executable, "-m", "reports.gpu_run", "--out", str(out),
                "--minutes", str(max(0.1, left / 60)), *options, *steps]  # fmt: skip

    raise typer.Exit(supervise(command, out, 60 * minutes))


def supervise(command: Callable[[float, bool], Sequence[str]], out: Path, seconds: float) -> int:
    """Run ``command(seconds left, whether first)`` until one finishes; return its exit code.

    A part that ended its process is recorded as failed. If the process ended itself because its GPU
    context was lost, the part has already recorded that.
    """
    from autotune.deadline import Deadline
    from autotune.on_gpu import FAULT
    from reports.gpu_run.state import Part, State
    from tconv.source import source_hash

    deadline = Deadline(seconds)
    for start in range(MOST_STARTS):
        environment = {**os.environ, INSIDE: "1"}
        process = subprocess.Popen(command(deadline.left, start == 0), env=environment,
                                   start_new_session=True)  # fmt: skip
        code = None
        try:
            code = process.wait(deadline.left + GRACE)
        except subprocess.TimeoutExpired:
            pass  # the child hangs
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code in ENDS:
            return code
        state = State.read(out / "run.json", source_hash())
        if code != FAULT and state.at_work is not None:
            part = Part("failed", 0.0, f"the process ended with exit code {code} in this part")
            if code is None:
                part = Part("unfinished", 0.0, "the process hung in this part")
            state.keep(*state.at_work, part)
        if code is None or not deadline.left:
            return 1
    return 1


def run(out: Path, minutes: float, rehearse: bool, again: Sequence[str]) -> None:
    """Run all parts that are not done yet in this process."""
    from autotune.deadline import Deadline
    from autotune.evaluate import DeviceLostError
    from autotune.on_gpu import FAULT
    from autotune.trial_store import Store
    from reports.gpu_run.state import State
    from reports.gpu_run.steps import CannotError, Context, here, perform, tasks, tests_of
    from reports.gpu_run.take_home import summary, tables_of, take_home
    from tconv.source import source_hash

    plain = Console(soft_wrap=True, highlight=False)
    console = plain if plain.is_terminal else Console(width=WIDTH, soft_wrap=True, highlight=False)
    deadline = Deadline(60 * minutes)
    try:
        device, target = here(rehearse)
        state = State.read(out / "run.json", source_hash())
    except (CannotError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    for step in again:
        state.parts.pop(step, None)
    if "tests" in again:
        shutil.rmtree(tests_of(out, state), ignore_errors=True)

    def tell(line: str) -> None:
        console.print(line, markup=False)

    context = Context(out, state, deadline, device, target, rehearse, tell)
    try:
        for task in tasks(rehearse):
            perform(task, context)
    except DeviceLostError as error:
        tell(f"{error}; a fresh process goes on")
        sys.stdout.flush()
        os._exit(FAULT)  # the GPU libraries cannot be shut down cleanly
    for line in take_home(context):
        tell(line)
    with Store() as store:
        tables = tables_of(context, list(store.trials(target.name, "measured")))
    summary(state, tables, console)
    if context.left:
        tell(f"{len(context.left)} parts are left for the next run: {', '.join(context.left)}")
    if any(part.over and part.outcome != "cannot" for _, part in state.troubles()):
        raise typer.Exit(1)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
