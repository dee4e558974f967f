"""Entry point of ``python -m reports``."""

try:
    from reports.cli import app
except ModuleNotFoundError as error:  # the message names the missing extra
    raise SystemExit(f"error: {error}") from None

app(prog_name="python -m reports")
