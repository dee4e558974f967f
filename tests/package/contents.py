"""Compare built packages with the tree: ``python tests/package/contents.py DIST TREE_WHEELS``.

DIST holds the sdist and the wheel built from it, TREE_WHEELS the wheel built from the tree.
"""

from __future__ import annotations

import sys
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with ``build``

ROOT = Path(__file__).parents[2]
PACKAGES = ("tconv", "tconv_workers", "autotune", "reports")
LEFT_OUT = (ROOT / "reports" / "published",)  # made by the package, not part of it
MUST = ("tconv/tuned/README.md", "tconv/models/pictures/house.png", "reports/templates/style.css",
        "tconv/py.typed", "autotune/py.typed", "reports/py.typed")  # fmt: skip
OWN = ("RECORD", "WHEEL")  # these have the builder's version and hashes


def wheel_in(folder: Path) -> dict[str, bytes]:
    """Return the files of the only wheel in ``folder``."""
    (path,) = folder.glob("tconv-*.whl")
    with ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def of_tree() -> dict[str, bytes]:
    """Return all files of the packages in the tree."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not any(folder in path.parents for folder in LEFT_OUT)
    }


def differences(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """Return a line for each file that is missing, extra or different."""
    lines = [f"lacks {name}" for name in wanted.keys() - found.keys()]
    lines += [f"holds {name}" for name in found.keys() - wanted.keys()]
    both = found.keys() & wanted.keys()
    return sorted(lines + [f"changed {name}" for name in both if found[name] != wanted[name]])


def main(dist: Path, tree: Path) -> list[str]:
    """Return all differences as lines."""
    wheel, direct = wheel_in(dist), wheel_in(tree)
    (info,) = {name.split("/")[0] for name in wheel if ".dist-info/" in name}
    code = {name: data for name, data in wheel.items() if not name.startswith(info)}
    lines = [f"the wheel {line}" for line in differences(code, of_tree())]
    lines += [f"the wheel lacks {name}" for name in MUST if name not in code]
    for each in (wheel, direct):
        for name in OWN:
            each.pop(f"{info}/{name}", None)
    lines += [f"the sdist's wheel {line}, beside the tree's" for line in differences(wheel, direct)]
    if wheel.get(f"{info}/licenses/LICENSE") != (ROOT / "LICENSE").read_bytes():
        lines.append("the wheel lacks the licence")
    about = HeaderParser().parsestr(wheel[f"{info}/METADATA"].decode())
    if about["License-Expression"] != "Apache-2.0" or about["Requires-Python"] != ">=3.10":
        lines.append(f"the metadata says {about['License-Expression']}, {about['Requires-Python']}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if set(about.get_all("Provides-Extra", [])) != set(project["optional-dependencies"]):
        lines.append(f"the extras are {about.get_all('Provides-Extra')}")
    print(f"{len(code)} files in the wheel, {info.removesuffix('.dist-info')}")
    return lines


if __name__ == "__main__":
    wrong = main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.exit("\n".join(wrong) or 0)
