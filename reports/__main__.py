"""Entry point of ``python -m reports``."""

from tconv.command_line import command_line
from tconv.extras import extra

with command_line():
    try:
        with extra("reports"):  # before the tuner's command line, which names its own extra
            import attrs  # noqa: F401
            import typer  # noqa: F401
        from reports.cli import app
    except ModuleNotFoundError as error:  # the message names the missing extra
        raise SystemExit(f"error: {error}") from None

    app(prog_name="python -m reports")
