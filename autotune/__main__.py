"""Entry point of ``python -m autotune``; does nothing when a worker process imports it."""

if __name__ == "__main__":
    from tconv.command_line import command_line

    with command_line():
        try:
            from autotune.cli import app
        except ModuleNotFoundError as error:  # the message names the missing extra
            raise SystemExit(f"error: {error}") from None

        app(prog_name="python -m autotune")
