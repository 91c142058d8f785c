"""Whether a move of a channel asks for signed evidence, whose, and how that is verified.

It does when the matrix says `promotion.signed`, or an option does. Where the matrix names the
signer, nobody else can be named; without a matrix, only options say it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from builders.signing import Trust, trust_from
from engines.channels.images import Evidence
from engines.channels.promotion import EvidenceState
from engines.store.store import ObjectStore
from planyard.core.errors import InputError, IntegrityError
from planyard.core.findings import Finding
from planyard.core.matrix import Promotion
from planyard.edge.cosign_flags import CosignError

_READ_BYTES = (1 << 20) + 1  # one more than the reader takes, so that it can say so


def promotion_of(matrix: Path, *, optional: bool) -> Promotion:
    """What a matrix asks of a promotion; where it is `optional` and not there, nothing.

    Nothing but the file is read: to move a channel, its locks and models need not be here.
    """
    try:
        with matrix.open("rb") as file:
            data = file.read(_READ_BYTES)
    except FileNotFoundError as error:
        if optional:
            return Promotion()
        raise InputError([f"{matrix}: cannot be read: {error.strerror}"]) from error
    except OSError as error:
        raise InputError([f"{matrix}: cannot be read: {error.strerror}"]) from error
    from planyard.core.reader import load_matrix

    return load_matrix(data, name=matrix.name).matrix.promotion


def trust_wanted(
    promotion: Promotion,
    option: Trust,
    *,
    required: bool,
    root: Path,
    environment: Mapping[str, str],
) -> Trust | None:
    """Whose signature has to be there; None when none is asked for. `root` is the matrix's folder.

    Raises InputError when it is asked for and nobody is named, or the matrix names another.
    """
    named = bool(promotion.key or promotion.identity)
    given = option != Trust()
    if named and given:
        raise InputError(
            ["the matrix says whose signature counts (promotion): an option cannot say another"],
            mend="leave out --key, --identity and --issuer, or change the matrix",
        )
    if not (promotion.signed or required or given):
        return None
    if named:
        key = str(root / promotion.key) if promotion.key else None
        return Trust(key=key, identity=promotion.identity, issuer=promotion.issuer)
    return trust_from(
        key=option.key, identity=option.identity, issuer=option.issuer, environment=environment
    )


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
    from builders.witness import verify_stored_image

    judged: list[str | None] = [*sorted(set(gpus))] or [None]

    def verify(image: str) -> EvidenceState:
        found: dict[Finding, None] = {}
        entry = ""
        for gpu in judged:
            try:
                verdict = verify_stored_image(
                    store, image, root=root, trust=trust, gpu=gpu, environment=environment
                )
            except CosignError:
                raise
            except IntegrityError as error:
                return EvidenceState(findings=(_not_genuine(error),))
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
