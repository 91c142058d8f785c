"""The store's figures against their targets."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.bench.tables import Figure

if TYPE_CHECKING:
    from tests.bench.store import Measured

MIB = 1 << 20
STORED_MIB = 1690
PEAK_MIB = 256


def figures_of(measured: Measured) -> list[Figure]:
    """A line for each target of the plan store, and what stands beside it."""
    return [
        _stored(measured),
        *_puts(measured),
        *_restores(measured),
        *_s3(measured),
        _rollback(measured),
        _memory(measured),
    ]


def _stored(measured: Measured) -> Figure:
    own = measured.stored_bytes["store"] / MIB
    others = (
        f"{tool} {measured.stored_bytes[tool] / MIB:,.0f} MiB"
        for tool in ("borg", "restic")
        if tool in measured.stored_bytes
    )
    return Figure(
        what="three UNet plans stored",
        measured=f"{own:,.0f} MiB",
        target=f"at most {STORED_MIB:,} MiB",
        reached=own <= STORED_MIB,
        peer=", ".join(others),
    )


def _puts(measured: Measured) -> Iterator[Figure]:
    for number, what, factor in (
        (1, "storing the first", 1.0),
        (2, "storing the second", 0.5),
        (3, "storing the third", 0.5),
    ):
        yield _against(
            measured,
            what=what,
            own=f"planyard put {number}",
            peers=(f"borg put {number}",),
            factor=factor,
            beside=(f"restic put {number}",),
        )


def _restores(measured: Measured) -> Iterator[Figure]:
    for state, what in (("warm", "in the page cache"), ("cold", "from the disk")):
        for peer, factor in (("cp", 1.0), ("restic", 0.8)):
            yield _against(
                measured,
                what=f"restoring a plan, {what}, beside {peer}",
                own=f"planyard get {state}",
                peers=(f"{peer} get {state}",),
                factor=factor,
                beside=(f"borg get {state}",) if peer == "restic" else (),
            )


def _s3(measured: Measured) -> Iterator[Figure]:
    both = ("boto3", "rclone")
    for what, step, peers, factor in (
        ("S3 upload of the first plan", "up 1", both, 1.0),
        ("S3 upload of the second plan", "up 2", ("rclone",), 0.1),
        ("S3 download of a plan, verified", "down 1", both, 1.0),
    ):
        names = tuple(f"{peer} {step}" for peer in peers)
        beside = tuple(f"{peer} {step}" for peer in both if peer not in peers)
        yield _against(
            measured, what=what, own=f"planyard {step}", peers=names, factor=factor, beside=beside
        )


def _rollback(measured: Measured) -> Figure:
    median = statistics.median(measured.rollback_ms)
    return Figure(
        what="a rollback between images of these plans",
        measured=f"{median:.0f} ms in a running program",
        target="at most 100 ms",
        reached=median <= 100,
    )


def _memory(measured: Measured) -> Figure:
    peak = measured.peak_bytes("planyard") / MIB
    return Figure(
        what="peak memory of any of these",
        measured=f"{peak:.0f} MiB",
        target=f"{PEAK_MIB} MiB",
        reached=peak <= PEAK_MIB,
    )


def _against(
    measured: Measured,
    *,
    what: str,
    own: str,
    peers: tuple[str, ...],
    factor: float,
    beside: tuple[str, ...] = (),
) -> Figure:
    """A step beside the fastest of its peers; no verdict where none of them is installed."""
    mine = measured.seconds(own)
    if mine is None:
        return Figure(what=what, measured="not measured")
    least = min((each for each in map(measured.seconds, peers) if each is not None), default=None)
    shown = (
        f"{name.split()[0]} {seconds:.1f} s"
        for name in (*peers, *beside)
        if (seconds := measured.seconds(name)) is not None
    )
    known = "the faster" if len(peers) > 1 else peers[0].split()[0]
    return Figure(
        what=what,
        measured=f"{mine:.2f} s",
        target=f"at most {factor:g} x {known}" + (f": {factor * least:.2f} s" if least else ""),
        reached=None if least is None else mine <= factor * least,
        peer=", ".join(shown),
    )
