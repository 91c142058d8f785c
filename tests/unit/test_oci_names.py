"""Names of objects and their tags: one to one, within what a registry allows."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as some

from engines.store import objects, oci_names
from planyard.core.digest import digest_of_bytes

TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")  # as the distribution specification has it
digests = some.binary(min_size=32, max_size=32).map(lambda data: f"sha256:{data.hex()}")
kinds = some.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True)
names = some.one_of(
    some.builds(objects.blob_name, digests),
    some.builds(objects.pack_name, digests, digests),
    some.builds(objects.map_name, digests, digests),
    some.builds(objects.entry_name, kinds, digests, digests),
)
sizes = some.integers(min_value=0, max_value=36**6 - 1)


@given(names, sizes)
def test_a_tag_gives_the_name_and_the_size_back(name, size_bytes):
    tag = oci_names.tag_of(name, size_bytes)
    assert TAG.fullmatch(tag)
    assert oci_names.name_and_size(tag) == (name, size_bytes)


@given(names, sizes)
def test_every_start_of_a_name_is_a_start_of_its_tag(name, size_bytes):
    tag = oci_names.tag_of(name, size_bytes)
    assert tag.startswith(oci_names.stem_of(name) + ".")
    for at, sign in enumerate(name):
        prefix = name[: at + 1]
        if sign == "/" and prefix != "blobs/":
            assert tag.startswith(oci_names.tag_prefix_of(prefix))


@given(names, names)
def test_two_names_have_two_tags(one, other):
    assert (oci_names.stem_of(one) == oci_names.stem_of(other)) == (one == other)


def test_the_longest_tag_fits_exactly():
    name = objects.entry_name("k" * 32, "sha256:" + "f" * 64, "sha256:" + "f" * 64)
    assert len(oci_names.tag_of(name, 64 << 20)) == oci_names.TAG_LIMIT
    blob = objects.blob_name("sha256:" + "f" * 64)
    assert len(oci_names.tag_of(blob, 2**63)) < oci_names.TAG_LIMIT


BLOB = oci_names.tag_of(objects.blob_name(digest_of_bytes(b"x")), 35)


@pytest.mark.parametrize(
    "tag",
    [
        "latest",
        "channel.production",
        "",
        BLOB[:-2],
        BLOB + ".1",
        BLOB[:-1] + "00z",
        BLOB.replace("b.", "c."),
        "p" + BLOB[1:],
        BLOB[:44] + chr(ord(BLOB[44]) + 1) + BLOB[45:],  # the same 32 bytes, spelt otherwise
    ],
)
def test_other_tags_are_not_ours(tag):
    assert oci_names.name_and_size(BLOB)
    assert oci_names.name_and_size(tag) is None


def test_what_is_an_image_manifest():
    digest = digest_of_bytes(b"x")
    one = {"schemaVersion": 2, "config": {"digest": digest}, "layers": [{"digest": digest}]}
    assert oci_names.image_type_of(one) == "application/vnd.oci.image.manifest.v1+json"
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    assert oci_names.image_type_of(one | {"mediaType": docker}) == docker
    for other in (
        [],
        None,
        {},
        one | {"schemaVersion": 1},
        one | {"mediaType": "application/vnd.oci.image.index.v1+json"},
        one | {"layers": {}},
        one | {"layers": [1]},
        one | {"config": {"digest": "sha256:x"}},
        one | {"config": None},
    ):
        assert oci_names.image_type_of(other) is None


def test_an_artifact_says_what_it_holds():
    name = objects.entry_name("snapshots", digest_of_bytes(b"image"), digest_of_bytes(b"x"))
    artifact_type = oci_names.artifact_type_of(name)
    layer = oci_names.layer_of(digest_of_bytes(b"x"), 1)
    data = oci_names.artifact_manifest(name, layer=layer, artifact_type=artifact_type)
    manifest = json.loads(data)
    assert manifest["artifactType"] == "application/vnd.planyard.index.snapshots.v1"
    assert manifest["annotations"] == {"io.planyard.object": name}
    assert manifest["layers"] == [layer]
    assert "subject" not in manifest
    assert oci_names.artifact_type_of(objects.blob_name(digest_of_bytes(b"x"))) == (
        "application/vnd.planyard.blob.v1"
    )
