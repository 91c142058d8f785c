"""Signing and verifying an image of a store as the verbs do it: keys, cosign, what was seen before.

What was seen is remembered in the workspace, so that an older state cannot be passed off as the
newest. `sign`, `verify`, `promote` and `build --sign` all come through here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from builders import signing
from builders.signing import Trust
from engines.evidence import seen
from engines.evidence.sets import EvidenceSet, EvidenceVerdict, sign_image, verify_image
from planyard.edge.clock import utc_now

if TYPE_CHECKING:
    from engines.store.protocol import Store

DAY_SECONDS = 86_400


def sign_stored_image(
    store: Store,
    image: str,
    *,
    root: Path,
    key: str | None = None,
    verify_key: str | None = None,
    identity: str | None = None,
    issuer: str | None = None,
    expires_days: int = 90,
) -> tuple[EvidenceSet, bool]:
    """Sign the evidence of an image; the second value says whether it was verified afterwards.

    Raises IntegrityError where there is no good cosign or its signature does not hold.
    """
    environment = dict(os.environ)
    chosen = signing.signing_key(key, environment=environment)
    trust = signing.trust_of_signer(
        chosen, public_key=verify_key, identity=identity, issuer=issuer, environment=environment
    )
    name = signing.name_of(trust, environment=environment) if trust else ""
    memory, place = seen.seen_file(root), _place(store, image, signer=name)
    made = sign_image(
        store,
        image,
        signer=signing.signer_of(chosen, environment=environment),
        verifier=signing.verifier_of(trust, environment=environment) if trust else None,
        now=utc_now(),
        expires_seconds=expires_days * DAY_SECONDS,
        trusted_version=seen.seen_version(memory, **place) if trust else 0,
    )
    if trust:
        seen.record_version(memory, made.version, **place)
    return made, trust is not None


def verify_stored_image(
    store: Store,
    image: str,
    *,
    root: Path,
    trust: Trust,
    gpu: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> EvidenceVerdict:
    """Verify the evidence of an image; raises IntegrityError when it is not genuine or too old."""
    environment = dict(os.environ if environment is None else environment)
    name = signing.name_of(trust, environment=environment)
    memory, place = seen.seen_file(root), _place(store, image, signer=name)
    found = verify_image(
        store,
        image,
        verifier=signing.verifier_of(trust, environment=environment),
        now=utc_now(),
        trusted_version=seen.seen_version(memory, **place),
        gpu=gpu,
    )
    seen.record_version(memory, found.version, **place)
    return found


def _place(store: Store, image: str, *, signer: str) -> dict[str, str]:
    """Under what the version that was seen is remembered."""
    return {"store": store.url, "image": image, "signer": signer}
