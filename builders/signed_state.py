"""Signed evidence as a question about an image, for what may only move when it is signed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from builders.signing import Trust, name_of, verifier_of
from engines import evidence_seen as seen
from engines.channel_images import Evidence
from engines.evidence import verify_image
from engines.promotion import EvidenceState
from engines.store.store import ObjectStore
from planyard.core.errors import IntegrityError
from planyard.core.findings import Finding
from planyard.edge.clock import utc_now
from planyard.edge.cosign_flags import CosignError


def evidence_verifier(
    store: ObjectStore,
    trust: Trust,
    *,
    root: Path,
    environment: Mapping[str, str],
    gpus: Sequence[str] = (),
) -> Evidence:
    """Verifies the evidence of an image, on these GPUs of the matrix, against `trust`.

    What is not genuine becomes a finding; that cosign could not do its work is raised, because
    then nothing is known. The highest version seen is remembered below `root`, as `verify` does.
    """
    judged: list[str | None] = [*sorted(set(gpus))] or [None]
    verifier = verifier_of(trust, environment=environment)
    name, memory = name_of(trust, environment=environment), seen.seen_file(root)

    def verify(image: str) -> EvidenceState:
        place = {"store": store.url, "image": image, "signer": name}
        found: dict[Finding, None] = {}
        entry = ""
        for gpu in judged:
            try:
                verdict = verify_image(
                    store,
                    image,
                    verifier=verifier,
                    now=utc_now(),
                    trusted_version=seen.seen_version(memory, **place),
                    gpu=gpu,
                )
            except CosignError:
                raise
            except IntegrityError as error:
                return EvidenceState(findings=(_not_genuine(error),))
            seen.record_version(memory, verdict.version, **place)
            found |= dict.fromkeys(verdict.findings)
            entry = verdict.entry
        return EvidenceState(entry=entry, findings=tuple(found))

    return verify


def _not_genuine(error: IntegrityError) -> Finding:
    return Finding(
        gate="signature",
        rule="signature.not-genuine",
        message=error.message,
        evidence=tuple(error.log_tail),
    )
