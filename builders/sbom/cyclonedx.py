"""A bill as a CycloneDX 1.6 document, by the CycloneDX project's own library.

https://cyclonedx.org/docs/1.6/json/. The image is the document's subject; its layers are files,
packages are libraries. How a package is known is a property, `planyard:known`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime

from cyclonedx.model import (
    AttachedText,
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component as Part
from cyclonedx.model.component import ComponentType
from cyclonedx.model.component_evidence import ComponentEvidence, Occurrence
from cyclonedx.model.license import (
    DisjunctiveLicense,
    License,
    LicenseAcknowledgement,
    LicenseExpression,
)
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.spdx import is_supported_id
from packageurl import PackageURL

from builders.sbom.bill import Bill, Component, sha256_of
from builders.sbom.licences import Licence
from planyard.core.digest import canonical_json

_IMAGE = "image"
_NAMESPACE = uuid.UUID("9f0b7c52-6d0e-5d51-8d8e-4b3f2a1c7e60")
"""Any constant: a serial number is this and the bill's identity, so that equal bills have one."""


def cyclonedx_document(bill: Bill) -> bytes:
    """The document as canonical JSON: equal bills give equal bytes."""
    outputter = make_outputter(_document(bill), OutputFormat.JSON, SchemaVersion.V1_6)
    return canonical_json(json.loads(outputter.output_as_string()))


def _document(bill: Bill) -> Bom:
    subject = Part(
        name=bill.name,
        version=bill.image,
        type=ComponentType.CONTAINER,
        bom_ref=_IMAGE,
        purl=PackageURL.from_string(bill.purl),
        hashes=_hashes(bill.sha256),
    )
    tool = Part(name="planyard", version=bill.planyard_version, type=ComponentType.APPLICATION)
    layers = [_layer(digest) for digest in bill.layers]
    parts = {each.ref: _part(each) for each in bill.components}
    document = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, bill.identity),
        components=[*layers, *parts.values()],
        metadata=BomMetaData(
            component=subject,
            timestamp=datetime.fromisoformat(bill.created),
            tools=ToolRepository(components=[tool]),
        ),
    )
    contained = [parts[each.ref] for each in bill.components if each.is_contained]
    document.register_dependency(subject, [*layers, *contained])
    return document


def _layer(digest: str) -> Part:
    return Part(
        name=digest,
        type=ComponentType.FILE,
        bom_ref=f"layer-{digest.removeprefix('sha256:')}",
        description="a layer of the image",
        hashes=_hashes(sha256_of(digest)),
    )


def _part(component: Component) -> Part:
    is_project = component.kind == "project"
    properties = [Property(name="planyard:known", value=each) for each in component.known]
    if component.layer:
        properties.append(Property(name="planyard:layer", value=component.layer))
    places = [Occurrence(location=path) for path in component.paths]
    homepage = ExternalReference(
        type=ExternalReferenceType.WEBSITE, url=XsUri(component.homepage or "about:blank")
    )
    return Part(
        name=component.name,
        version=component.version or None,
        type=ComponentType.APPLICATION if is_project else ComponentType.LIBRARY,
        bom_ref=component.ref,
        description=component.description or None,
        purl=PackageURL.from_string(component.purl) if component.purl else None,
        hashes=_hashes(component.sha256),
        licenses=_licences(component.licences),
        external_references=[homepage] if component.homepage else None,
        properties=properties,
        evidence=ComponentEvidence(occurrences=places) if places else None,
    )


def _hashes(sha256: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else []


def _licences(declared: Sequence[Licence]) -> list[License]:
    """The licences, in the way CycloneDX allows: ids and names, or one expression and no other."""
    said = LicenseAcknowledgement.DECLARED
    simple = [each for each in declared if is_supported_id(each.expression)]
    if len(simple) < len(declared) and all(each.expression for each in declared):
        value = declared[0].expression
        if len(declared) > 1:
            value = " AND ".join(each.term for each in declared)
        return [LicenseExpression(value, acknowledgement=said)]
    return [
        DisjunctiveLicense(id=each.expression, acknowledgement=said)
        if each in simple
        else DisjunctiveLicense(
            name=each.expression or each.title,
            text=AttachedText(content=each.words) if each.title != each.words else None,
            acknowledgement=said,
        )
        for each in declared
    ]
