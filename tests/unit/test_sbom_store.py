"""Bills of materials in a store: found again, verified, and covered by what `sign` signs."""

from __future__ import annotations

import base64
import json
import os

import msgspec
import pytest

from builders.sbom.attach import attach_sbom
from engines.evidence import bills
from engines.evidence import statements as in_toto
from engines.evidence.sets import sign_image, verify_image
from engines.keeping.checking import check_store
from engines.keeping.copying import copy_images
from engines.keeping.gc import collect
from engines.keeping.marking import Policy
from engines.sbom import MEDIA_TYPES, SBOMS, put_sbom, read_sbom, sbom_of_image
from engines.store.fsck import Slice
from engines.store.local_store import LocalStore
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import IntegrityError, LookupMissError, StoreError
from planyard.core.findings import failures
from tests.images_by_hand import a_file, a_layer, an_image, owned, wheel
from tests.object_places import MemoryStore
from tests.signed_evidence import DAY_SECONDS, NOW, FakeKey, a_site
from tests.signed_evidence import an_image as a_stored_image

DOCUMENTS = {"spdx": b'{"spdxVersion":"SPDX-2.3"}', "cyclonedx": b'{"bomFormat":"CycloneDX"}'}
KEY = FakeKey()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def image(store):
    return a_stored_image(store)


def put(store, image, documents=None, version="0.1.0"):
    return put_sbom(store, image.digest, documents or DOCUMENTS, planyard_version=version)


def test_what_was_put_is_found_again(store, image):
    assert sbom_of_image(store, image.digest) is None
    record = put(store, image)
    assert sbom_of_image(store, image.digest) == record
    for name, data in DOCUMENTS.items():
        assert read_sbom(store, record, name) == data
        assert record.documents[name].digest == digest_of_bytes(data)
        assert record.documents[name].size_bytes == len(data)


def test_the_same_bill_is_kept_once(store, image):
    assert put(store, image) == put(store, image)
    assert len(list(store.entries(SBOMS, image.digest))) == 1


def test_the_bill_of_the_newest_planyard_counts(store, image):
    for version in ("0.10.0", "0.9.9", "0.2"):
        put(store, image, {"spdx": version.encode()}, version=version)
    record = sbom_of_image(store, image.digest)
    assert record.planyard_version == "0.10.0"
    assert read_sbom(store, record, "spdx") == b"0.10.0"


def test_a_bill_whose_documents_are_gone_is_not_answered(store, image):
    old = put(store, image, {"spdx": b"old"}, version="0.1")
    new = put(store, image, {"spdx": b"new"}, version="0.2")
    store.objects.remove(f"blobs/sha256/{new.documents['spdx'].digest[7:]}")
    assert sbom_of_image(store, image.digest) == old


def test_an_image_that_is_not_stored_has_no_bill(store):
    with pytest.raises(StoreError, match="no bill of materials was entered"):
        put_sbom(store, digest_of_bytes(b"x"), DOCUMENTS, planyard_version="0.1")


def test_a_format_that_nobody_made_is_missed(store, image):
    record = put(store, image, {"spdx": b"x"})
    with pytest.raises(LookupMissError, match="cyclonedx"):
        read_sbom(store, record, "cyclonedx")


@pytest.mark.parametrize(
    "change",
    [
        {"image": digest_of_bytes(b"another")},
        {"schema": 2},
        {"documents": {"spdx": {"digest": "sha256:x", "size_bytes": 1}}},
        {"documents": {"other": {"digest": digest_of_bytes(b"x"), "size_bytes": 1}}},
        {"documents": {"spdx": {"digest": digest_of_bytes(b"x"), "size_bytes": 1 << 40}}},
    ],
)
def test_an_entry_that_is_none_is_damage(store, image, change):
    entry = msgspec.to_builtins(put(store, image)) | change
    store.put_entry(SBOMS, image.digest, canonical_json(entry))
    with pytest.raises(IntegrityError):
        sbom_of_image(store, image.digest)


# What a build attaches


def test_a_build_attaches_both_documents(store, image):
    contents = an_image(a_layer(a_file("/m", b"x")), image=image.digest)
    owners = owned({"/m": wheel("numpy", "2.4.6")})
    record = attach_sbom(store, contents, owners, image)
    assert record.image == image.digest
    assert set(record.documents) == set(MEDIA_TYPES)
    found = json.loads(read_sbom(store, record, "spdx"))
    names = {each["name"]: each for each in found["packages"]}
    # The record of the build has the packages of the base.
    assert names["libc6"]["checksums"][0]["checksumValue"] == "5" * 64
    assert attach_sbom(store, contents, owners, image) == record


# Evidence


@pytest.fixture
def site(store):
    """An image with plans that passed, ready to be signed."""
    return a_site(store)


def sign(store, image):
    return sign_image(
        store,
        image.digest,
        signer=KEY.sign,
        verifier=KEY.verify,
        now=NOW,
        expires_seconds=DAY_SECONDS,
    )


def verify(store, image):
    return verify_image(store, image.digest, verifier=KEY.verify, now=NOW, trusted_version=0)


def rules_of(verdict):
    return [each.rule for each in verdict.findings]


def test_the_statement_names_the_documents_by_their_hash(store, image):
    record = put(store, image)
    statement = bills.sbom_statement(record, image_name=image.name)
    assert statement.predicate_type == "https://in-toto.io/attestation/reference/v0.1"
    assert statement.digests == {image.digest}
    cyclonedx, spdx = statement.predicate["references"]
    assert spdx["digest"] == {"sha256": digest_of_bytes(DOCUMENTS["spdx"])[7:]}
    assert spdx["mediaType"] == "application/spdx+json"
    assert cyclonedx["mediaType"] == "application/vnd.cyclonedx+json"
    encoded = spdx["downloadLocation"].removeprefix("ni:///sha-256;")
    assert base64.urlsafe_b64decode(encoded + "=").hex() == spdx["digest"]["sha256"]


def test_signing_signs_the_bill_too(store, site):
    put(store, site)
    signed = sign(store, site)
    assert bills.REFERENCE_TYPE in [each.predicate_type for each in signed.statements]
    verdict = verify(store, site)
    assert bills.REFERENCE_TYPE in [each.predicate_type for each in verdict.statements]
    assert rules_of(verdict) == []


def test_an_image_without_a_bill_is_signed_as_before(store, site):
    types = [each.predicate_type for each in sign(store, site).statements]
    assert bills.REFERENCE_TYPE not in types
    assert rules_of(verify(store, site)) == []


def test_a_bill_that_nobody_signed_is_a_warning(store, site):
    sign(store, site)
    put(store, site)
    verdict = verify(store, site)
    assert rules_of(verdict) == ["evidence.unsigned-sbom"]
    assert failures(verdict.findings) == ()


def test_another_bill_in_the_place_of_the_signed_one_is_seen(store, site):
    put(store, site, version="0.1.0")
    sign(store, site)
    put(store, site, {"spdx": b"forged", "cyclonedx": DOCUMENTS["cyclonedx"]}, version="9.9.9")
    (finding,) = verify(store, site).findings
    assert finding.evidence == (f"spdx: {digest_of_bytes(b'forged')}",)


@pytest.mark.parametrize(
    "references", [None, "x", [], [1], [{}], [{"digest": []}], [{"digest": {"sha256": 1}}]]
)
def test_a_reference_of_another_form_names_nothing(store, image, references):
    record = put(store, image)
    statement = msgspec.structs.replace(
        bills.sbom_statement(record, image_name="x"), predicate={"references": references}
    )
    assert len(bills.unsigned_bill([statement], record)) == 1


def test_only_references_count(store, image):
    record = put(store, image)
    statement = msgspec.structs.replace(
        bills.sbom_statement(record, image_name="x"), predicate_type=in_toto.SNAPSHOT_TYPE
    )
    assert len(bills.unsigned_bill([statement], record)) == 1


# Keeping


@pytest.fixture
def places(tmp_path):
    return LocalStore(tmp_path / "one"), LocalStore(tmp_path / "two")


def collected(place):
    """The store once everything in it is old and what nothing leads to is gone."""
    for path in place.root.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))
    collect(place, Policy(grace_seconds=60))
    return place


def test_a_bill_stays_as_long_as_its_image_and_no_longer(places):
    place, _ = places
    image = a_site(place)
    record = put(place, image)
    assert sbom_of_image(collected(place), image.digest) == record
    for listed in list(place.objects.listing("index/snapshots/")):
        place.objects.remove(listed.name)
    collected(place)
    assert not place.has_blob(image.digest)
    assert list(place.keys(SBOMS)) == []
    assert not place.has_blob(record.documents["spdx"].digest)


def test_a_copy_takes_the_bill_along(places):
    source, target = places
    image = a_site(source)
    record = put(source, image)
    assert copy_images(source, target).left_out == ()
    assert sbom_of_image(target, image.digest) == record


def test_a_copy_leaves_out_a_bill_that_is_not_whole(places):
    source, target = places
    image = a_site(source)
    record = put(source, image)
    source.objects.remove(f"blobs/sha256/{record.documents['spdx'].digest[7:]}")
    (left,) = copy_images(source, target).left_out
    assert left.what == "a bill of materials"
    assert list(target.entries(SBOMS, image.digest)) == []


def test_a_check_says_that_a_document_is_missing(places):
    place, _ = places
    image = a_site(place)
    record = put(place, image)
    assert check_store(place, part=Slice()).is_sound
    place.objects.remove(f"blobs/sha256/{record.documents['spdx'].digest[7:]}")
    (problem,) = check_store(place, part=Slice()).problems
    assert problem.breaks[0].startswith("bill of materials")
