"""No model reads anything but the files beside it that the matrix lists, whatever it names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.models import (
    FetchedModel,
    check_external_files,
    fetch_model,
)
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError
from planyard.core.matrix import Model, Source
from planyard.core.onnx_outline import outline_of_onnx
from planyard.edge.beneath import open_beneath
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


@pytest.mark.parametrize(
    ("external", "reason"),
    [
        ({}, "'weights.bin': not listed in external_data"),
        ({"weights.bin": WEIGHTS, "more": b""}, "'more': no tensor of the model lies there"),
        ({"../weights.bin": WEIGHTS}, "leaves the model's folder"),
        ({"weights.bin": WEIGHTS, "./weights.bin": WEIGHTS}, "the name is taken"),
        ({"model.onnx": WEIGHTS}, "the name is taken"),
    ],
)
def test_the_list_of_external_files_is_exact(
    tmp_path: Path, fetch: Callable[..., FetchedModel], external: dict[str, bytes], reason: str
) -> None:
    source = put(tmp_path, "models/a.onnx", EXTERNAL)
    put(tmp_path, "models/weights.bin", WEIGHTS)
    with pytest.raises(InputError, match=reason):
        fetch(onnx_models.declared(EXTERNAL, source, external=external))
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_tensors_must_lie_inside_their_file(
    tmp_path: Path, fetch: Callable[..., FetchedModel]
) -> None:
    data = onnx_models.external_model(offset=1).SerializeToString()
    source = put(tmp_path, "models/a.onnx", data)
    put(tmp_path, "models/weights.bin", WEIGHTS)
    with pytest.raises(InputError, match="has 4096 bytes where its tensors need 4097"):
        fetch(onnx_models.declared(data, source, external={"weights.bin": WEIGHTS}))


def attack(folder: Path, outside: Path, variant: str) -> str:
    """Lay out one way to reach `outside` from the model in `folder`; returns the location."""
    if variant == "final symlink":
        (folder / "weights.bin").symlink_to(outside)
    elif variant == "parent symlink":
        (folder / "sub").symlink_to(outside.parent)
        return f"sub/{outside.name}"
    elif variant == "sibling prefix through a symlink":
        (folder / "sub").symlink_to(Path("..") / "model_evil")
        return "sub/weights.bin"
    elif variant == "hard link":
        os.link(outside, folder / "weights.bin")
    elif variant == "fifo":
        os.mkfifo(folder / "weights.bin")
    elif variant == "folder":
        (folder / "weights.bin").mkdir()
    else:
        return {
            "absolute": str(outside),
            "parent": f"../model_evil/{outside.name}",
            "parent in the middle": f"sub/../../model_evil/{outside.name}",
            "backslash": f"..\\model_evil\\{outside.name}",
            "drive letter": "C:/weights.bin",
            "nul": "weights.bin\0",
            "empty": "",
        }[variant]
    return "weights.bin"


@pytest.mark.parametrize(
    "variant",
    [
        "absolute",
        "parent",
        "parent in the middle",
        "final symlink",
        "parent symlink",
        "sibling prefix through a symlink",
        "hard link",
        "backslash",
        "drive letter",
        "nul",
        "empty",
        "fifo",
        "folder",
    ],
)
def test_no_way_out_of_the_models_folder(
    tmp_path: Path, fetch: Callable[..., FetchedModel], variant: str
) -> None:
    """Even when the matrix lists the location with the right digest of the secret."""
    folder = tmp_path / "repo/model"
    folder.mkdir()
    (folder / "sub").mkdir() if variant == "parent in the middle" else None
    secret = WEIGHTS[::-1]
    outside = tmp_path / "repo/model_evil/weights.bin"
    outside.parent.mkdir()
    outside.write_bytes(secret)
    location = attack(folder, outside, variant)
    data = onnx_models.external_model(location).SerializeToString()
    source = put(tmp_path, "model/a.onnx", data)
    listed = {location: digest_of_bytes(secret)}
    assert check_external_files(folder, outline_of_onnx(data), listed)
    for external in ({}, {location: secret}, {"weights.bin": secret}):
        with pytest.raises(InputError, match=r"^models.ocr"):
            fetch(onnx_models.declared(data, source, external=external))
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []
    assert outside.read_bytes() == secret


def test_check_external_files_accepts_what_is_right(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    outline = outline_of_onnx(EXTERNAL)
    listed = {"weights.bin": digest_of_bytes(WEIGHTS)}
    assert check_external_files(tmp_path, outline, listed) == ()


@pytest.mark.parametrize("path", ["../secret.onnx", "link.onnx", "linked/secret.onnx", "none.onnx"])
def test_the_model_itself_lies_below_the_matrix(
    tmp_path: Path, fetch: Callable[..., FetchedModel], path: str
) -> None:
    (tmp_path / "secret.onnx").write_bytes(PLAIN)
    (tmp_path / "repo/link.onnx").symlink_to(tmp_path / "secret.onnx")
    (tmp_path / "repo/linked").symlink_to(tmp_path)
    with pytest.raises(InputError):
        fetch(onnx_models.declared(PLAIN, Source(file=path)))
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_the_folder_itself_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with open_beneath(tmp_path / "link", "a") as file:
        assert file.read() == b"a"
