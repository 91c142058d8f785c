"""The two documents about an image: made, and kept in the store beside it.

The libraries behind them take half a second to import, so that is done when a document is made.
"""

from __future__ import annotations

import planyard
from builders.audit.contents import ImageContents
from builders.audit.owners import Ownership
from builders.sbom.bill import Bill, BuildInputs, bill_of
from builders.wheels import Requirement
from engines.sbom import SbomFormat, SbomRecord, put_sbom
from engines.store.protocol import Store
from planyard.core.results import ImageRecord, Package


def attach_sbom(
    store: Store,
    contents: ImageContents,
    ownership: Ownership,
    record: ImageRecord,
    *,
    wheels: tuple[Requirement, ...] = (),
    release: str = "",
) -> SbomRecord:
    """Make the bill of an image that was built here and keep it in the store, in both formats.

    `record` has the packages of its base, `wheels` is its lock, `release` the Debian release of its
    base. The image itself has to be stored. Equal arguments give equal documents.
    """
    inputs = BuildInputs(base=record.base, wheels=wheels, release=release)
    bill = bill_of(contents, ownership, inputs=inputs, planyard_version=planyard.__version__)
    documents: dict[SbomFormat, bytes] = {
        "spdx": document_of(bill, "spdx"),
        "cyclonedx": document_of(bill, "cyclonedx"),
    }
    return put_sbom(store, record.digest, documents, planyard_version=planyard.__version__)


def sbom_of(
    contents: ImageContents,
    ownership: Ownership,
    wanted: SbomFormat,
    *,
    base: tuple[Package, ...] = (),
    has_manifest: bool = True,
) -> bytes:
    """The bill of any image, from what is in it and the packages of its base, if they are known.

    An image without a manifest (in a docker archive) has no digest that a registry would know.
    """
    bill = bill_of(
        contents,
        ownership,
        inputs=BuildInputs(base=base),
        has_manifest=has_manifest,
        planyard_version=planyard.__version__,
    )
    return document_of(bill, wanted)


def document_of(bill: Bill, wanted: SbomFormat) -> bytes:
    """The bill in one of the formats."""
    if wanted == "spdx":
        from builders.sbom.spdx import spdx_document

        return spdx_document(bill)
    from builders.sbom.cyclonedx import cyclonedx_document

    return cyclonedx_document(bill)
