"""What `session:` may say of an image: each mistake where it stands, with what to write."""

from __future__ import annotations

from typing import Any

import pytest

from planyard.core.located import Part, path_text
from planyard.core.matrix import Backend, Image
from planyard.core.matrix_rules import broken_rules
from planyard.core.matrix_runtime import SessionSpec
from planyard.core.session_rules import session_broken
from planyard.core.units import ByteSize

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


def broken(backend: Backend, **session: Any) -> list[str]:
    """Every broken rule of an image with this session, as one line each."""
    image = Image(backend=backend, session=SessionSpec(**session))
    return [f"{path_text(path)}: {message}" for path, message in session_broken(image)]


@pytest.mark.parametrize(
    ("backend", "session"),
    [
        ("tensorrt-rtx", {}),
        ("onnxruntime-cpu", {}),
        ("onnxruntime-cpu", {"providers": (CPU,), "io_binding": True, "intra_threads": 4}),
        ("onnxruntime-cuda", {"providers": (CUDA,), "intra_threads": 1}),
        ("onnxruntime-cuda", {"providers": (TENSORRT, CUDA), "gpu_memory": ByteSize(1 << 30)}),
        ("onnxruntime-cuda", {"providers": (TENSORRT,), "io_binding": True}),
        ("onnxruntime-cuda", {"io_binding": True, "pinned_memory": True, "cuda_graph": True}),
        ("onnxruntime-cuda", {"arena": "same-as-requested", "copy_stream": "own", "tf32": False}),
    ],
)
def test_what_can_be_made_breaks_nothing(backend: Backend, session: dict[str, Any]) -> None:
    assert broken(backend, **session) == []


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_plans_have_no_session(backend: Backend) -> None:
    [only] = broken(backend, providers=(CPU, CPU), tf32=True)
    assert only.startswith(f"session: {backend} runs plans and has no session of ONNX Runtime")
    assert only.endswith("remove this key")


def test_a_gpu_image_names_no_cpu_provider() -> None:
    [only] = broken("onnxruntime-cuda", providers=(CUDA, CPU))
    assert only.startswith("session.providers[1]: a GPU image names no CPU provider")
    assert "gates.cpu_operators" in only


@pytest.mark.parametrize("name", [CUDA, TENSORRT])
def test_a_cpu_image_has_no_gpu_provider(name: str) -> None:
    [only] = broken("onnxruntime-cpu", providers=(name,))
    assert only.startswith(f"session.providers[0]: onnxruntime-cpu has no {name}: write {CPU}")


def test_a_provider_is_named_once() -> None:
    [only] = broken("onnxruntime-cuda", providers=(CUDA, CUDA))
    assert only == f"session.providers[1]: {CUDA} is named above: write each provider once"


def test_tensorrt_behind_cuda_would_get_nothing() -> None:
    [only] = broken("onnxruntime-cuda", providers=(CUDA, TENSORRT))
    assert only.startswith(f"session.providers[1]: {CUDA} is asked first, and leaves nothing")


GPU_ONLY = {
    "gpu_memory": ByteSize(1 << 30),
    "arena": "next-power-of-two",
    "copy_stream": "compute",
    "cudnn_search": "default",
    "tf32": False,
    "cuda_graph": True,
    "pinned_memory": True,
}


@pytest.mark.parametrize("field", GPU_ONLY)
def test_a_cpu_image_has_no_options_of_the_gpu(field: str) -> None:
    [only] = broken("onnxruntime-cpu", io_binding=True, **{field: GPU_ONLY[field]})
    assert only.startswith(f"session.{field}: this is about ")
    assert only.endswith("onnxruntime-cpu has no GPU: remove it")


@pytest.mark.parametrize("field", sorted(GPU_ONLY.keys() - {"pinned_memory"}))
def test_options_of_cuda_need_its_provider(field: str) -> None:
    session = {"providers": (TENSORRT,), "io_binding": True, field: GPU_ONLY[field]}
    [only] = broken("onnxruntime-cuda", **session)
    assert only.startswith(f"session.{field}: this is about ")
    assert f"no {CUDA} is asked for" in only


@pytest.mark.parametrize("field", ["tf32", "cuda_graph"])
def test_what_tensorrt_does_not_read_is_refused_before_it(field: str) -> None:
    session = {"providers": (TENSORRT, CUDA), "io_binding": True, field: GPU_ONLY[field]}
    [only] = broken("onnxruntime-cuda", **session)
    assert only.startswith(f"session.{field}: {TENSORRT} is asked first and does not read this")


@pytest.mark.parametrize("field", ["pinned_memory", "cuda_graph"])
def test_tensors_have_to_stay_where_they_are(field: str) -> None:
    [only] = broken("onnxruntime-cuda", **{field: True})
    assert only == (
        f"session.{field}: this needs tensors that stay where they are: add io_binding: true"
    )


def test_all_mistakes_are_said_at_once() -> None:
    found = broken("onnxruntime-cuda", providers=(CPU, CUDA, CUDA), pinned_memory=True)
    assert [line.partition(":")[0] for line in found] == [
        "session.providers[0]",
        "session.providers[2]",
        "session.pinned_memory",
    ]


def test_the_rules_of_the_matrix_ask_for_these() -> None:
    image = Image(backend="onnxruntime-cuda", session=SessionSpec(cuda_graph=True))
    [rule] = broken_rules([Part(("images", "gpu"), Image, image)])
    assert path_text(rule.path) == "images.gpu.session.cuda_graph"
