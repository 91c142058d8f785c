"""The UNet generator: the same bytes for a seed everywhere, and a graph that finds its weights."""

import gzip
import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

SCRIPT = Path(__file__).parents[2] / "models" / "sd15_unet.py"
MIB = 1 << 20


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sd15_unet", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(generator: ModuleType, seed: int, size_bytes: int) -> bytes:
    return b"".join(generator.pieces_of_weights(seed, size_bytes=size_bytes))


def test_the_bytes_of_seed_0_are_these_on_every_machine(generator: ModuleType) -> None:
    digest = hashlib.sha256(weights(generator, 0, MIB)).hexdigest()
    assert digest == "7b4e4ad8a28f085bc485df4ada9755721e351b40de80ddfb98f4fdbd229b70fb"


def test_another_seed_gives_other_weights(generator: ModuleType) -> None:
    assert weights(generator, 0, 1024) != weights(generator, 1, 1024)


@pytest.mark.parametrize("size_bytes", [0, 2, 10, 17 * MIB + 2])
def test_a_size_is_kept_and_a_shorter_one_is_its_beginning(
    generator: ModuleType, size_bytes: int
) -> None:
    data = weights(generator, 3, size_bytes)
    assert len(data) == size_bytes
    assert weights(generator, 3, 18 * MIB).startswith(data)


def test_every_number_is_small_and_normal(generator: ModuleType) -> None:
    numbers = np.frombuffer(weights(generator, 0, MIB), dtype="<f2").astype(np.float64)
    assert np.abs(numbers).min() >= 2**-11
    assert np.abs(numbers).max() < 2**-7
    assert 0.49 < (numbers < 0).mean() < 0.51
    assert len(np.unique(numbers)) == 2 * 4 * 1024  # signs, exponents, mantissas


def test_the_graph_names_the_file_and_the_bytes_that_are_written(generator: ModuleType) -> None:
    model = onnx.load_from_string(gzip.decompress(generator.GRAPH.read_bytes()))
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    assert len(places) == 432
    assert {place["location"] for place in places} == {generator.WEIGHTS_NAME}
    ends = [int(place["offset"]) + int(place["length"]) for place in places]
    assert max(ends) == generator.WEIGHTS_BYTES
    assert sum(int(place["length"]) for place in places) == generator.WEIGHTS_BYTES


def test_a_model_is_written_whole(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator.pieces_of_weights, "__kwdefaults__", {"size_bytes": MIB})
    generator.write_model(tmp_path / "out", seed=5)
    assert (tmp_path / "out" / "weights.bin").read_bytes() == weights(generator, 5, MIB)
    graph = hashlib.sha256((tmp_path / "out" / "model.onnx").read_bytes()).hexdigest()
    assert graph == "82ad21a6372859871cde610acf5072f84a46808da59f1a44de93fb70b97d0bc1"
