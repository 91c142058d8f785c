"""What a session's document says: the options by ONNX Runtime's own names, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import onnxruntime
import pytest

from planyard.core.digest import canonical_json
from planyard.core.matrix_runtime import SessionSpec
from planyard.core.units import ByteSize
from smoke.session import CPU, CUDA, TENSORRT, providers_of, session_document, session_json
from tests import onnx_models


def cuda_options(**fields: Any) -> Any:
    """What the CUDA provider is given."""
    document = session_document(SessionSpec(**fields), "onnxruntime-cuda")
    assert document is not None
    [[name, options]] = document["providers"]
    assert name == CUDA
    return options


def test_what_the_matrix_does_not_say_is_not_in_it() -> None:
    assert session_document(SessionSpec(), "onnxruntime-cpu") == {
        "schema": 1,
        "providers": [[CPU, {}]],
        "io_binding": False,
        "pinned_memory": False,
    }
    assert cuda_options() == {}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"gpu_memory": ByteSize(6 * 2**30)}, {"gpu_mem_limit": "6442450944"}),
        ({"arena": "same-as-requested"}, {"arena_extend_strategy": "kSameAsRequested"}),
        ({"arena": "next-power-of-two"}, {"arena_extend_strategy": "kNextPowerOfTwo"}),
        ({"copy_stream": "own"}, {"do_copy_in_default_stream": "0"}),
        ({"copy_stream": "compute"}, {"do_copy_in_default_stream": "1"}),
        ({"cudnn_search": "heuristic"}, {"cudnn_conv_algo_search": "HEURISTIC"}),
        ({"tf32": False}, {"use_tf32": "0"}),
        ({"tf32": True}, {"use_tf32": "1"}),
        ({"cuda_graph": True, "io_binding": True}, {"enable_cuda_graph": "1"}),
    ],
)
def test_each_field_is_an_option_of_the_cuda_provider(
    fields: dict[str, Any], options: dict[str, str]
) -> None:
    assert cuda_options(**fields) == options


def test_options_of_cuda_are_given_to_cuda_alone() -> None:
    spec = SessionSpec(providers=(TENSORRT, CUDA), copy_stream="own")
    document = session_document(spec, "onnxruntime-cuda")
    assert document is not None
    assert document["providers"] == [[TENSORRT, {}], [CUDA, {"do_copy_in_default_stream": "0"}]]
    assert providers_of(spec, "onnxruntime-cuda") == (TENSORRT, CUDA)


def test_plans_have_no_session() -> None:
    assert session_document(SessionSpec(), "tensorrt-rtx") is None
    with pytest.raises(ValueError, match="tensorrt has no session"):
        session_json(SessionSpec(), "tensorrt")


def test_a_service_makes_its_session_from_the_file_in_three_lines() -> None:
    """As docs/sessions.md shows it."""
    baked = session_json(SessionSpec(intra_threads=3, io_binding=True), "onnxruntime-cpu")
    assert baked.endswith(b"\n")
    said, options = json.loads(baked), onnxruntime.SessionOptions()
    assert baked == canonical_json(said) + b"\n"
    model = onnx_models.plain_model()
    model.ir_version = 10
    for name, value in said.get("session_options", {}).items():
        setattr(options, name, value)
    providers = [(name, given) for name, given in said["providers"]]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=providers, enable_fallback=0
    )
    assert session.get_providers() == [CPU]
    assert session.get_session_options().intra_op_num_threads == 3
