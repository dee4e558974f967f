"""``python -m autotune``; workers import this file too, and must find it inert."""

if __name__ == "__main__":
    from tconv.command_line import command_line

    with command_line():
        try:
            from autotune.cli import app
        except ModuleNotFoundError as error:  # it names the extra
            raise SystemExit(f"error: {error}") from None

        app(prog_name="python -m autotune")
