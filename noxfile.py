"""Nox sessions of the project: ``nox -l`` lists them, ``nox -s tune`` tunes and reports."""

import shutil
import sys
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
LOCK = ROOT / "constraints.txt"
# Packages that constraints.txt omits: an environment's own, this project, CUDA's (torch pins).
UNLOCKED = ("pip==", "setuptools==", "tconv==", "nvidia-", "cuda-")
# Triton versions that all tests run with, and extra requirements of older ones.
TRITONS = {"3.6.0": ["numpy<2.4"], "3.7.1": [], "3.9.0": []}
# Tests of compiled kernels, which an emulated GPU runs as well as a real one.
EMULATED_TESTS = [
    "tests/tconv/emulator",
    "tests/tconv/test_on_gpu.py",
    "tests/tconv/ops/test_opinfo_conv2d.py",
    "tests/tconv/ops/test_opinfo_max_pool2d.py",
    "tests/tconv/ops/test_opinfo_conv_transpose2d.py",
    "tests/tconv/ops/test_sequences.py",
    "tests/tconv/ops/test_adaptive_pool2d.py",
    "tests/tconv/ops/test_conv2d.py::test_on_a_gpu",
    "tests/tconv/ops/test_max_pool2d.py::test_on_a_gpu",
]


def group(name: str) -> tuple[str, ...]:
    return nox.project.dependency_groups(PROJECT, name)


def install(session: nox.Session, name: str | None = None, extras: str = "tune,reports") -> None:
    """Install the project, its extras and a dependency group at the versions in constraints.txt."""
    session.install("-c", str(LOCK), "-e", f".[{extras}]", *(group(name) if name else ()))


def hold_locked(session: nox.Session, python: str = "python") -> None:
    """Fail if an installed package's version differs from constraints.txt or is missing there."""
    if sys.version_info < (3, 11):
        return  # for which it names torch and Triton alone
    pinned = {line.partition(" ;")[0] for line in LOCK.read_text().splitlines()}
    listed = session.run(python, "-m", "pip", "list", "--format=freeze", silent=True, external=True)
    found = [line.partition("+")[0] for line in str(listed).split() if "==" in line]
    strange = [line for line in found if line not in pinned and not line.startswith(UNLOCKED)]
    if strange:
        session.error(f"not as in constraints.txt: {', '.join(strange)}; renew it: nox -s lock")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests: kernels in Triton's interpreter, or on a GPU where there is one."""
    install(session, "test")
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session
def thorough(session: nox.Session) -> None:
    """Run the thorough tests, of which the default suite runs a sample."""
    install(session, "test")
    session.run("pytest", "-n", "auto", "-m", "thorough", *session.posargs)


@nox.session
def mutate(session: nox.Session) -> None:
    """Break every kernel in many ways; the tests must fail. Takes ``--kernel``, ``--workers``."""
    install(session, "test")
    session.run("python", "-m", "tests.mutation", *session.posargs)


@nox.session
@nox.parametrize("version", list(TRITONS))
def triton(session: nox.Session, version: str) -> None:
    """Run tconv's tests with each Triton: in the interpreter, and compiling for every target."""
    install(session, "test")
    session.install(f"triton=={version}", *TRITONS[version])
    places = session.posargs or ["tests/tconv", "tests/autotune/test_compile.py"]
    session.run("pytest", "-n", "auto", *places)


@nox.session(default=False)
@nox.parametrize("version", list(TRITONS))
@nox.parametrize("target", ["sm_80", "sm_90"])
def emulate(session: nox.Session, target: str, version: str) -> None:
    """Run the tests of compiled kernels on an emulated GPU, with each Triton."""
    install(session, "test")
    session.install(f"triton=={version}", *TRITONS[version])
    places = session.posargs or ["-m", "not device", *EMULATED_TESTS]
    session.run("pytest", "-n", "auto", *places, env={"TCONV_EMULATE": target})


@nox.session(default=False)
def compilers(session: nox.Session) -> None:
    """Compare the winners compiled by Triton 3.6, 3.7, 3.9. Takes ``--suite``, ``--target``."""
    install(session)
    named = []
    for version, more in TRITONS.items():
        folder = Path(session.create_tmp()) / f"triton-{version}"
        python = str(folder / "bin" / "python")
        if not Path(python).exists():
            session.run("python", "-m", "venv", str(folder))
            known = ["-c", str(LOCK), "torch", "numpy"] if not more else ["torch", *more]
            session.run(python, "-m", "pip", "install", "-e", ".", *known, external=True)
            session.run(python, "-m", "pip", "install", f"triton=={version}", external=True)
        named += ["--python", f"{version}={python}"]
    session.run("python", "-m", "reports", "compilers", *named, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run tests and a GPU run's rehearsal; count the lines and branches of host code they reach."""
    install(session, "coverage")
    hold_locked(session)
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-n", "auto", "--dist", "worksteal",
                *session.posargs)  # fmt: skip
    out = str(Path(session.create_tmp()) / "run")
    shutil.rmtree(out, ignore_errors=True)
    session.run("coverage", "run", "-m", "reports.gpu_run", "--rehearse", "--out", out)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", "--skip-covered", "--show-missing")


@nox.session
def package(session: nox.Session) -> None:
    """Build wheel and sdist, compare them with the tree, try the wheel in an empty environment."""
    session.install("-c", str(LOCK), *group("package"))
    hold_locked(session)
    made = Path(session.create_tmp()).resolve()
    shutil.rmtree(made)
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # an earlier build's files would be packed
    dist, tree, empty = made / "dist", made / "tree", made / "empty"
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist))
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tree), ".")
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    session.run("python", "tests/package/contents.py", str(dist), str(tree))
    session.run("python", "-m", "venv", str(empty))
    python = str(empty / "bin" / "python")
    (wheel,) = map(str, dist.glob("*.whl"))
    session.run(python, "-m", "pip", "install", "--quiet", "-c", str(LOCK), wheel, external=True)
    hold_locked(session, python)
    alone = {"PYTHONPATH": ""}  # no way leads back to the tree
    session.run(python, "tests/package/smoke.py", "--alone", env=alone, external=True)
    full = f"{wheel}[tune,reports]"
    session.run(python, "-m", "pip", "install", "--quiet", "-c", str(LOCK), full, external=True)
    hold_locked(session, python)
    session.run(python, "tests/package/smoke.py", env=alone, external=True)


@nox.session(reuse_venv=False)
def lock(session: nox.Session) -> None:
    """Renew constraints.txt: the newest of every group that goes with its torch and Triton."""
    lines = LOCK.read_text().splitlines()
    kept = [line for line in lines if line.startswith(("#", "torch==", "triton=="))]
    given = Path(session.create_tmp()) / "given.txt"
    given.write_text("\n".join(kept))
    extras = ",".join(PROJECT["project"]["optional-dependencies"])
    groups = [each for name in PROJECT["dependency-groups"] for each in group(name)]
    session.install("-c", str(given), f".[{extras}]", *groups)
    frozen = str(session.run("python", "-m", "pip", "freeze", "--all", silent=True)).splitlines()
    skipped = (*UNLOCKED, "tconv @", "torch==", "triton==")
    marked = [f'{line} ; python_version >= "3.11"' for line in frozen
              if not line.startswith(skipped)]  # fmt: skip
    LOCK.write_text("\n".join([*kept, *marked, ""]))


@nox.session
def fuzz(session: nox.Session) -> None:
    """Random calls and kernels against torch in fp64. Takes ``--minutes``, ``--seed``."""
    install(session, "test")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session
def tune(session: nox.Session) -> None:
    """Tune LeNet-5 and VGG-16, all passes, and write the report. Takes the tuner's options."""
    install(session)
    session.run("python", "-m", "autotune", "tune", *session.posargs)
    session.run("python", "-m", "reports", "render")


@nox.session
def report(session: nox.Session) -> None:
    """Render the report from the stored trials. Takes ``--target`` and ``--out``."""
    install(session)
    session.run("python", "-m", "reports", "render", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site into build/site, strictly. Takes mkdocs' options."""
    session.install("-c", str(LOCK), *group("docs"))
    session.run("mkdocs", "build", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure tconv and cuDNN on the local GPU, render the report. Takes the bench's options."""
    install(session)
    session.run("python", "-m", "reports", "bench", *session.posargs)


@nox.session
def train(session: nox.Session) -> None:
    """Train LeNet-5 on real handwritten digits. Takes the trainer's options."""
    install(session, extras="train")
    session.run("python", "-m", "tconv.models.train", *session.posargs)


@nox.session(default=False)
def judge(session: nox.Session) -> None:
    """Hold the cost model to its published scores. Takes a folder of recorded tables."""
    if not session.posargs:
        session.error("name the folder of recorded tables: nox -s judge -- FOLDER")
    install(session, extras="tune,judge")
    session.run("python", "-m", "autotune", "judge", "--held-out", "--nvidia", "--hold",
                "reports/judged.json", *session.posargs)  # fmt: skip


@nox.session
def bench_search(session: nox.Session) -> None:
    """Compare our search strategies with Kernel Tuner's and Optuna's. Takes recorded spaces."""
    install(session, "bench_search")
    session.run("python", "-m", "benchmarks.search", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, dead code and types."""
    session.install("-c", str(LOCK), *group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("vulture")
    for version in ("3.10", "3.13"):  # the ends of the range; ruff holds the first
        session.run(
            "mypy", f"--python-version={version}", "tconv", "tconv_workers", "autotune", "reports"
        )
