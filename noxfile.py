"""The sessions: `nox -s build`, `nox -s tests`, lint, typecheck, schema, lock, bench.

Each has its own environment below .nox, with the Python that runs nox, planyard itself (editable)
and the dependency groups of pyproject.toml. An environment is installed again when pyproject.toml,
the Python or the place of the checkout has changed; `nox -R` never installs, deleting .nox always.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - nox itself runs on older ones
    sys.exit(
        "planyard needs Python 3.11 or newer, and this nox runs on "
        f"{sys.version_info.major}.{sys.version_info.minor}. "
        "Install nox with a newer one: python3.11 -m pip install nox"
    )

import nox

nox.needs_version = ">=2025.2.9"  # the first with nox.project.dependency_groups
nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.reuse_existing_virtualenvs = True

HERE = Path(__file__).parent
PYPROJECT = nox.project.load_toml(HERE / "pyproject.toml")
QUICK = ("tests/unit", "tests/property", "tests/contract")
"""Tests that start no external program of the machine."""


@nox.session(reuse_venv=True)
def build(session: nox.Session) -> None:
    """Build everything in matrix.yaml: `planyard build`, with the arguments after `--`."""
    install(session)
    session.run("planyard", "build", *session.posargs)


@nox.session(reuse_venv=True)
def tests(session: nox.Session) -> None:
    """Run the tests; `-- --require docker,s3` turns a skip for want of these into a failure.

    What the machine lacks is installed first. Where that is refused, pytest goes on, and skips or,
    with --require, fails. All of them run in two processes, of which one has the Docker engine.
    """
    install(session, "test")
    paths = [each for each in session.posargs if each.startswith("tests/")]
    if not paths or not all(path.startswith(QUICK) for path in paths):
        session.run("planyard", "setup", success_codes=[0, 5])
    beside = [] if paths else ["-n", "2", "--dist", "loadgroup"]
    # planyard is started many hundred times: not every start is to compile its modules anew.
    session.run("pytest", *beside, *session.posargs, env={"PYTHONDONTWRITEBYTECODE": ""})


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Check style and format with ruff; `nox -s lint -- --fix` mends what can be mended.

    Then the Dockerfile (hadolint) and the workflows (zizmor, actionlint).
    """
    install(session, "lint")
    session.run("ruff", "check", *session.posargs)
    check = [] if "--fix" in session.posargs else ["--check"]
    session.run("ruff", "format", *check)
    session.run("hadolint", "images/Dockerfile")
    session.run("zizmor", "--offline", "--persona", "auditor", "--quiet", ".")
    # actionlint's wheel fetches a binary from elsewhere; Go verifies what it builds.
    program = session.run("python", "-m", "tests.go_programs", "actionlint", silent=True)
    session.run(str(program).strip().splitlines()[-1], external=True)


@nox.session(reuse_venv=True)
def lock(session: nox.Session) -> None:
    """Pin what the action installs beside planyard: write .github/requirements.txt."""
    session.install("uv>=0.9")
    target = HERE / ".github" / "requirements.txt"
    build_system = Path(session.create_tmp()) / "build-system.in"
    build_system.write_text("\n".join(PYPROJECT["build-system"]["requires"]) + "\n")
    args = ["uv", "pip", "compile", "pyproject.toml", str(build_system), "--extra", "s3"]
    args += ["--extra", "huggingface", "--universal", "--python-version", "3.11"]
    args += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    written = session.run(*args, silent=True)
    first = "# What the action installs beside planyard, each by its hash: nox -s lock writes this."
    target.write_text(f"{first}\n{written}")


@nox.session(reuse_venv=True)
def typecheck(session: nox.Session) -> None:
    """Check the types of all packages with mypy, strict."""
    install(session, "typecheck")
    session.run("mypy", *session.posargs)


@nox.session(reuse_venv=True)
def schema(session: nox.Session) -> None:
    """Write docs/schemas from the types, and docs/reference from the verbs and rules."""
    install(session)
    session.run("planyard", "schema", "docs/schemas")
    session.run("python", "-m", "builders.reference", "docs/reference")


@nox.session(reuse_venv=True)
def bench(session: nox.Session) -> None:
    """Measure, and print the table of docs/benchmarks.md."""
    groups = [name for name in ("test", "bench") if name in PYPROJECT["dependency-groups"]]
    install(session, *groups)
    session.run("planyard", "setup")
    session.run("python", "-m", "tests.bench", *session.posargs)


def install(session: nox.Session, *groups: str) -> None:
    """Install planyard (editable) and dependency groups, unless the same was installed before."""
    parts = [sys.version, str(HERE), *groups, (HERE / "pyproject.toml").read_text()]
    wanted = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    session.install("--editable", ".", *nox.project.dependency_groups(PYPROJECT, *groups))
    # A command of the install step: with `nox -R` neither this nor the line above runs.
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    session.run_install("python", "-c", write, str(stamp), wanted, log=False)
