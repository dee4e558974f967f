"""Sessions of the project: ``nox -l`` lists them, ``nox -s tune`` does the main thing."""

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

PROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, group: str | None = None) -> None:
    """The project and one of its dependency groups, at the versions known to work."""
    extra = nox.project.dependency_groups(PROJECT, group) if group else ()
    session.install("-c", "constraints.txt", "-e", ".", *extra)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests: kernels in Triton's interpreter, or on a GPU where there is one."""
    install(session, "test")
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs)


@nox.session
def thorough(session: nox.Session) -> None:
    """Run what the suite takes only samples of."""
    install(session, "test")
    session.run("pytest", "-n", "auto", "-m", "thorough", *session.posargs)


@nox.session
def mutate(session: nox.Session) -> None:
    """Break every kernel in many ways; the tests must notice. Takes ``--kernel``, ``--workers``."""
    install(session, "test")
    session.run("python", "-m", "tests.mutation", *session.posargs)


@nox.session
@nox.parametrize("triton", ["3.6.0", "3.7.1", "3.9.0"])
def compile(session: nox.Session, triton: str) -> None:
    """Compile every kernel for every target with other Tritons; count the loops' instructions."""
    install(session, "test")
    session.install(f"triton=={triton}")
    session.run("pytest", "-n", "auto", "tests/tconv/kernels", *session.posargs)


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
    """Render the report from what is stored. Takes ``--target`` and ``--out``."""
    install(session)
    session.run("python", "-m", "reports", "render", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure beside cuDNN on the GPU here, and render the report. Takes the bench's options."""
    install(session)
    session.run("python", "-m", "reports", "bench", *session.posargs)


@nox.session
def train(session: nox.Session) -> None:
    """Train LeNet-5 on real handwritten digits. Takes the trainer's options."""
    install(session, "train")
    session.run("python", "-m", "tconv.models.train", *session.posargs)


@nox.session
def bench_search(session: nox.Session) -> None:
    """Compare our search strategies with Kernel Tuner's and Optuna's. Takes recorded spaces."""
    install(session, "bench_search")
    session.run("python", "-m", "benchmarks.search", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and types."""
    session.install("-c", "constraints.txt", *nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy", "tconv", "autotune", "reports")
