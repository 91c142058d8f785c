"""Libraries that are there twice, or not at all."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator

from builders.audit.contents import ImageContents
from builders.audit.owners import Ownership
from builders.audit.rules.asked import Asked
from builders.audit.rules.found import Found, Place
from builders.closure import image_closure
from planyard.core.contents import Owner

# The library's name without version, and without the hash that auditwheel puts into it.
_LIBRARY = re.compile(r"(?P<name>lib[A-Za-z0-9_.+-]+?)(?:-[0-9a-f]{8})*\.so(?:\.[0-9.]+)?")
_CUDA = re.compile(
    r"lib(?:cudart|cublas|cublasLt|cudnn\w*|cufft\w*|curand|cusolver\w*|cusparse\w*|cufile|cupti"
    r"|nvrtc|nvrtc-builtins|nvJitLink|nvjpeg|nvfatbin|nvblas|npp\w+|nccl|nvshmem\w*"
    r"|nvinfer\w*|nvonnxparser|tensorrt\w*|onnxruntime_providers_\w+)"
)
_RUNTIMES = re.compile(r"onnxruntime(?:-[a-z0-9]+)*")
_NO_RUNTIME = frozenset({"onnxruntime-extensions", "onnxruntime-genai", "onnxruntime-tools"})


def find_libraries(contents: ImageContents, ownership: Ownership, asked: Asked) -> Iterator[Found]:
    """Each library and each pair in a finding of its own."""
    yield from _cuda_twice(contents, ownership)
    yield from _onnxruntime_twice(ownership)
    yield from _missing(contents, asked)


def _cuda_twice(contents: ImageContents, ownership: Ownership) -> Iterator[Found]:
    copies: dict[str, list[str]] = defaultdict(list)
    for path, placed in contents.visible.items():
        name = cuda_library(posixpath.basename(path))
        if not name and path in contents.elf_files:
            name = cuda_library(contents.elf_files[path].soname)
        # Stubs are for linkers, and no loader looks where they lie.
        if name and placed.file.kind == "file" and "/stubs/" not in path:
            copies[name].append(path)
    for name, paths in sorted(copies.items()):
        if len(paths) < 2:
            continue
        files = [contents.visible[path].file for path in paths]
        same = len({file.digest for file in files}) == 1 and files[0].digest
        yield Found(
            rule="cuda-twice",
            message=f"{name} is there {len(paths)} times, {{size}}, "
            f"{'with the same content' if same else 'in different builds'}",
            places=tuple(
                Place(path, file.size_bytes, _owner_text(ownership.owner_of(path)))
                for path, file in zip(paths, files, strict=True)
            ),
        )


def cuda_library(file_name: str) -> str:
    """`libcublasLt` for `libcublasLt-1a2b3c4d.so.13`, empty for what is no CUDA library."""
    found = _LIBRARY.fullmatch(file_name)
    return found["name"] if found and _CUDA.fullmatch(found["name"]) else ""


def _owner_text(owner: Owner) -> str:
    return f"{owner.kind} {owner.name} {owner.version}".strip()


def _onnxruntime_twice(ownership: Ownership) -> Iterator[Found]:
    """Packages that write the folder `onnxruntime`, in the same place."""
    places: dict[str, list[Place]] = defaultdict(list)
    for package in ownership.packages:
        name = re.sub(r"[-_.]+", "-", package.owner.name.lower())
        if package.owner.kind != "wheel" or name in _NO_RUNTIME or not _RUNTIMES.fullmatch(name):
            continue
        folder = posixpath.dirname(posixpath.dirname(package.source))
        places[folder].append(Place(package.source, note=f"{name} {package.owner.version}"))
    for found in places.values():
        if len(found) > 1:
            names = " and ".join(sorted(place.note for place in found))
            yield Found(
                rule="onnxruntime-twice",
                message=f"{names} are installed over each other",
                places=tuple(found),
            )


def _missing(contents: ImageContents, asked: Asked) -> Iterator[Found]:
    for finding in image_closure(contents, lazy_libraries=asked.lazy_libraries):
        library = finding.message.partition(" ")[0]
        yield Found(
            rule="library-missing",
            message=finding.message,
            places=(Place(library, note="; ".join(finding.evidence)),),
        )
