"""Reports: tables, figures and pages of tuning and measurement results."""

from tconv.extras import extra

with extra("reports"):
    import jinja2  # noqa: F401
    import matplotlib  # noqa: F401
    import pandas  # noqa: F401
    import rich  # noqa: F401
    import typer  # noqa: F401
