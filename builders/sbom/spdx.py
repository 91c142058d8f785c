"""A bill as an SPDX 2.3 document, by the SPDX project's own library.

https://spdx.github.io/spdx-spec/v2.3/. The image contains its layers, a layer the packages whose
metadata lies in it. What no metadata places is contained in the image. What only the build
names is a dependency of the build, and not said to be contained. Files are not listed: SPDX
wants their SHA-1, and a package's own list of files is in the image.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from spdx_tools.spdx.jsonschema.document_converter import DocumentConverter
from spdx_tools.spdx.model.actor import Actor, ActorType
from spdx_tools.spdx.model.checksum import Checksum, ChecksumAlgorithm
from spdx_tools.spdx.model.document import CreationInfo, Document
from spdx_tools.spdx.model.extracted_licensing_info import ExtractedLicensingInfo
from spdx_tools.spdx.model.package import (
    ExternalPackageRef,
    ExternalPackageRefCategory,
    Package,
    PackagePurpose,
)
from spdx_tools.spdx.model.relationship import Relationship, RelationshipType
from spdx_tools.spdx.model.spdx_no_assertion import SpdxNoAssertion

from builders.sbom.bill import Bill, Component, sha256_of
from builders.sbom.licences import Licence, joined
from planyard.core.digest import canonical_json

_DOCUMENT = "SPDXRef-DOCUMENT"
_IMAGE = "SPDXRef-image"
_COMMENT = (
    "Packages are known from their metadata in the image, or from what the build installed; each "
    "says which. Licences are those that packages declare. Nobody concluded any."
)


def spdx_document(bill: Bill) -> bytes:
    """The document as canonical JSON: equal bills give equal bytes."""
    converter = DocumentConverter()  # type: ignore[no-untyped-call]
    found = converter.convert(_document(bill))
    for package in found["packages"]:
        for reference in package.get("externalRefs", ()):
            # SPDX 2.3 has a hyphen there; the library writes 2.2's underscore (spdx-spec#798).
            reference["referenceCategory"] = reference["referenceCategory"].replace("_", "-")
    return canonical_json(found)


def _document(bill: Bill) -> Document:
    return Document(
        creation_info=CreationInfo(
            spdx_version="SPDX-2.3",
            spdx_id=_DOCUMENT,
            name=bill.name,
            document_namespace=f"urn:planyard:sbom:{bill.identity}",
            creators=[Actor(ActorType.TOOL, f"planyard-{bill.planyard_version}")],
            created=datetime.strptime(bill.created, "%Y-%m-%dT%H:%M:%SZ"),
            document_comment=_COMMENT,
        ),
        packages=[
            _image(bill),
            *(_layer(digest) for digest in bill.layers),
            *(_package(each) for each in bill.components),
        ],
        relationships=_relationships(bill),
        extracted_licensing_info=_texts(bill),
    )


def _image(bill: Bill) -> Package:
    return _made(
        _IMAGE,
        bill.name,
        version=bill.image,
        purl=bill.purl,
        sha256=bill.sha256,
        primary_package_purpose=PackagePurpose.CONTAINER,
    )


def _layer(digest: str) -> Package:
    return _made(
        _ref_of_layer(digest),
        digest,
        sha256=sha256_of(digest),
        comment="a layer of the image",
        primary_package_purpose=PackagePurpose.ARCHIVE,
    )


def _package(component: Component) -> Package:
    known = f"known from: {'; '.join(component.known)}"
    paths = f"; metadata: {', '.join(component.paths)}" if component.paths else ""
    return _made(
        f"SPDXRef-{component.ref}",
        component.name,
        version=component.version,
        purl=component.purl,
        sha256=component.sha256,
        licences=component.licences,
        homepage=component.homepage or None,
        description=component.description or None,
        comment=known + paths,
    )


def _made(
    spdx_id: str,
    name: str,
    *,
    version: str = "",
    purl: str = "",
    sha256: str = "",
    licences: tuple[Licence, ...] = (),
    **further: Any,
) -> Package:
    """A package of which nobody analyzed the files; what is not known is said to be so."""
    category = ExternalPackageRefCategory.PACKAGE_MANAGER
    terms = [each.term or each.reference for each in licences]
    return Package(
        spdx_id=spdx_id,
        name=name,
        version=version or None,
        download_location=SpdxNoAssertion(),
        files_analyzed=False,
        checksums=[Checksum(ChecksumAlgorithm.SHA256, sha256)] if sha256 else [],
        license_concluded=SpdxNoAssertion(),
        license_declared=joined(terms) if terms else SpdxNoAssertion(),
        copyright_text=SpdxNoAssertion(),
        external_references=[ExternalPackageRef(category, "purl", purl)] if purl else [],
        **further,
    )


def _relationships(bill: Bill) -> list[Relationship]:
    contains = RelationshipType.CONTAINS
    found = [Relationship(_DOCUMENT, RelationshipType.DESCRIBES, _IMAGE)]
    found += [Relationship(_IMAGE, contains, _ref_of_layer(digest)) for digest in bill.layers]
    for component in bill.components:
        ref = f"SPDXRef-{component.ref}"
        place = _ref_of_layer(component.layer) if component.layer else _IMAGE
        if component.is_contained:
            found.append(Relationship(place, contains, ref))
        else:
            found.append(Relationship(ref, RelationshipType.BUILD_DEPENDENCY_OF, _IMAGE))
    return found


def _texts(bill: Bill) -> list[ExtractedLicensingInfo]:
    """The words of every licence that is not on SPDX's list."""
    others = {
        licence.reference: licence
        for component in bill.components
        for licence in component.licences
        if not licence.expression
    }
    return [
        ExtractedLicensingInfo(
            license_id=reference, extracted_text=licence.words, license_name=licence.title
        )
        for reference, licence in sorted(others.items())
    ]


def _ref_of_layer(digest: str) -> str:
    return f"SPDXRef-layer-{digest.removeprefix('sha256:')}"
