"""How ONNX Runtime's session is made, as one document for the job, the image and the gates.

`job.json` carries it as `session`, an image as `/etc/planyard/session.json` (docs/sessions.md):

    schema           1
    providers        [name, {option: text}] in order, as `InferenceSession` takes them
    session_options  attributes of `SessionOptions`; absent when the matrix sets none
    io_binding       inputs and outputs stay on the device
    pinned_memory    requests copy their inputs in and their outputs out, by page-locked memory

Only what the matrix sets is in it. Names and values of options are ONNX Runtime's own, as its
sessions say them back: cuda_execution_provider_info.cc of the CUDA provider. The CPU provider
takes options without a word and says none back, so it is given none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planyard.core.digest import canonical_json
from planyard.core.matrix import PLAN_BACKENDS, Backend
from planyard.core.matrix_runtime import SessionSpec

SESSION_SCHEMA = 1
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
# What a session of each backend is asked to run on. No CPU beside a GPU: nothing to fall back to.
PROVIDERS: Mapping[Backend, tuple[str, ...]] = {
    "onnxruntime-cpu": (CPU,),
    "onnxruntime-cuda": (CUDA,),
    "tensorrt-rtx": ("TensorRT-RTX",),
    "tensorrt": ("TensorRT",),
}

_ARENA = {"next-power-of-two": "kNextPowerOfTwo", "same-as-requested": "kSameAsRequested"}
_COPY_STREAM = {"compute": "1", "own": "0"}


def providers_of(spec: SessionSpec, backend: Backend) -> tuple[str, ...]:
    """What a session is asked to run on, in order: what the matrix says, or the backend's own."""
    return spec.providers or PROVIDERS[backend]


def session_document(spec: SessionSpec, backend: Backend) -> dict[str, Any] | None:
    """The document of a session; None for a backend that runs plans, which has no session."""
    if backend in PLAN_BACKENDS:
        return None
    options = {CUDA: _cuda_options(spec)}
    document: dict[str, Any] = {
        "schema": SESSION_SCHEMA,
        "providers": [[name, options.get(name, {})] for name in providers_of(spec, backend)],
        "io_binding": spec.io_binding,
        "pinned_memory": spec.pinned_memory,
    }
    if spec.intra_threads is not None:
        document["session_options"] = {"intra_op_num_threads": spec.intra_threads}
    return document


def session_json(spec: SessionSpec, backend: Backend) -> bytes:
    """The bytes that are baked into an image; ValueError for a backend without a session."""
    document = session_document(spec, backend)
    if document is None:
        raise ValueError(f"{backend} has no session of ONNX Runtime")
    return canonical_json(document) + b"\n"


def _cuda_options(spec: SessionSpec) -> dict[str, str]:
    """The CUDA provider's options, by its own names and in its own words."""
    found: dict[str, str] = {}
    if spec.gpu_memory is not None:
        found["gpu_mem_limit"] = str(int(spec.gpu_memory))
    if spec.arena is not None:
        found["arena_extend_strategy"] = _ARENA[spec.arena]
    if spec.copy_stream is not None:
        found["do_copy_in_default_stream"] = _COPY_STREAM[spec.copy_stream]
    if spec.cudnn_search is not None:
        found["cudnn_conv_algo_search"] = spec.cudnn_search.upper()
    if spec.tf32 is not None:
        found["use_tf32"] = str(int(spec.tf32))
    if spec.cuda_graph:
        found["enable_cuda_graph"] = "1"
    return found
