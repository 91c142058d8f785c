"""What an index entry says: whose it is, and which blobs it names. Pure.

Every kind that planyard writes is read here by its type; of a kind that it does not know, every
digest in the text counts as named.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import msgspec

from engines.channels.history import PROMOTIONS
from engines.channels.record import ChannelRecord, key_of_channel
from engines.conversions import CONVERSIONS, ConversionRecord
from engines.evidence.entries import EVIDENCE
from engines.index import IMAGES, PLANS, SNAPSHOTS, blobs_of_plan
from engines.loads import LOADS, load_from_bytes
from engines.sbom import SBOMS, SbomRecord
from engines.snapshot import Snapshot, from_json
from engines.store.claims import CLAIMS, SWEEPS
from engines.timing_caches import TIMINGS, key_of_timings, timings_from_bytes
from planyard.core.digest import digest_of_value, is_digest, short
from planyard.core.errors import InputError, IntegrityError
from planyard.core.results import ImageRecord, PlanRecord, SmokeVerdict

VERDICTS = "verdicts"
GOLDENS = "goldens"
PROBES = "probes"
LATENCIES = "latencies"
LAYER_INDEXES = "layer-index"
KINDS = (
    *(PLANS, IMAGES, SNAPSHOTS, EVIDENCE, PROMOTIONS, VERDICTS, GOLDENS, PROBES, LATENCIES),
    *(LAYER_INDEXES, CLAIMS, SWEEPS, CONVERSIONS, SBOMS, TIMINGS, LOADS),
)

_DIGESTS = re.compile(rb"sha256:[0-9a-f]{64}")
_Kind = TypeVar("_Kind")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an entry says. `title` is its name for people.

    `key` is the one it belongs under, None when that cannot be told from it. `blobs` must be
    stored. `mentions` are all digests that stay as long as the entry does. `subject` is the digest
    it is about: without that, the entry is of no use.
    """

    title: str
    key: str | None = None
    subject: str | None = None
    blobs: tuple[str, ...] = ()
    mentions: frozenset[str] = frozenset()
    snapshot: SnapshotOutline | None = None


@dataclass(frozen=True, kw_only=True)
class SnapshotOutline:
    """What decides about keeping a snapshot, and nothing else of it."""

    image: str
    image_name: str
    gpu: str
    created: str
    speaks_of: frozenset[str]
    """What a newer snapshot may speak of again: its GPU, and each cell's plan and smoke run."""


class _Tensor(msgspec.Struct, frozen=True):
    digest: str


class _Accepted(msgspec.Struct, frozen=True):
    window: dict[str, object]


class _Claim(msgspec.Struct, frozen=True):
    digests: tuple[str, ...]


def said_by(kind: str, key: str, document: bytes) -> Said:
    """What an entry says; raises IntegrityError when it is not one of its kind."""
    read = _READERS.get(kind)
    if read is None:
        return Said(title=f"an entry of {kind}", mentions=_mentions(document))
    try:
        return read(key, document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InputError) as error:
        raise IntegrityError(f"an entry of {kind} cannot be read: {error}") from error


def deciding(outlines: dict[str, SnapshotOutline]) -> set[str]:
    """Of one image's snapshots by name, those that are the newest word on anything."""
    newest: dict[str, str] = {}
    for outline in outlines.values():
        for each in outline.speaks_of:
            newest[each] = max(newest.get(each, ""), outline.created)
    return {
        name
        for name, outline in outlines.items()
        if any(newest[each] == outline.created for each in outline.speaks_of)
    }


def _plan(_: str, document: bytes) -> Said:
    plan = _decoder(PlanRecord).decode(document)
    return Said(
        title=f"plan {plan.cell}",
        key=plan.recipe,
        subject=plan.digest,
        blobs=blobs_of_plan(plan),
        mentions=_mentions(document),
    )


def _image(_: str, document: bytes) -> Said:
    image = _decoder(ImageRecord).decode(document)
    return Said(
        title=f"image {image.name} {short(image.digest)}",
        key=image.recipe,
        subject=image.digest,
        blobs=(image.digest,),
        mentions=_mentions(document),
    )


def _snapshot(_: str, document: bytes) -> Said:
    found = from_json(document)
    logs = tuple(each.log_digest for each in found.smoke if each.log_digest)
    plans = (digest for plan in found.plans for digest in blobs_of_plan(plan))
    return Said(
        title=f"snapshot of {found.image_name} {short(found.image)} on {found.gpu}",
        key=found.image,
        subject=found.image,
        blobs=(found.image, *plans, *logs),
        mentions=_mentions(document),
        snapshot=_outline(found),
    )


def _outline(found: Snapshot) -> SnapshotOutline:
    return SnapshotOutline(
        image=found.image,
        image_name=found.image_name,
        gpu=found.gpu,
        created=found.created,
        speaks_of=frozenset(
            [
                f"gpu {found.gpu}",
                *(f"smoke {each.cell}" for each in found.smoke),
                *(f"plan {each.cell}" for each in found.plans),
            ]
        ),
    )


def _evidence(key: str, _: bytes) -> Said:
    return Said(title=f"evidence of {short(key)}", subject=key, mentions=frozenset([key]))


def _sbom(_: str, document: bytes) -> Said:
    record = _decoder(SbomRecord).decode(document)
    return Said(
        title=f"bill of materials of {short(record.image)}",
        key=record.image,
        subject=record.image,
        blobs=tuple(each.digest for each in record.documents.values()),
        mentions=_mentions(document),
    )


def _promotion(_: str, document: bytes) -> Said:
    record = _decoder(ChannelRecord).decode(document)
    named = (record.image, record.evidence, *record.snapshots)
    return Said(
        title=f"version {record.version} of channel {record.channel}",
        key=key_of_channel(record.channel),
        mentions=frozenset(filter(None, named)),
    )


def _verdict(_: str, document: bytes) -> Said:
    verdict = _decoder(SmokeVerdict).decode(document)
    logs = tuple(filter(is_digest, [verdict.log_digest]))
    return Said(
        title=f"verdict on {verdict.cell}",
        subject=logs[0] if logs else None,  # without a log it is judged anew
        blobs=logs,
        mentions=frozenset(logs),
    )


def _golden(_: str, document: bytes) -> Said:
    tensors = _decoder(tuple[_Tensor, ...]).decode(document)
    blobs = tuple(each.digest for each in tensors if is_digest(each.digest))
    return Said(title="golden", blobs=blobs, mentions=_mentions(document))


def _probe(_: str, __: bytes) -> Said:
    return Said(title="probe of an image")


def _latency(_: str, document: bytes) -> Said:
    window = _decoder(_Accepted).decode(document).window
    return Said(title=f"accepted latencies of {window.get('cell')}", key=digest_of_value(window))


def _layer_index(key: str, _: bytes) -> Said:
    return Said(title=f"index of layer {short(key)}", subject=key, mentions=frozenset([key]))


def _conversion(_: str, document: bytes) -> Said:
    made = _decoder(ConversionRecord).decode(document)
    blobs = tuple(filter(is_digest, made.files.values()))
    return Said(  # kept while it is young: it can be made again
        title="converted model", key=made.conversion, blobs=blobs, mentions=frozenset(blobs)
    )


def _timings(_: str, document: bytes) -> Said:
    record = timings_from_bytes(document)
    return Said(  # kept while it is young, or while a plan that was built with it is kept
        title=f"timing cache of {record.made_for.gpu} with TensorRT {record.made_for.version}",
        key=key_of_timings(record.made_for),
        subject=record.digest,
        blobs=(record.digest,),
        mentions=frozenset([record.digest]),
    )


def _load(key: str, document: bytes) -> Said:
    record = load_from_bytes(document, image=key)
    title = f"load {record.workload} of {record.cell}"
    return Said(title=title, key=record.image, subject=key, mentions=frozenset([key]))


def _claim(_: str, document: bytes) -> Said:
    claimed = _decoder(_Claim).decode(document).digests
    return Said(title="claim", mentions=frozenset(filter(is_digest, claimed)))


def _sweep(_: str, __: bytes) -> Said:
    return Said(title="notice of a collection")


_READERS: dict[str, Callable[[str, bytes], Said]] = {
    PLANS: _plan,
    IMAGES: _image,
    SNAPSHOTS: _snapshot,
    EVIDENCE: _evidence,
    SBOMS: _sbom,
    PROMOTIONS: _promotion,
    VERDICTS: _verdict,
    GOLDENS: _golden,
    PROBES: _probe,
    LATENCIES: _latency,
    LAYER_INDEXES: _layer_index,
    CLAIMS: _claim,
    SWEEPS: _sweep,
    CONVERSIONS: _conversion,
    TIMINGS: _timings,
    LOADS: _load,
}


def _mentions(document: bytes) -> frozenset[str]:
    return frozenset(each.decode() for each in _DIGESTS.findall(document))


@lru_cache
def _decoder(kind: type[_Kind]) -> msgspec.json.Decoder[_Kind]:
    return msgspec.json.Decoder(kind)
