"""Moving a channel of a store: promote and rollback.

A move reads the pointer, decides, writes an immutable record that names the one before it, and
moves the pointer if it still is as it was read. Who loses that race leaves a record that no history
reaches, and is told; nothing is tried again, because it was judged against another state. What is
decided, and why, is in promotion.py; what a record is, in channel_record.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engines.channels import promotion
from engines.channels.history import PROMOTIONS, Head, existing_head, history, read_head
from engines.channels.images import Evidence, Judged, judge, judge_again
from engines.channels.promotion import Waiver
from engines.channels.record import (
    CHANNEL_SCHEMA,
    Action,
    ChannelRecord,
    ChannelState,
    Seen,
    checked_channel,
    key_of_channel,
    one_line,
    pointer_of,
    record_to_bytes,
    state_from_bytes,
)
from engines.snapshot import to_json
from engines.store.store import ObjectStore
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import LookupMissError, StoreError
from planyard.core.findings import Finding, failures


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A promotion that a rollback passed over, because it does not verify any more."""

    version: int
    image: str
    findings: tuple[Finding, ...]


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What a promotion or rollback came to: `planyard promote --json`, `rollback --json`.

    Nothing moved when `objections` are left, and when `now` is what was asked for already.
    """

    schema: int = CHANNEL_SCHEMA
    channel: str
    action: Action
    moved: bool
    before: ChannelState | None
    now: ChannelState | None
    objections: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mover:
    """Who moves a channel, when (RFC 3339 in UTC) and why."""

    by: str
    now: str
    because: str = ""


def promote(
    store: ObjectStore,
    channel: str,
    image: str,
    *,
    mover: Mover,
    waivers: Sequence[Waiver] = (),
    gpus: Sequence[str] = (),
    evidence: Evidence | None = None,
    seen: Seen | None = None,
) -> Move:
    """Move a channel to an image (a whole digest), unless something speaks against it.

    With `evidence`, signed evidence is asked for; with `gpus`, only those GPUs of the matrix are.
    Raises LookupMissError for an image without snapshots, InputError for a waiver that waives
    nothing, StoreError when somebody else moved the channel meanwhile.
    """
    head = read_head(store, checked_channel(channel), seen=seen)
    before = head.state if head else None
    stays = Move(channel=channel, action="promote", moved=False, before=before, now=before)
    if before and before.image == image:
        return stays
    judged = judge(store, image, gpus=gpus, evidence=evidence)
    left, waived = promotion.waive(judged.findings, waivers)
    warnings = promotion.warnings_of(judged.findings, image=image, before=before)
    if left:
        return msgspec.structs.replace(stays, objections=left, warnings=warnings)
    record = ChannelRecord(
        channel=channel,
        version=before.version + 1 if before else 1,
        action="promote",
        image=image,
        from_image=before.image if before else "",
        previous=before.entry if before else "",
        waived=waived,
        gpus=tuple(sorted(set(gpus))),
        **_said(judged, mover),
    )
    now = _move(store, head, record)
    return msgspec.structs.replace(stays, moved=True, now=now, warnings=warnings)


def rollback(
    store: ObjectStore,
    channel: str,
    *,
    mover: Mover,
    to: str | None = None,
    evidence: Evidence | None = None,
    seen: Seen | None = None,
) -> Move:
    """Move a channel back to the promotion before the one in force that still verifies.

    With `to` (a digest, or 12 or more of its hex digits), to that promotion of its history; then
    what does not verify is an objection. Verified is that image and plans are stored whole, and
    with `evidence` the signed evidence. Raises LookupMissError when there is nothing to go to.
    """
    head = existing_head(store, channel, seen=seen)
    states = history(store, head.state)
    if to is not None:
        target = promotion.promotion_of(states, to, channel=channel)
        if target.image == head.state.image:
            return _stay(head)
        judged = judge_again(store, target, evidence=evidence)
        if against := failures(judged.findings):
            return msgspec.structs.replace(_stay(head), objections=against)
        return _go_back(store, head, target, judged=judged, mover=mover)
    skipped: list[Skipped] = []
    for target in promotion.line_of_promotions(states):
        if target.image == head.state.image:
            continue
        judged = judge_again(store, target, evidence=evidence)
        if against := failures(judged.findings):
            skipped.append(Skipped(version=target.version, image=target.image, findings=against))
            continue
        move = _go_back(store, head, target, judged=judged, mover=mover)
        return msgspec.structs.replace(move, skipped=tuple(skipped))
    raise _nothing_before(head.state, skipped)


def _said(judged: Judged, mover: Mover) -> dict[str, Any]:
    """The fields of a record that say who, why, and by what it was judged."""
    off = {gate for snapshot in judged.snapshots for gate in snapshot.gates_off}
    return {
        "image_name": one_line(judged.snapshots[0].image_name),
        "moved_at": mover.now,
        "by": one_line(mover.by),
        "because": one_line(mover.because),
        "snapshots": tuple(sorted(digest_of_bytes(to_json(each)) for each in judged.snapshots)),
        "gates_off": tuple(sorted(map(one_line, off))),
        "evidence": judged.evidence,
        "id": secrets.token_hex(16),
    }


def _stay(head: Head) -> Move:
    state = head.state
    return Move(channel=state.channel, action="rollback", moved=False, before=state, now=state)


def _go_back(
    store: ObjectStore, head: Head, target: ChannelState, *, judged: Judged, mover: Mover
) -> Move:
    before = head.state
    record = ChannelRecord(
        channel=before.channel,
        version=before.version + 1,
        action="rollback",
        image=target.image,
        from_image=before.image,
        previous=before.entry,
        waived=target.waived,
        gpus=target.gpus,
        restores=target.version,
        **_said(judged, mover),
    )
    return msgspec.structs.replace(_stay(head), moved=True, now=_move(store, head, record))


def _move(store: ObjectStore, head: Head | None, record: ChannelRecord) -> ChannelState:
    """Write the record, then let the pointer name it if nobody moved it meanwhile."""
    document = record_to_bytes(record)
    entry = store.put_entry(PROMOTIONS, key_of_channel(record.channel), document)
    state = state_from_bytes(document, channel=record.channel, entry=entry)
    expected = head.token if head else None
    if store.objects.move_pointer(record.channel, pointer_of(state), expected=expected):
        return state
    winner = read_head(store, record.channel)
    if winner and winner.state.entry == entry:  # it was moved, and the answer was lost
        return state
    at = f"now at version {winner.state.version}, {winner.state.image}" if winner else "gone"
    by = f", moved by {winner.state.by}" if winner else ""
    raise StoreError(
        f"channel {record.channel} moved meanwhile: {at}{by}; nothing was changed",
        mend=f"look at `planyard channels {record.channel}`, then run this again if it still holds",
    )


def _nothing_before(head: ChannelState, skipped: Sequence[Skipped]) -> LookupMissError:
    tail = tuple(
        f"version {each.version}, {each.image}: {finding.message} {' '.join(finding.evidence[:4])}"
        for each in skipped
        for finding in each.findings[:4]
    )
    said = "none of its earlier promotions verifies" if skipped else "nothing was promoted before"
    return LookupMissError(
        f"channel {head.channel} is at version {head.version}, {head.image}; {said}",
        mend=f"`planyard channels {head.channel}` shows its history; promote another image",
        log_tail=tail,
    )
