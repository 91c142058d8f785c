"""The audit of an image: exact sums, layers known from before, and where an image may lie."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders.audit import known_layers
from builders.audit.archives import image_in_archive
from builders.audit.audit import audit_image
from builders.audit.audit_text import show_audit
from builders.audit.known_layers import keep_index, known_index
from builders.audit.owners import find_owners
from builders.audit.references import find_image
from builders.audit.sources import ImageSource, contents_of, image_in_layout, image_in_store
from builders.audit.verdict import asked_of, judge_image
from builders.oci import StoredImage, store_image
from engines.index import put_image
from engines.keeping import reach
from planyard.core.contents import ImageAudit, LayerIndex
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, LookupMissError, StoreError
from planyard.core.results import ImageRecord
from planyard.edge.console import Console
from tests import audited, tars
from tests.object_places import MemoryStore
from tests.unit.test_image_owners import DISTROLESS, SITE, WHEEL

LOWER = [*DISTROLESS, tars.file("lib/libc.so.6", b"c" * 5000), tars.file("old", b"o" * 900)]
UPPER = [*WHEEL, tars.file("app/main.py", b"print()"), tars.file(".wh.old")]


def audited_image() -> ImageAudit:
    contents = audited.contents_of(LOWER, UPPER, [])
    return audit_image(contents, find_owners(contents))


def assert_exact(audit: ImageAudit) -> None:
    """Owners to layers, layers to image: to the byte."""
    for layer in audit.layers:
        assert sum(each.pull_bytes for each in layer.owners) == layer.pull_bytes
        assert sum(each.unpacked_bytes for each in layer.owners) == layer.unpacked_bytes
    assert sum(each.pull_bytes for each in audit.owners) == audit.pull_bytes
    assert sum(each.unpacked_bytes for each in audit.owners) == audit.unpacked_bytes
    assert sum(each.unpacked_bytes for each in audit.layers) == audit.unpacked_bytes


def test_the_sums_are_exact() -> None:
    audit = audited_image()
    assert_exact(audit)
    assert audit.pull_bytes == 900 + sum(each.pull_bytes for each in audit.layers)
    by_name = {(each.owner.kind, each.owner.name): each for each in audit.owners}
    assert by_name["wheel", "numpy"].files == 5
    assert by_name["project", ""].unpacked_bytes == 907
    assert by_name["image", ""].pull_bytes >= 900


def test_what_later_layers_hide_is_wasted() -> None:
    assert [layer.wasted_bytes for layer in audited_image().layers] == [900, 0, 0]
    twice = audited.contents_of(
        [tars.file("f", b"123"), tars.file("f", b"4")], [tars.file("f", b"5")]
    )
    audit = audit_image(twice, find_owners(twice))
    assert_exact(audit)
    assert [layer.wasted_bytes for layer in audit.layers] == [4, 0]
    once = audited.contents_of([tars.file("f", b"123"), tars.file("f", b"4")])
    assert [each.wasted_bytes for each in audit_image(once, find_owners(once)).layers] == [3]


def stored(
    tmp_path: Path, store: MemoryStore, *, config: dict[str, Any] | None = None
) -> StoredImage:
    layers = [tars.tar(LOWER), tars.tar(UPPER)]
    archive = tars.docker_archive(tmp_path / "saved.tar", layers, config=config)
    return store_image(archive, store=store, scratch=tmp_path, epoch_seconds=1)


def test_a_layer_is_read_once_and_then_known(tmp_path: Path) -> None:
    store = MemoryStore()
    image = stored(tmp_path, store)
    source = image_in_store(store, image.digest)
    contents, read = contents_of(source, store=store)
    assert read == tuple(layer.digest for layer in image.layers)
    assert contents.layers == image.indexes
    assert contents.created_by == ("RUN step 0", "RUN step 1")
    for layer in image.layers:
        store.objects.held.pop(f"blobs/sha256/{layer.digest[7:]}", None)
    again, read = contents_of(source, store=store)
    assert (again.layers, read) == (contents.layers, ())
    assert again.pull_bytes == image.pull_bytes


def index() -> LayerIndex:
    return audited.index_of(*LOWER)


def known(store: MemoryStore, kept: LayerIndex, **changes: Any) -> LayerIndex | None:
    asked = {"diff_id": kept.diff_id, "pull_bytes": kept.pull_bytes, **changes}
    return known_index(store, kept.digest, **asked)


def test_an_index_of_another_layer_version_or_sum_is_not_used() -> None:
    for changes in (
        {"version": 0},
        {"rest_bytes": index().rest_bytes + 1},
        {"unpacked_bytes": 1},
        {"files": index().files[1:]},
    ):
        store = MemoryStore()
        keep_index(store, msgspec.structs.replace(index(), **changes))
        assert known(store, index()) is None
    store = MemoryStore()
    keep_index(store, index())
    assert known(store, index()) == index()
    assert known(store, index(), diff_id="sha256:" + "0" * 64) is None
    assert known(store, index(), pull_bytes=1) is None


@pytest.mark.parametrize("document", [b"", b"{}", b"x\x9c", gzip.compress(b"{}", mtime=0)])
def test_an_entry_that_is_no_index_is_not_used(document: bytes) -> None:
    store = MemoryStore()
    store.put_entry(known_layers.KIND, index().digest, document)
    assert known(store, index()) is None


def test_the_garbage_collector_knows_the_kind() -> None:
    said = reach.said_by(known_layers.KIND, index().digest, b"")
    assert known_layers.KIND in reach.KINDS
    assert (said.subject, said.blobs, said.mentions) == (
        index().digest,
        (),
        frozenset([index().digest]),
    )


def test_a_store_that_only_reads_is_audited_too(tmp_path: Path) -> None:
    store = MemoryStore()
    source = image_in_store(store, stored(tmp_path, store).digest)

    def refuse(*_: object) -> str:
        raise StoreError("read-only")

    store.put_entry = refuse  # type: ignore[method-assign]
    assert len(contents_of(source, store=store)[1]) == 2


def test_a_manifest_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    image = stored(tmp_path, store)
    manifest = json.loads(store.read_blob(image.digest, limit_bytes=1 << 20))
    manifest["layers"][0]["size"] += 1
    data = json.dumps(manifest).encode()
    store.put_blob(digest_of_bytes(data), [data])
    with pytest.raises(IntegrityError, match="manifest says"):
        contents_of(image_in_store(store, digest_of_bytes(data)), store=None)


def layout(tmp_path: Path) -> tuple[Path, StoredImage]:
    store = MemoryStore()
    image = stored(tmp_path, store)
    folder = tmp_path / "layout"
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    manifest = json.loads(store.read_blob(image.digest, limit_bytes=1 << 20))
    for digest in (image.digest, manifest["config"]["digest"], *(x.digest for x in image.layers)):
        (blobs / digest[7:]).write_bytes(b"".join(store.open_blob(digest)))
    named = {
        "digest": image.digest,
        "annotations": {"org.opencontainers.image.ref.name": "stable"},
    }
    (folder / "index.json").write_text(json.dumps({"manifests": [named]}))
    return folder, image


@pytest.mark.parametrize("name", ["", "stable"])
def test_an_oci_layout_is_the_same_image(tmp_path: Path, name: str) -> None:
    folder, image = layout(tmp_path)
    contents, _ = contents_of(image_in_layout(folder, name=name), store=None)
    assert contents.layers == image.indexes
    assert contents.pull_bytes == image.pull_bytes


def test_a_damaged_blob_of_a_layout_is_refused(tmp_path: Path) -> None:
    folder, image = layout(tmp_path)
    blob = folder / "blobs" / "sha256" / image.layers[1].digest[7:]
    data = bytearray(blob.read_bytes())
    data[9] ^= 1  # in the gzip header, where nothing else would notice
    blob.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged"):
        contents_of(image_in_layout(folder), store=None)


@pytest.mark.parametrize(
    ("manifests", "words"),
    [
        ([], "0 images"),
        ([{"digest": "sha256:" + "a" * 64}, {"digest": "sha256:" + "b" * 64}], "2 images"),
        ([{"digest": "../../../etc/passwd"}], "is not a digest"),
    ],
)
def test_a_layout_without_one_image_is_refused(
    tmp_path: Path, manifests: list[dict[str, str]], words: str
) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"manifests": manifests}))
    with pytest.raises(InputError, match=words):
        image_in_layout(tmp_path)


def archive(tmp_path: Path, *, packed: bool = False, **options: Any) -> Path:
    layers = [tars.tar(LOWER), tars.tar(UPPER)]
    config = {"rootfs": {"diff_ids": [digest_of_bytes(layer) for layer in layers]}}
    if packed:
        layers = [gzip.compress(layer) for layer in layers]
    return tars.docker_archive(tmp_path / "saved.tar", layers, config=config, **options)


@pytest.mark.parametrize("packed", [False, True])
def test_a_docker_archive_is_read_where_it_lies(tmp_path: Path, packed: bool) -> None:
    contents, read = contents_of(image_in_archive(archive(tmp_path, packed=packed)), store=None)
    assert len(read) == 2
    assert "/app/main.py" in contents.visible
    assert "/old" not in contents.visible
    assert_exact(audit_image(contents, find_owners(contents)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"manifest.json": None}, "no file 'manifest.json'"),
        ({"manifest.json": b"[]"}, "holds 0 images"),
        ({"manifest.json": b"{"}, "cannot be read"),
        ({"config.json": b"[]"}, "configuration cannot be read"),
        ({"config.json": b'{"rootfs": {"diff_ids": ["x"]}}'}, "by digest"),
        ({"config.json": b'{"rootfs": {"diff_ids": []}}'}, "2 layers, and 0"),
    ],
)
def test_an_archive_that_is_none_is_refused(
    tmp_path: Path, changes: dict[str, bytes | None], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        image_in_archive(archive(tmp_path, changes=changes))


def test_a_layer_of_an_archive_that_is_another_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"print()", b"prinT()"))
    with pytest.raises(IntegrityError, match="configuration says"):
        contents_of(image_in_archive(path), store=None)


@pytest.mark.parametrize("asked", ["docker-archive:nothing.tar", "oci:nothing", "oci://host/x"])
def test_a_place_where_nothing_is_gets_a_clear_error(tmp_path: Path, asked: str) -> None:
    with pytest.raises(InputError, match=r"nothing|store"):
        find_image(asked, store=MemoryStore(), root=tmp_path)


def record_of(image: StoredImage, *, recipe: str, name: str = "rtx") -> ImageRecord:
    return ImageRecord(
        name=name,
        digest=image.digest,
        recipe=recipe,
        pull_bytes=image.pull_bytes,
        unpacked_bytes=image.unpacked_bytes,
        layers=image.layers,
    )


class Matrix:
    """As much of a matrix as a reference needs."""

    images = ("rtx", "never")


def source_of(asked: str, store: MemoryStore, root: Path) -> ImageSource:
    return find_image(asked, store=store, root=root, matrix=Matrix())  # type: ignore[arg-type]


def test_a_name_of_the_matrix_means_what_was_built_last(tmp_path: Path) -> None:
    store = MemoryStore()
    old = stored(tmp_path, store, config={"config": {"User": "1"}})
    new = stored(tmp_path, store)
    put_image(store, record_of(old, recipe="sha256:" + "f" * 64))
    put_image(store, record_of(new, recipe="sha256:" + "0" * 64))
    assert source_of("rtx", store, tmp_path).image == new.digest
    assert source_of("rtx", store, tmp_path).name == "rtx"
    assert source_of(old.digest[7:20], store, tmp_path).image == old.digest
    with pytest.raises(LookupMissError, match="no image never"):
        source_of("never", store, tmp_path)
    with pytest.raises(InputError, match="not an image digest"):
        source_of("unknown", store, tmp_path)


def test_names_of_an_image_do_no_harm_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    contents = audited.contents_of([tars.file(f"bad\n\x1b[31m{SITE}", b"x")], name="n\x1b[2J")
    audit, _ = judge_image(contents, asked=asked_of("n", None, cells=()), spec=None)
    show_audit(audit, Console(result=True))
    assert "\x1b" not in capsys.readouterr().out
