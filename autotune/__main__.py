"""``python -m autotune``; workers import this file too, and must find it inert."""

if __name__ == "__main__":
    from autotune.cli import app

    app(prog_name="python -m autotune")
