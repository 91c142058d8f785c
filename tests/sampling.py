"""Sweeps over very many like cases: a usual run tries a fixed part, `--full-sweep` tries all.

What a usual run leaves out follows from the cases alone, never from chance or time: two runs of one
commit try the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Case = TypeVar("Case")

full_sweep = False
"""Set by `--full-sweep` (tests/conftest.py)."""


def tried(
    cases: Iterable[Case], *, one_in: int, kind: Callable[[Case], Hashable] = lambda _: None
) -> list[Case]:
    """The cases to try, in their order.

    Always the first and the last of each kind; of the others of a kind one in so many.
    """
    known = list(cases)
    if full_sweep:
        return known
    kinds = [kind(case) for case in known]
    seen: defaultdict[Hashable, int] = defaultdict(int)
    last = {each: number for number, each in enumerate(kinds)}
    chosen = []
    for number, (case, each) in enumerate(zip(known, kinds, strict=True)):
        if seen[each] % one_in == 0 or number == last[each]:
            chosen.append(case)
        seen[each] += 1
    return chosen
