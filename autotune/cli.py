"""The command line: tune, describe layers and spaces, replay searches, exchange results."""

from __future__ import annotations

from autotune.commands import cost_model, exchange, layers
from tconv.extras import extra

with extra("tune"):
    import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
COMMANDS = {  # in the order of the help
    "tune": layers.tune,
    "emulate": layers.emulate,
    "compile": layers.compile_,
    "layer": layers.layer,
    "space": layers.space,
    "replay": exchange.replay,
    "judge": cost_model.judge,
    "export": exchange.export,
    "import": exchange.import_,
    "record": exchange.record,
    "calibrate": cost_model.calibrate,
    "suites": layers.suites,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
