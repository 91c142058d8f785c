"""`python tests/gpu lane|fetch|table …`, also where the machine's packages hold another `tests`.

A folder without `__init__.py` gives way to any package of its name, wherever that is on the path:
so this one is named before anything is imported. Only the standard library is needed until then.
"""

import importlib
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERBS = {"lane": "tests.gpu.lane", "fetch": "tests.gpu.fetching", "table": "tests.gpu.table"}


def name_ours() -> None:
    """Make `tests` the folder of this checkout, and its packages the first on the path."""
    package = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = package
    sys.path.insert(0, str(ROOT))


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    if not arguments or arguments[0] not in VERBS:
        print(f"usage: python tests/gpu {'|'.join(VERBS)} ...", file=sys.stderr)
        return 2
    name_ours()
    return int(importlib.import_module(VERBS[arguments[0]]).main(arguments[1:]))


if __name__ == "__main__":
    sys.path = [path for path in sys.path if Path(path or ".").resolve() != ROOT / "tests" / "gpu"]
    sys.exit(main(sys.argv[1:]))
