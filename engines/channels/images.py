"""What speaks against moving a channel to an image, as its store stands now.

Only index entries, chunk maps and the manifest are read: whether the rest is there is asked for, so
that a move costs the same whatever plans and images weigh. Their bytes are verified when they are
pulled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from engines import index
from engines.channels import promotion
from engines.channels.promotion import EvidenceState
from engines.channels.record import ChannelState
from engines.lookup_miss import explain_miss
from engines.snapshot import Snapshot
from engines.store.store import ObjectStore
from planyard.core.errors import InputError, IntegrityError, LookupMissError
from planyard.core.findings import Finding
from planyard.core.results import ImageRecord

_IMAGE = msgspec.json.Decoder(ImageRecord)

Evidence = Callable[[str], EvidenceState]
"""Verifies the signed evidence of an image, by its digest."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An image as it is now: the snapshots that count, and everything found.

    `evidence` is the digest of the signed evidence that was verified, if any was.
    """

    snapshots: tuple[Snapshot, ...]
    findings: tuple[Finding, ...]
    evidence: str = ""


def judge(
    store: ObjectStore, image: str, *, gpus: Sequence[str], evidence: Evidence | None
) -> Judged:
    """Everything that speaks against promoting an image."""
    store.claim((image,))
    found = index.snapshots_of_image(store, image)
    if not found:
        raise explain_miss(store, image.removeprefix("sha256:"))
    snapshots = promotion.chosen_snapshots(found, gpus=gpus)
    signed = evidence(image) if evidence else None
    findings = promotion.objections(
        snapshots,
        lost=_lost(store, image, snapshots),
        contents=_contents(store, snapshots[0]),
        evidence=signed,
        require_signed=evidence is not None,
    )
    return Judged(snapshots=snapshots, findings=findings, evidence=signed.entry if signed else "")


def judge_again(store: ObjectStore, state: ChannelState, *, evidence: Evidence | None) -> Judged:
    """What speaks against going back to a promotion; its cells were judged then.

    What was waived then stays waived. Damage speaks against this one, and does not end the search.
    """
    store.claim((state.image,))
    signed = evidence(state.image) if evidence else None
    try:
        found = index.snapshots_of_image(store, state.image)
        known = {each.gpu for each in found}
        gpus = [gpu for gpu in state.gpus if gpu in known]
        snapshots = promotion.chosen_snapshots(found, gpus=gpus)
        lost = _lost(store, state.image, snapshots)
    except (InputError, IntegrityError) as error:
        snapshots, lost = (), {state.image: f"{error.message}: of"}
    else:
        lost |= {} if found else {state.image: "the snapshots of"}
    findings = promotion.objections_to_return(
        lost=lost, evidence=signed, require_signed=evidence is not None, waived=state.waived
    )
    return Judged(snapshots=snapshots, findings=findings, evidence=signed.entry if signed else "")


def _lost(store: ObjectStore, image: str, snapshots: Sequence[Snapshot]) -> dict[str, str]:
    """What of an image and its plans is not stored: digest → what it is. Reads the manifest."""
    plans = promotion.plans_to_serve(snapshots)
    wanted = {digest: f"the plan of {cell}," for digest, cell in plans.items()}
    lost = {}
    try:
        manifest = index.read_manifest(store, image)
    except LookupMissError:
        lost[image] = "the manifest"
    except (InputError, IntegrityError) as error:
        lost[image] = f"{error.message}: the manifest"
    else:
        wanted[manifest.config.digest] = "the configuration"
        wanted |= {layer.digest: "the layer" for layer in manifest.layers}
    return lost | {each: what for each, what in wanted.items() if not store.has_blob(each)}


def _contents(store: ObjectStore, snapshot: Snapshot) -> tuple[Finding, ...]:
    """What the record of a snapshot's image says is wrong with its contents."""
    for document in store.entries(index.IMAGES, snapshot.image_recipe):
        try:
            record = _IMAGE.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise IntegrityError(f"a record of an image cannot be read: {error}") from error
        if (record.digest, record.recipe) == (snapshot.image, snapshot.image_recipe):
            return record.findings
    return promotion.incomplete({snapshot.image: "the record of the image"})
