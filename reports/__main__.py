"""``python -m reports``."""

try:
    from reports.cli import app
except ModuleNotFoundError as error:  # it names the extra
    raise SystemExit(f"error: {error}") from None

app(prog_name="python -m reports")
