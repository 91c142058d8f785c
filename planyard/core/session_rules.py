"""What must hold between the fields of `session:` and the image it stands in.

ONNX Runtime itself refuses little of this: it takes an option that nothing reads, or a provider
behind another one that takes all nodes, without a word. `matrix_rules` asks for these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from planyard.core.located import KeyPath
from planyard.core.matrix import GPU_BACKENDS, PLAN_BACKENDS, Image
from planyard.core.matrix_runtime import SessionSpec

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_UNSET = SessionSpec()
_OF_CUDA: Mapping[str, str] = {
    "gpu_memory": "the arena of CUDAExecutionProvider",
    "arena": "the arena of CUDAExecutionProvider",
    "copy_stream": "CUDAExecutionProvider's copies",
    "cudnn_search": "cuDNN",
    "tf32": "the GPU's matrix products",
    "cuda_graph": "requests on the GPU",
    "pinned_memory": "copies to and from a GPU",
}
"""Fields that only a session on the CUDA provider has, and what they are about."""


def session_broken(image: Image) -> Iterator[tuple[KeyPath, str]]:
    """Every rule that an image's `session:` breaks: where in the image, and what to write."""
    session = image.session
    if session == _UNSET:
        return
    if image.backend in PLAN_BACKENDS:
        message = f"{image.backend} runs plans and has no session of ONNX Runtime: remove this key"
        yield ("session",), message
        return
    gpu = image.backend in GPU_BACKENDS
    yield from _providers(session, gpu=gpu)
    yield from _cuda_fields(session, gpu=gpu)
    for name in ("pinned_memory", "cuda_graph"):
        if gpu and getattr(session, name) and not session.io_binding:
            message = "this needs tensors that stay where they are: add io_binding: true"
            yield ("session", name), message


def _providers(session: SessionSpec, *, gpu: bool) -> Iterator[tuple[KeyPath, str]]:
    """The kind of machine decides which ones, and the first of them decides what is served."""
    names = session.providers
    for index, name in enumerate(names):
        at: KeyPath = ("session", "providers", index)
        if name in names[:index]:
            yield at, f"{name} is named above: write each provider once"
        elif gpu and name == _CPU:
            message = "a GPU image names no CPU provider: what fell back to it would be served"
            yield at, f"{message}; remove it, and allow shape arithmetic under gates.cpu_operators"
        elif not gpu and name != _CPU:
            message = f"onnxruntime-cpu has no {name}"
            yield at, f"{message}: write {_CPU}, or backend: onnxruntime-cuda"
        elif name == _TENSORRT and _CUDA in names[:index]:
            message = f"{_CUDA} is asked first, and leaves nothing to a provider behind it"
            yield at, f"{message}: write {_TENSORRT} before it, or remove it"


def _cuda_fields(session: SessionSpec, *, gpu: bool) -> Iterator[tuple[KeyPath, str]]:
    """Options of the CUDA provider, where there is one, and where it is alone."""
    names = session.providers or (_CUDA,)
    for field, about in _OF_CUDA.items():
        at: KeyPath = ("session", field)
        if getattr(session, field) == getattr(_UNSET, field):
            continue
        if not gpu:
            yield at, f"this is about {about}, and onnxruntime-cpu has no GPU: remove it"
        elif field == "pinned_memory":
            continue
        elif _CUDA not in names:
            yield at, f"this is about {about}, and no {_CUDA} is asked for: add it, or remove this"
        elif field in ("tf32", "cuda_graph") and _TENSORRT in names:
            message = f"{_TENSORRT} is asked first and does not read this"
            yield at, f"{message}: remove it, or keep {_CUDA} alone"
