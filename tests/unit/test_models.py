"""Fetching from the repository into the cache: what is checked, what stays, what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.model_cache import FILES, MODEL_FILE, Work, load_entry, publish
from builders.models import (
    FetchedModel,
    fetch_model,
    identity_of_model,
    input_problems,
)
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.core.matrix import GeneratorSource, Model, Source, TensorSpec
from planyard.core.onnx_outline import ValueInfo, outline_of_onnx
from tests import onnx_models
from tests.onnx_models import WEIGHTS, left_behind, visible

PLAIN = onnx_models.plain_model().SerializeToString()
EXTERNAL = onnx_models.external_model().SerializeToString()


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., FetchedModel]:
    """Fetches with `tmp_path/repo` as the matrix's folder and no network."""
    (tmp_path / "repo/models").mkdir(parents=True)
    lines: list[str] = []

    def call(model: Model, *, verify: bool = False, name: str = "ocr") -> FetchedModel:
        return fetch_model(
            name,
            model,
            root=tmp_path / "repo",
            cache=tmp_path / "cache",
            network=False,
            report=lines.append,
            verify=verify,
        )

    call.lines = lines  # type: ignore[attr-defined]
    return call


def put(tmp_path: Path, path: str, data: bytes) -> Source:
    target = tmp_path / "repo" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return Source(file=path)


def test_a_file_comes_with_what_it_is(tmp_path: Path, fetch: Callable[..., FetchedModel]) -> None:
    model = onnx_models.declared(PLAIN, put(tmp_path, "models/a.onnx", PLAIN))
    got = fetch(model)
    assert got.path.read_bytes() == PLAIN
    assert got.sha256 == digest_of_bytes(PLAIN)
    assert got.size_bytes == len(PLAIN)
    assert got.external == {}
    assert [one.name for one in got.folder.iterdir()] == [got.path.name]
    assert got.outline() == outline_of_onnx(PLAIN)
    assert got.inputs == got.outline().inputs
    assert got.path.stat().st_mode & 0o777 == 0o444
    assert visible(tmp_path / "cache") == [identity_of_model(model).removeprefix("sha256:")]


def test_external_files_come_along_below_folders_too(
    tmp_path: Path, fetch: Callable[..., FetchedModel]
) -> None:
    data = onnx_models.external_model("./deep/er/weights.bin").SerializeToString()
    source = put(tmp_path, "models/a.onnx", data)
    put(tmp_path, "models/deep/er/weights.bin", WEIGHTS)
    put(tmp_path, "models/unrelated.txt", b"no")
    got = fetch(onnx_models.declared(data, source, external={"deep/er/weights.bin": WEIGHTS}))
    assert (got.folder / "deep/er/weights.bin").read_bytes() == WEIGHTS
    assert got.external == {"deep/er/weights.bin": digest_of_bytes(WEIGHTS)}
    assert got.size_bytes == len(data) + len(WEIGHTS)
    assert not (got.folder / "unrelated.txt").exists()


def test_the_second_fetch_reads_no_model_bytes(
    tmp_path: Path, fetch: Callable[..., FetchedModel]
) -> None:
    """The cached bytes are changed in place: a plain fetch does not see it, `verify` does."""
    model = onnx_models.declared(PLAIN, put(tmp_path, "models/a.onnx", PLAIN))
    first = fetch(model)
    (tmp_path / "repo/models/a.onnx").unlink()
    assert fetch(model) == first
    assert fetch(model, verify=True) == first
    first.path.chmod(0o644)
    first.path.write_bytes(PLAIN[:-1] + bytes([PLAIN[-1] ^ 1]))
    assert fetch(model) == first
    with pytest.raises(IntegrityError, match=f"expected {model.sha256}, found sha256:"):
        fetch(model, verify=True)
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


@pytest.mark.parametrize("damage", ["shorter", "gone", "symlink", "hard link", "no entry.json"])
def test_a_damaged_entry_is_fetched_again(
    tmp_path: Path, fetch: Callable[..., FetchedModel], damage: str
) -> None:
    model = onnx_models.declared(PLAIN, put(tmp_path, "models/a.onnx", PLAIN))
    path = fetch(model).path
    if damage == "shorter":
        os.truncate(path, 3)
    elif damage == "gone":
        path.unlink()
    elif damage == "symlink":
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved")
    elif damage == "hard link":
        os.link(path, tmp_path / "second-name")
    else:
        (path.parent.parent / "entry.json").unlink()
    got = fetch(model, verify=True)
    assert got.path.read_bytes() == PLAIN
    assert not got.path.is_symlink()
    assert any("damaged" in line for line in fetch.lines)  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", ["model", "external"])
def test_a_wrong_digest_leaves_nothing(
    tmp_path: Path, fetch: Callable[..., FetchedModel], wrong: str
) -> None:
    source = put(tmp_path, "models/a.onnx", EXTERNAL + b"" if wrong == "external" else PLAIN)
    put(tmp_path, "models/weights.bin", WEIGHTS[::-1])
    model = onnx_models.declared(EXTERNAL, source, external={"weights.bin": WEIGHTS})
    expected = model.sha256 if wrong == "model" else digest_of_bytes(WEIGHTS)
    actual = digest_of_bytes(PLAIN if wrong == "model" else WEIGHTS[::-1])
    with pytest.raises(IntegrityError, match=f"expected {expected}, found {actual}") as caught:
        fetch(model)
    assert caught.value.exit_code == 10
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_what_is_not_onnx_leaves_nothing(
    tmp_path: Path, fetch: Callable[..., FetchedModel]
) -> None:
    page = b"<html>not found</html>"
    with pytest.raises(InputError, match="not a sound ONNX file: byte 0"):
        fetch(onnx_models.declared(page, put(tmp_path, "models/a.onnx", page)))
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_declared_inputs_are_compared_even_with_a_cached_model(
    tmp_path: Path, fetch: Callable[..., FetchedModel]
) -> None:
    source = put(tmp_path, "models/a.onnx", PLAIN)
    fetch(onnx_models.declared(PLAIN, source))
    wrong = onnx_models.declared(PLAIN, source, y=TensorSpec(dtype="float16", shape=(1,)))
    with pytest.raises(InputError) as caught:
        fetch(wrong)
    assert caught.value.problems == (
        "models.ocr.inputs.y: the file has no such input",
        "models.ocr.inputs: 'x' is missing",
        "models.ocr.inputs: the file has x float32 [n, 3, h, w]",
    )


@pytest.mark.parametrize(
    ("dtype", "shape", "is_right"),
    [
        ("float32", ("batch", 3, "a", "b"), True),
        ("float16", ("batch", 3, "a", "b"), False),
        ("float32", ("batch", 4, "a", "b"), False),
        ("float32", (1, 3, "a", "b"), False),
        ("float32", ("batch", "c", "a", "b"), False),
        ("float32", ("batch", 3, "a"), False),
    ],
)
def test_input_problems(dtype: str, shape: tuple[int | str, ...], is_right: bool) -> None:
    spec = TensorSpec(dtype=dtype, shape=shape)  # type: ignore[arg-type]
    for dynamic in ("N", None, -1, 0):
        actual = [ValueInfo(name="x", dtype="float32", shape=(dynamic, 3, "H", "W"))]
        assert (input_problems("inputs", {"x": spec}, actual) == ()) == is_right


def test_identity_tells_models_and_weights_apart() -> None:
    source = Source(file="a.onnx")
    base = onnx_models.declared(EXTERNAL, source, external={"weights.bin": WEIGHTS})
    same = [
        onnx_models.declared(EXTERNAL, Source(file="b.onnx"), external={"weights.bin": WEIGHTS}),
        onnx_models.declared(EXTERNAL, source, external={"./weights.bin": WEIGHTS}),
    ]
    others = [
        onnx_models.declared(PLAIN, source, external={"weights.bin": WEIGHTS}),
        onnx_models.declared(EXTERNAL, source, external={"weights.bin": b"other"}),
        onnx_models.declared(EXTERNAL, source, external={"w.bin": WEIGHTS}),
        onnx_models.declared(EXTERNAL, source),
    ]
    assert {identity_of_model(one) for one in same} == {identity_of_model(base)}
    assert len({identity_of_model(one) for one in [base, *others]}) == 1 + len(others)


GENERATOR = """
import json, os, sys
out, *arguments = sys.argv[1:]
open(os.path.join(out, "m.onnx"), "wb").write(bytes.fromhex(arguments[0]))
print("arguments", json.dumps(arguments[1:]))
print("environment", ",".join(sorted(os.environ)))
print("folder", os.listdir("."))
"""


def generated(data: bytes, *arguments: str, script: str = "gen.py") -> Model:
    source = GeneratorSource(script=script, model="m.onnx", arguments=(data.hex(), *arguments))
    return onnx_models.declared(data, Source(generator=source))


def test_a_generator_gets_arguments_as_they_are_and_no_environment(
    tmp_path: Path, fetch: Callable[..., FetchedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "hidden")
    put(tmp_path, "gen.py", GENERATOR.encode())
    evil = "; touch /tmp/x $(id) `id` && \n"
    assert fetch(generated(PLAIN, evil, "--help")).path.read_bytes() == PLAIN
    said = "\n".join(fetch.lines)  # type: ignore[attr-defined]
    assert f'arguments ["{evil[:-1]}\\n", "--help"]' in said
    assert "A_SECRET" not in said
    assert "PATH" in said
    assert len(visible(tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise SystemExit('no data here')", "no data here"),
        ("import sys, os; os.symlink('/etc/hostname', sys.argv[1] + '/m.onnx')", "symbolic link"),
        ("pass", "No such file"),
    ],
)
def test_a_generator_that_fails_leaves_nothing(
    tmp_path: Path, fetch: Callable[..., FetchedModel], script: str, reason: str
) -> None:
    put(tmp_path, "gen.py", script.encode())
    with pytest.raises((StoreError, InputError)) as caught:
        fetch(generated(PLAIN))
    assert reason in " ".join([caught.value.message, *caught.value.log_tail])
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_a_generator_lies_below_the_matrix(
    tmp_path: Path, fetch: Callable[..., FetchedModel]
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InputError, match="leaves the model's folder"):
        fetch(generated(PLAIN, script="../evil.py"))


@pytest.mark.parametrize(
    "source",
    [Source(https="https://127.0.0.1:1/m.onnx?token=secret"), Source(s3="s3://bucket/m.onnx")],
)
def test_without_the_network_only_the_cache_answers(
    tmp_path: Path, fetch: Callable[..., FetchedModel], source: Source
) -> None:
    with pytest.raises(StoreError, match="not in the cache, and the network is off") as caught:
        fetch(onnx_models.declared(PLAIN, source))
    assert caught.value.exit_code == 8
    assert "secret" not in caught.value.message
    fetch(onnx_models.declared(PLAIN, put(tmp_path, "models/a.onnx", PLAIN)))
    assert fetch(onnx_models.declared(PLAIN, source)).path.read_bytes() == PLAIN


def test_what_a_killed_fetch_left_is_used_when_whole_and_replaced_when_not(
    tmp_path: Path, fetch: Callable[..., FetchedModel]
) -> None:
    source = put(tmp_path, "models/a.onnx", EXTERNAL)
    put(tmp_path, "models/weights.bin", WEIGHTS)
    model = onnx_models.declared(EXTERNAL, source, external={"weights.bin": WEIGHTS})
    identity = identity_of_model(model).removeprefix("sha256:")
    left = tmp_path / "cache/models" / f".work-{identity}"
    (left / "entry/files").mkdir(parents=True)
    (left / "scratch-old").mkdir()
    (left / "entry/files/model.onnx").write_bytes(EXTERNAL)
    (left / "entry/files/weights.bin").write_bytes(WEIGHTS[:100])
    (tmp_path / "repo/models/a.onnx").unlink()  # not needed any more
    got = fetch(model)
    assert (got.folder / "weights.bin").read_bytes() == WEIGHTS
    assert visible(tmp_path / "cache") == [identity]


def test_of_two_that_publish_the_second_gives_way(tmp_path: Path) -> None:
    """Where locks do not work: the rename decides, and the first entry stays whole."""
    digests = {MODEL_FILE: digest_of_bytes(PLAIN)}
    folder = tmp_path / "models/entry"
    for name in ("one", "two"):
        work = Work(entry=tmp_path / "models" / name, parts=tmp_path, scratch=tmp_path)
        work.files.mkdir(parents=True)
        (work.files / MODEL_FILE).write_bytes(PLAIN)
        (work.files / f"of-{name}").write_bytes(b"")
        publish(work, folder, digests=digests, outline=outline_of_onnx(PLAIN))
    assert load_entry(folder, digests)
    assert (folder / FILES / "of-one").exists()
    assert not (folder / FILES / "of-two").exists()


def test_a_cache_that_cannot_be_written_is_a_store_error(
    tmp_path: Path, fetch: Callable[..., FetchedModel]
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        fetch(onnx_models.declared(PLAIN, put(tmp_path, "models/a.onnx", PLAIN)))
