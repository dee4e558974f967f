"""Entry point of ``python -m reports``."""

from tconv.command_line import command_line

with command_line():
    try:
        from reports.cli import app
    except ModuleNotFoundError as error:  # the message names the missing extra
        raise SystemExit(f"error: {error}") from None

    app(prog_name="python -m reports")
