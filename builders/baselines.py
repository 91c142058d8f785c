"""The window of the latency gate: accepted runs in the store, by cell, machine and work.

An image with what it serves counts once, by its first accepted run, however often it runs. A run
is added only when it passed every gate. What is under a key and cannot be read stops the build: a
window that lost its runs in silence would let a slow run pass as the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from engines.store.protocol import Store
from planyard.core.digest import canonical_json, digest_of_value
from planyard.core.errors import IntegrityError
from planyard.core.results import SmokeVerdict
from smoke.baseline import AcceptedRun

KIND = "latencies"
GATE = "latency"
MOST_RUNS = 1000
"""The largest window a matrix may ask for."""


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs have to have in common to be compared; its digest is the key of the entries.

    `machine` names the GPU, or the processor, its cores and the reference load on them. The image
    is not in it: the window is there to compare images. Nor is the driver, for the same reason.
    """

    schema: Literal[1] = 1
    cell: str
    machine: str
    shapes: dict[str, tuple[int, ...]]
    batches: tuple[int, ...]
    concurrency: tuple[int, ...]
    warmup: int

    @property
    def key(self) -> str:
        """What the entries are filed under."""
        return digest_of_value(msgspec.to_builtins(self))


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    window: Window
    run: AcceptedRun


_ENTRY = msgspec.json.Decoder(_Entry)


def read_window(store: Store, window: Window, *, runs: int = MOST_RUNS) -> tuple[AcceptedRun, ...]:
    """The last accepted runs of a window, oldest first; one for each image and what it serves.

    Reads every entry of the key, one for each image that was ever accepted: docs/latency-gate.md
    has what that costs. Raises IntegrityError when one is damaged, foreign, or of another window.
    """
    return tuple(_first_of_each(_read(store, window))[-runs:])


def record_run(store: Store, window: Window, run: AcceptedRun, *, verdict: SmokeVerdict) -> bool:
    """Add a run whose verdict is passed, by the latency gate too; whether it was added.

    It is not when its image, serving the same, is in the window already.
    """
    if not verdict.verdict == verdict.gates.get(GATE) == "passed":
        return False
    if any(_product(each) == _product(run) for each in _read(store, window)):
        return False
    document = canonical_json(msgspec.to_builtins(_Entry(window=window, run=run)))
    store.put_entry(KIND, window.key, document)
    return True


def _read(store: Store, window: Window) -> Iterator[AcceptedRun]:
    for document in store.entries(KIND, window.key):
        yield _run_of(document, window, where=store.url)


def _run_of(document: bytes, window: Window, *, where: str) -> AcceptedRun:
    try:
        entry = _ENTRY.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(where, window, f"cannot be read: {error}") from error
    if entry.window != window:
        raise _unreadable(where, window, f"is about {entry.window.cell} on {entry.window.machine}")
    return entry.run


def _unreadable(where: str, window: Window, said: str) -> IntegrityError:
    return IntegrityError(
        f"{where}: an accepted run of {window.cell} on {window.machine} {said}",
        mend="use the version of planyard that wrote it, or run `planyard store fsck`, "
        f"and remove what is wrong below index/{KIND}/",
    )


def _first_of_each(runs: Iterable[AcceptedRun]) -> list[AcceptedRun]:
    """Each image's first run, oldest first: a second one is there when two machines added it."""
    first: dict[tuple[str, str], AcceptedRun] = {}
    for run in sorted(runs, key=lambda each: (each.created, each.image, each.served)):
        first.setdefault(_product(run), run)
    return list(first.values())


def _product(run: AcceptedRun) -> tuple[str, str]:
    return run.image, run.served
