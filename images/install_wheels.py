"""Runs in a builder stage: installs the wheels mounted at /wheels into one folder, without network.

usage: python3 install_wheels.py WHEELS TARGET [--remove GLOB]...

pip runs from its own wheel, which lies beside the others and is not installed. Nothing is compiled
to bytecode (its timestamps would differ), and what matches a GLOB below TARGET is removed: headers,
static archives and tests that wheels carry and a runtime never opens.
"""

import argparse
import pathlib
import subprocess
import sys


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("wheels", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--remove", action="append", default=[])
    options = parser.parse_args()
    wheels = sorted(options.wheels.glob("*.whl"))
    pips = [wheel for wheel in wheels if wheel.name.startswith("pip-")]
    others = [wheel for wheel in wheels if wheel not in pips]
    if len(pips) != 1 or not others:
        sys.exit(f"expected one pip wheel and others in {options.wheels}, found {wheels}")
    command = [sys.executable, f"{pips[0]}/pip", "install", "--no-index", "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command += ["--root-user-action=ignore", "--target", str(options.target)]
    subprocess.run([*command, *map(str, others)], check=True)
    remove(options.target, options.remove)


def remove(target: pathlib.Path, globs: list[str]) -> None:
    """Remove files and folders by glob; one that matches nothing is a mistake worth hearing of."""
    import shutil

    for glob in globs:
        found = sorted(target.glob(glob))
        if not found:
            sys.exit(f"--remove {glob}: nothing below {target} matches; the wheel has changed")
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


main()
