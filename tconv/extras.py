"""Optional dependencies: a failing import names the extra that installs the package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

# Packages whose import name differs from the package name.
PACKAGES = {"PIL": "Pillow", "sklearn": "scikit-learn"}
OPTIONAL = {"PIL", "attrs", "jinja2", "matplotlib", "pandas", "rich", "sklearn", "typer"}


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Import packages that ``pip install 'tconv[name]'`` installs.

    Raises:
        ModuleNotFoundError: naming the missing package and the extra.

    >>> with extra("reports"):
    ...     raise ModuleNotFoundError("No module named 'PIL'", name="PIL")
    Traceback (most recent call last):
        ...
    ModuleNotFoundError: Pillow is not installed: python -m pip install 'tconv[reports]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in OPTIONAL or "pip install" in str(error):
            raise
        package = PACKAGES.get(module, module)
        words = f"{package} is not installed: python -m pip install 'tconv[{name}]'"
        raise ModuleNotFoundError(words, name=error.name) from error
