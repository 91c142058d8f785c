"""Objects in real registries: Debian's 2.8, without the referrers API, and crane's, with it."""

from __future__ import annotations

import base64
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.store import objects, oci_names
from engines.store.oci import OCIObjects
from engines.store.oci_referrers import fallback_tag
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.core.registry_address import Address, parse_address
from planyard.edge import proc
from planyard.edge.registry import IMAGE_INDEX, IMAGE_MANIFEST, Registry
from tests.places_oci import serve_crane, serve_debian
from tests.servers import Web, https_server, make_authority

pytestmark = pytest.mark.registry

IMAGE_CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
LAYER = os.urandom(5000)


@pytest.fixture(scope="module", params=["debian", "crane"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def address(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    serve = {"debian": serve_debian, "crane": serve_crane}[kind]
    with serve(tmp_path_factory.mktemp(kind)) as found:
        yield found


@pytest.fixture
def url(address: str, request: pytest.FixtureRequest) -> str:
    """A repository for one test."""
    name = "".join(each for each in request.node.originalname.lower() if each.isalnum())
    return f"oci://{address}/tests/{name}"


def put(held: OCIObjects, data: bytes, name: Callable[[str], str] = objects.blob_name) -> str:
    named = name(digest_of_bytes(data))
    held.write(named, data)
    return named


def put_image(held: OCIObjects) -> bytes:
    """An image with its parts, as the store writes it: the manifest last."""
    for part in (IMAGE_CONFIG, LAYER):
        put(held, part)

    def described(kind: str, data: bytes) -> dict[str, object]:
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": digest_of_bytes(data), "size": len(data)}

    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": described("config.v1+json", IMAGE_CONFIG),
            "layers": [described("layer.v1.tar+gzip", LAYER)],
        }
    )
    put(held, manifest)
    return manifest


def entry(image: str, document: bytes, kind: str = "snapshots") -> str:
    return objects.entry_name(kind, image, digest_of_bytes(document))


def test_what_another_program_wrote_is_there(url: str) -> None:
    data = os.urandom(3 << 20)
    name = put(
        OCIObjects.from_url(url), data, lambda it: objects.pack_name(digest_of_bytes(b"f"), it)
    )
    held = OCIObjects.from_url(url)
    assert [(each.name, each.size_bytes) for each in held.listing("packs/")] == [(name, len(data))]
    assert held.size(name) == len(data)
    pieces = list(held.read(name))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 1 << 20
    assert b"".join(held.read(name, start=1_234_567, length=99)) == data[1_234_567:1_234_666]
    assert b"".join(held.read(name, start=len(data) - 5, length=99)) == data[-5:]
    assert list(held.read(name, start=len(data))) == []


def test_a_blob_of_another_repository_is_not_an_object(url: str) -> None:
    """The bytes alone, without a tag, may be collected at any time."""
    data = b"pushed by somebody"
    Registry(parse_address(url)).upload_blob(digest_of_bytes(data), size_bytes=len(data), body=data)
    held = OCIObjects.from_url(url)
    name = objects.blob_name(digest_of_bytes(data))
    assert held.size(name) is None
    with pytest.raises(FileNotFoundError):
        held.read(name)


def test_an_image_can_be_pulled_by_its_digest(url: str, tmp_path: Path) -> None:
    held = OCIObjects.from_url(url)
    manifest = put_image(held)
    digest = digest_of_bytes(manifest)
    args = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--preserve-digests"]
    source = f"docker://{url.removeprefix('oci://')}@{digest}"
    proc.run([*args, source, f"dir:{tmp_path / 'image'}"], timeout_seconds=60)
    assert (tmp_path / "image" / "manifest.json").read_bytes() == manifest
    assert (tmp_path / "image" / digest_of_bytes(LAYER)[7:]).read_bytes() == LAYER
    name = objects.blob_name(digest)
    again = OCIObjects.from_url(url)
    assert again.size(name) == len(manifest)
    assert b"".join(again.read(name)) == manifest
    assert b"".join(again.read(name, start=3, length=10)) == manifest[3:13]
    assert name in [each.name for each in again.listing("blobs/sha256/")]
    again.remove(name)
    assert held.size(name) is None
    assert name not in [each.name for each in again.listing("blobs/sha256/")]


def test_a_manifest_whose_layers_are_elsewhere_is_kept_as_bytes(url: str) -> None:
    nowhere = {"digest": digest_of_bytes(os.urandom(9)), "size": 9, "mediaType": "x/y"}
    data = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": nowhere,
            "layers": [nowhere],
        }
    )
    held = OCIObjects.from_url(url)
    name = put(held, data)
    assert held.size(name) == len(data)
    assert b"".join(held.read(name)) == data
    assert [each.name for each in OCIObjects.from_url(url).listing("blobs/sha256/")] == [name]


def test_64_writers_of_one_image_are_all_listed(url: str, kind: str) -> None:
    image = digest_of_bytes(put_image(OCIObjects.from_url(url)))
    documents = [b"entry %d" % number for number in range(64)]
    names = sorted(entry(image, document) for document in documents)
    writers = [OCIObjects.from_url(url) for _ in range(4)]

    def write(number: int) -> None:
        writers[number % 4].write(entry(image, documents[number]), documents[number])

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(write, range(64)))
    held = OCIObjects.from_url(url)
    prefix = f"index/snapshots/{image[7:]}/"
    assert [each.name for each in held.listing(prefix)] == names
    # What oras or cosign would find: each entry, by the API or by the fallback tag.
    found = held.referrers(image)
    assert sorted(each["annotations"]["io.planyard.object"] for each in found) == names
    if kind == "debian":  # crane takes the media type of the configuration for it
        types = {each["artifactType"] for each in found}
        assert types == {"application/vnd.planyard.index.snapshots.v1"}
    index = Registry(parse_address(url)).manifest(fallback_tag(image))
    assert (index is None) == (kind == "crane")
    if index:
        document = json.loads(index)
        assert document["schemaVersion"] == 2
        assert document["mediaType"] == IMAGE_INDEX
        assert len(document["manifests"]) == 64
    registry = Registry(parse_address(url))
    for each in found:
        manifest = registry.manifest(each["digest"])
        assert manifest is not None
        assert digest_of_bytes(manifest) == each["digest"]
        assert len(manifest) == each["size"]
        assert json.loads(manifest)["subject"]["digest"] == image


def test_64_writers_of_one_entry_end_with_one(url: str) -> None:
    image = digest_of_bytes(put_image(OCIObjects.from_url(url)))
    name = entry(image, b"the same")
    writers = [OCIObjects.from_url(url) for _ in range(4)]
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda number: writers[number % 4].write(name, b"the same"), range(64)))
    held = OCIObjects.from_url(url)
    assert [each.name for each in held.listing("index/")] == [name]
    assert len(held.referrers(image)) == 1


def test_only_what_is_said_of_a_stored_image_refers_to_it(url: str) -> None:
    held = OCIObjects.from_url(url)
    image = digest_of_bytes(put_image(held))
    stranger = digest_of_bytes(b"an image that is not here")
    held.write(entry(stranger, b"1"), b"1")
    held.write(entry(image, b"2", "recipes"), b"2")
    assert held.referrers(image) == []
    assert held.referrers(stranger) == []
    held.write(entry(image, b"3", "evidence"), b"3")
    (found,) = held.referrers(image)
    assert found["annotations"]["io.planyard.object"] == entry(image, b"3", "evidence")
    held.remove(entry(image, b"3", "evidence"))
    assert held.referrers(image) == []
    assert [each.name for each in held.listing("index/recipes/")] == [entry(image, b"2", "recipes")]


def test_a_large_object_takes_little_memory(url: str, tmp_path: Path) -> None:
    piece = os.urandom(1 << 20)
    data = tmp_path / "large"
    with data.open("wb") as file:
        for _ in range(48):
            file.write(piece)
    digest = "sha256:" + proc.run(["sha256sum", str(data)], timeout_seconds=60).output[:64]
    name = objects.blob_name(digest)
    held = OCIObjects.from_url(url)
    tracemalloc.start()
    held.write(name, data)
    held.remove(name)
    held.write(name, (piece for _ in range(48)))
    assert sum(map(len, held.read(name))) == 48 << 20
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 40 << 20


def test_bytes_that_are_there_are_not_sent_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = put(OCIObjects.from_url(url), b"once")
    monkeypatch.setattr(Registry, "upload_blob", lambda *_, **__: pytest.fail("sent again"))
    held = OCIObjects.from_url(url)
    held.remove(name)
    held.write(name, b"once")
    assert held.size(name) == 4


def test_wrong_bytes_leave_nothing(url: str) -> None:
    held = OCIObjects.from_url(url)
    name = objects.blob_name(digest_of_bytes(b"right"))
    for source in (b"wrong", iter([b"wr", b"ong"])):
        with pytest.raises(IntegrityError):
            held.write(name, source)
    assert held.size(name) is None
    assert list(held.listing("blobs/sha256/")) == []


def test_damage_of_another_size_is_told_and_not_hidden(kind: str, tmp_path: Path) -> None:
    """The bytes are damaged, not missing: who reads them finds out."""
    serve = {"debian": serve_debian, "crane": serve_crane}[kind]
    with serve(tmp_path) as address:
        held = OCIObjects.from_url(f"oci://{address}/store")
        name = put(held, b"as it should be")
        (path,) = (
            path
            for path in tmp_path.rglob("*")
            if path.is_file() and path.read_bytes() == b"as it should be"
        )
        path.chmod(0o644)
        path.write_bytes(b"short")
        if kind == "crane":  # it looks itself, and denies the blob
            assert held.size(name) is None
            held.write(name, b"as it should be")
            assert b"".join(held.read(name)) == b"as it should be"
        else:
            assert held.size(name) == 5
            assert b"".join(held.read(name)) == b"short"
            with pytest.raises(StoreError, match="has 5 bytes, not 15") as error:
                held.write(name, b"as it should be")
            assert "does not replace" in error.value.mend
        held.remove(name)
        assert held.size(name) is None


def test_the_tag_of_bytes_that_are_gone_can_be_removed(kind: str, tmp_path: Path) -> None:
    serve = {"debian": serve_debian, "crane": serve_crane}[kind]
    with serve(tmp_path) as address:
        held = OCIObjects.from_url(f"oci://{address}/store")
        name = put(held, b"soon gone")
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.read_bytes() == b"soon gone":
                path.unlink()
        assert held.size(name) is None
        with pytest.raises(FileNotFoundError):
            held.read(name)
        held.remove(name)
        assert list(held.listing("blobs/sha256/")) == []


# Channels


def test_channels_do_not_move_where_two_could_win(url: str) -> None:
    held = OCIObjects.from_url(url)
    with pytest.raises(StoreError, match="could both win") as error:
        held.move_pointer("production", b"x", expected=None)
    assert "?single-writer=yes" in error.value.mend
    assert held.pointer("production") is None
    assert list(held.pointers()) == []


def test_one_writer_moves_channels(url: str) -> None:
    held = OCIObjects.from_url(url + "?single-writer=yes")
    assert held.move_pointer("production", b"1", expected=None)
    first = held.pointer("production")
    assert first is not None
    assert not held.move_pointer("production", b"2", expected=None)
    assert not held.move_pointer("production", b"2", expected="sha256:" + "0" * 64)
    assert held.move_pointer("production", b"2", expected=first.token)
    assert held.move_pointer("a.canary", b"3", expected=None)
    other = OCIObjects.from_url(url)
    now = other.pointer("production")
    assert now is not None
    assert now.data == b"2"
    assert now.token != first.token
    assert list(other.pointers()) == ["a.canary", "production"]
    assert [each.name for area in objects.AREAS for each in other.listing(area)] == []


def test_a_tag_of_somebody_else_is_no_channel(url: str) -> None:
    held = OCIObjects.from_url(url)
    index = b'{"manifests":[],"schemaVersion":2}'
    registry = Registry(parse_address(url))
    registry.put_manifest("channel.odd", index, media_type=IMAGE_INDEX)
    with pytest.raises(StoreError, match=r"channel\.odd is not a channel"):
        held.pointer("odd")


def test_an_unknown_setting_in_the_address_is_refused() -> None:
    for query in ("single-writer=no", "x=y", "single-writer=yes&x=y"):
        with pytest.raises(InputError, match="is unknown"):
            OCIObjects.from_url(f"oci://localhost:5000/a?{query}")


# Debian's registry with a password


WORD_IN_BCRYPT = "$2y$04$abcdefghijklmnopqrstuuB/GrfUOm5dtrEiT8lcouu5XB5ftbWLi"
"""`htpasswd -nbB -C4 user word`."""


@pytest.fixture
def closed_registry(tmp_path: Path) -> Iterator[str]:
    """A registry that only user:word may use."""
    (tmp_path / "htpasswd").write_text(f"user:{WORD_IN_BCRYPT}\n")
    settings = {
        "AUTH": "htpasswd",
        "AUTH_HTPASSWD_REALM": "tests",
        "AUTH_HTPASSWD_PATH": str(tmp_path / "htpasswd"),
    }
    with serve_debian(tmp_path, **settings) as address:
        yield address


@pytest.mark.parametrize("password", ["word", "guess", None])
def test_a_password_opens_a_registry(
    closed_registry: str,
    password: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    if password:
        auth = base64.b64encode(f"user:{password}".encode()).decode()
        config = {"auths": {closed_registry: {"auth": auth}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
    held = OCIObjects.from_url(f"oci://{closed_registry}/store")
    if password == "word":
        name = put(held, b"behind a door")
        assert b"".join(held.read(name)) == b"behind a door"
        return
    with pytest.raises(StoreError, match="answers 401") as error:
        put(held, b"behind a door")
    assert error.value.mend == f"docker login {closed_registry}"
    assert "guess" not in str(error.value)


def test_a_registry_that_does_not_delete_says_so(tmp_path: Path) -> None:
    with serve_debian(tmp_path, STORAGE_DELETE_ENABLED="false") as address:
        held = OCIObjects.from_url(f"oci://{address}/store")
        name = put(held, b"for ever")
        with pytest.raises(StoreError, match="does not delete") as error:
            held.remove(name)
        assert "REGISTRY_STORAGE_DELETE_ENABLED" in error.value.mend
        assert held.size(name) == 8


def test_the_tags_are_as_documented(url: str) -> None:
    name = put(OCIObjects.from_url(url), b"hello")
    (tag,) = (tag for page in Registry(parse_address(url)).tag_pages() for tag in page)
    assert tag == "b.LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ.5"
    assert oci_names.name_and_size(tag) == (name, 5)


def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = make_authority(tmp_path / "authority")
    digest = digest_of_bytes(b"over tls")
    web = Web(files={f"/v2/store/blobs/{digest}": b"over tls"})
    with https_server(authority, web):
        host = web.url.removeprefix("https://")
        address = Address(host=host, repository="store")
        with pytest.raises(StoreError, match="cannot be trusted") as error:
            Registry(address).blob_size(digest)
        assert "SSL_CERT_FILE" in error.value.mend
        assert web.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
        pieces = Registry(address).open_blob(digest, start=2, stop=8)
        assert b"".join(pieces) == b"er tls"
