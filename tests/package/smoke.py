"""Smoke test of the installed package: ``python smoke.py``, run outside the tree.

The environment has the package with its extras ``tune`` and ``reports``, or with ``--alone`` no
extras. The kernels run in Triton's interpreter, and the tuner really compiles.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # set before any kernel is imported

import torch
from torch.nn import functional

import tconv

REPLAY = "autotune replay space.csv"
TRIALS = "--suite lenet5 --passes fprop --target sm_90 --batch 4 --candidates 2"
# Expected output by command, a name and the arguments of ``python -m``.
SAID = {
    "autotune --help": "layer",
    "autotune layer --input 3x32x32 --filters 10 --extent 5 --padding 2": "760",
    "autotune layer --input 3x9x9 --filters 4 --extent 3 --picture layer.png": "drawn: layer.png",
    "autotune space --suite lenet5 --passes fprop --target sm_90": "shared memory",
    f"autotune tune {TRIALS}": "predicted ms",
    "reports --help": "render",
    "reports render --target sm_90 --out report": "report/index.html",
    "reports render --tables report --out again": "again/index.html",
    "reports compare report/layers.csv again/layers.csv --fail-on-regression 5%": "",
    "tconv.models lenet5": "parameters",
    "tconv.models.gallery --out gallery.svg": "gallery.svg",
}
# Without extras: the exit code, and the extra that the message must name.
EXTRAS = {
    "tconv.models.train --model lenet5": (1, "tconv[train]"),
    "autotune tune --suite lenet5 --cluster tcp://127.0.0.1:9": (2, "tconv[cluster]"),
    f"{REPLAY} --strategy combined --evaluations 9 --repeats 1": (0, "after 9"),
    f"autotune tune {TRIALS} --strategy corrected": (0, "tconv[search]"),
}
# Commands that work without extras.
ALONE = {
    "autotune --help": (1, "tconv[tune]"),
    "reports --help": (1, "tconv[reports]"),
}
RAISED = {"tconv.models lenet5": "tconv[train]", "tconv.keras": "tconv[keras]"}
SPACE = "block,stages,time\n" + "".join(f"{16 << i % 4},{i // 4},{i + 1}\n" for i in range(12))


def installed() -> None:
    """Check that Python finds the installed packages, and tconv's version."""
    for name in ("tconv", "tconv_workers", "autotune", "reports"):
        spec = importlib.util.find_spec(name)  # to import ``reports`` takes its extra
        assert spec is not None, f"{name} is not installed"
        place = Path(str(spec.origin))
        assert Path(sys.prefix) in place.parents, f"{name} comes from {place}"
    assert version("tconv") == tconv.__version__


def convolution() -> None:
    """Check convolution and pool, forward and backward, on our kernels against torch."""
    generator = torch.Generator().manual_seed(0)
    layer, pool = tconv.Conv2d(3, 8, 3, padding=1), tconv.MaxPool2d(2)
    x = torch.randn(2, 3, 10, 12, generator=generator)
    assert "in Triton's interpreter" in str(tconv.explain(layer, x))
    results = []
    for ours in (True, False):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        if ours:
            y = pool(layer(leaf))
        else:
            y = functional.max_pool2d(functional.conv2d(leaf, layer.weight, layer.bias, 1, 1), 2)
        y.square().sum().backward()
        results.append([y.detach(), leaf.grad, layer.weight.grad, layer.bias.grad])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def compiled() -> None:
    """Check that torch finds the backend by name through the package's entry point."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    x = torch.randn(2, 3, 10, 12)
    y = torch.compile(model, backend="tconv", options={"rest": "eager"})(x)
    torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-4)
    assert "0: conv2d + relu" in str(tconv.report(model))


def command(line: str, code: int, words: str, raised: bool = False) -> None:
    """Run ``python -m line``; it must exit with ``code`` and print ``words``."""
    done = subprocess.run(
        [sys.executable, "-m", *line.split()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "COLUMNS": "150"},
    )  # fmt: skip
    failure = f"python -m {line}: exit code {done.returncode}\n{done.stdout}"
    assert done.returncode == code, failure
    assert words in " ".join(done.stdout.split()), failure
    assert raised == ("Traceback" in done.stdout), failure


def alone() -> None:
    """Check the library without extras: operators work, commands name the extra they need."""
    installed()
    convolution()
    compiled()
    for line, (code, words) in ALONE.items():
        command(line, code, words)
    for line, words in RAISED.items():
        command(line, 1, words, raised=True)
    print(f"tconv {tconv.__version__} alone: {3 + len(ALONE) + len(RAISED)} checks passed")


def main() -> None:
    installed()
    convolution()
    compiled()
    for line, words in SAID.items():
        command(line, 0, words)
    for page in ("index.html", "index.md"):
        assert Path("report", page).read_text() == Path("again", page).read_text(), page
    Path("space.csv").write_text(SPACE)
    for line, (code, words) in EXTRAS.items():
        command(line, code, words)
    command("tconv.keras", 1, "python -m pip install 'tconv[keras]'", raised=True)
    print(f"tconv {tconv.__version__} in {sys.prefix}: {4 + len(SAID) + len(EXTRAS)} checks passed")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TCONV_HOME"] = folder
        alone() if "--alone" in sys.argv else main()
