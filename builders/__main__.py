"""The entry point: `planyard`, also `python -m builders`.

A build with nothing to do is answered from its memo before the command line is even parsed:
parsing alone would take longer than everything else it does.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Answer from the memo, or hand over to the command line."""
    from builders.memo import answer_from_memo

    if sys.argv[1:2] == ["build"] and answer_from_memo(sys.argv[2:]):
        return
    from builders.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
