"""`planyard image diff` and `image sbom`: places, formats, documents, exit codes, errors."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from builders.cli import build as cli_build
from builders.cli import compare as cli_compare
from builders.cli.verbs import open_store
from builders.oci import store_image
from builders.sbom.attach import attach_sbom
from engines import index
from engines.sbom import SBOMS
from planyard.core.contents import ImageDiff
from planyard.core.digest import canonical_json, digest_of_bytes
from planyard.core.results import ImageRecord, Package
from tests import tars
from tests.images_by_hand import an_image, owned

METADATA = b"Metadata-Version: 2.4\nName: Numpy\nVersion: %s\nLicense-Expression: BSD-3-Clause\n\n"
SITE = "usr/lib/python3/dist-packages"
RECIPE = digest_of_bytes(b"recipe")
PACKAGE = Package(name="libc6", version="2.36-9", sha256="a" * 64)


def a_layer(version: str = "2.3", *, size: int = 1000) -> bytes:
    """numpy, as pip installs it, and a file of the project."""
    info = f"{SITE}/numpy-{version}.dist-info"
    record = f"numpy/core.py,,\nnumpy-{version}.dist-info/METADATA,,\n"
    return tars.tar(
        [
            tars.file(f"{SITE}/numpy/core.py", b"x" * size),
            tars.file(f"{info}/METADATA", METADATA % version.encode()),
            tars.file(f"{info}/RECORD", record.encode()),
            tars.file("opt/app.py", b"pass"),
        ]
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The verbs in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("PLANYARD_STORE", "GITHUB_ACTIONS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    app = typer.Typer()
    for module in (cli_build, cli_compare):
        module.add_to(app)
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *args: CliRunner().invoke(app, [str(each) for each in args])
    signal.signal(signal.SIGTERM, before)


def an_archive(path: Path, layer: bytes) -> Path:
    config = {"rootfs": {"type": "layers", "diff_ids": [digest_of_bytes(layer)]}}
    return tars.docker_archive(path, [layer], config=config)


@pytest.fixture
def archives(tmp_path):
    """An image, and the one after it with a larger numpy."""
    layers = {"old": a_layer("2.3", size=1000), "new": a_layer("2.4", size=90_000)}
    return [an_archive(tmp_path / f"{name}.tar", layer) for name, layer in layers.items()]


@pytest.fixture
def stored(tmp_path):
    """An image in the store, as a build leaves it."""
    store = open_store(None, root=tmp_path)
    labels = {"io.planyard.recipe": RECIPE, "org.opencontainers.image.title": "app"}
    archive = tars.docker_archive(
        tmp_path / "saved.tar", [a_layer()], config={"config": {"Labels": labels}}
    )
    found = store_image(archive, store=store, scratch=tmp_path, epoch_seconds=0)
    record = ImageRecord(
        name="app",
        digest=found.digest,
        recipe=RECIPE,
        pull_bytes=found.pull_bytes,
        unpacked_bytes=found.unpacked_bytes,
        layers=found.layers,
        base=(PACKAGE,),
    )
    index.put_image(store, record)
    return store, record


# image diff


def test_two_archives_are_compared(run, archives):
    before, after = (f"docker-archive:{each}" for each in archives)
    result = run("image", "diff", before, after)
    assert result.exit_code == 0, result.output
    assert "89.0 kB more unpacked; most of it: numpy 2.3 → 2.4 (wheel) +89.0 kB" in result.stdout
    assert "~ numpy 2.3 → 2.4 (wheel)" in result.stdout
    assert f"+89.0 kB  /{SITE}/numpy/core.py" in result.stdout
    assert not Path(".planyard").exists()


def test_the_document_is_alone_on_stdout(run, archives):
    before, after = (f"docker-archive:{each}" for each in archives)
    diff = msgspec.json.decode(run("image", "diff", before, after, "--json").stdout, type=ImageDiff)
    assert (diff.files_added, diff.files_removed, diff.files_changed) == (2, 2, 1)
    assert diff.after_unpacked_bytes - diff.before_unpacked_bytes == 89_000


def test_markdown_is_alone_on_stdout(run, archives):
    before, after = (f"docker-archive:{each}" for each in archives)
    text = run("image", "diff", before, after, "--markdown").stdout
    assert text.startswith("### ")
    assert text.count("<details>") == 2
    result = run("image", "diff", before, after, "--markdown", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "choose one" in result.stderr


def test_an_image_of_the_store_and_one_elsewhere(run, stored, archives):
    _, record = stored
    result = run("image", "diff", record.digest[:24], f"docker-archive:{archives[1]}", "--json")
    assert result.exit_code == 0, result.stderr
    diff = json.loads(result.stdout)
    assert diff["before"] == f"app {record.digest}"
    assert [each["after"] for each in diff["packages"]] == ["2.4"]


def test_all_files_are_named_if_wanted(run, tmp_path, archives):
    layer = tars.tar([tars.file(f"f{n}", b"x" * (n + 1)) for n in range(40)])
    many = an_archive(tmp_path / "many.tar", layer)
    args = ("image", "diff", f"docker-archive:{archives[0]}", f"docker-archive:{many}", "--json")
    assert len(json.loads(run(*args).stdout)["files"]) == 20
    assert len(json.loads(run(*args, "--all").stdout)["files"]) == 44


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ("docker-archive:none.tar", 2, "none.tar"),
        ("oci:none", 2, "none"),
        ("sha256:0123456789ab", 9, "0123456789ab"),
        ("nothing", 2, "nothing"),
    ],
)
def test_what_is_no_image_is_said(run, archives, stored, asked, code, words):
    for args in (("diff", f"docker-archive:{archives[0]}", asked), ("sbom", asked)):
        result = run("image", *args)
        assert (result.exit_code, result.stdout) == (code, "")
        assert words in result.stderr


# image sbom


def test_what_a_build_attached_is_what_is_shown(run, stored, tmp_path):
    store, record = stored
    contents = an_image(image=record.digest, name="as attached")
    kept = attach_sbom(store, contents, owned(), record)
    result = run("image", "sbom", record.digest)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["name"] == "as attached"
    assert "kept with the image" in result.stderr
    result = run("image", "sbom", record.digest, "--format", "cyclonedx", "-o", "a.cdx.json")
    assert result.stdout == ""
    data = (tmp_path / "a.cdx.json").read_bytes()
    assert digest_of_bytes(data) == kept.documents["cyclonedx"].digest
    assert kept.documents["cyclonedx"].digest in result.stderr


def test_without_one_it_is_made_from_the_image_and_what_the_build_recorded(run, stored):
    store, record = stored
    result = run("image", "sbom", record.digest)
    assert "made now" in result.stderr
    packages = {each["name"]: each for each in json.loads(result.stdout)["packages"]}
    assert packages["numpy"]["licenseDeclared"] == "BSD-3-Clause"
    assert packages["libc6"]["checksums"][0]["checksumValue"] == PACKAGE.sha256
    assert packages["app"]["versionInfo"] == record.digest
    # To look is not to attach.
    assert list(store.entries(SBOMS, record.digest)) == []


def test_the_record_of_another_image_of_the_recipe_says_nothing(run, stored, tmp_path):
    """A label is only a claim: whoever pushes an image may copy it."""
    store, _ = stored
    config = {"config": {"Labels": {"io.planyard.recipe": RECIPE}}}
    archive = tars.docker_archive(tmp_path / "copied.tar", [a_layer("9.9")], config=config)
    other = store_image(archive, store=store, scratch=tmp_path, epoch_seconds=0)
    result = run("image", "sbom", other.digest)
    assert result.exit_code == 0, result.stderr
    names = {each["name"] for each in json.loads(result.stdout)["packages"]}
    assert "numpy" in names
    assert "libc6" not in names


def test_an_image_that_is_not_ours_has_one_too(run, archives):
    result = run("image", "sbom", f"docker-archive:{archives[0]}", "--format", "cyclonedx")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["specVersion"] == "1.6"
    assert "numpy" in {each["name"] for each in document["components"]}
    assert "@" not in document["metadata"]["component"]["purl"]


def test_twice_is_the_same(run, archives):
    args = ("image", "sbom", f"docker-archive:{archives[0]}")
    assert run(*args).stdout == run(*args).stdout


def test_an_unknown_format_is_said_before_anything_is_read(run):
    result = run("image", "sbom", "nothing", "--format", "swid")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "write spdx or cyclonedx" in result.stderr


def test_a_file_that_cannot_be_written_is_said(run, archives, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    place = tmp_path / "file" / "below"
    result = run("image", "sbom", f"docker-archive:{archives[0]}", "-o", place)
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_a_damaged_document_is_never_shown(run, stored):
    store, record = stored
    kept = attach_sbom(store, an_image(image=record.digest), owned(), record)
    digest = kept.documents["spdx"].digest
    path = store.root / "blobs" / "sha256" / digest[7:]
    path.chmod(0o600)
    path.write_bytes(canonical_json({"spdxVersion": "forged"}))
    result = run("image", "sbom", record.digest)
    assert (result.exit_code, result.stdout) == (10, "")
