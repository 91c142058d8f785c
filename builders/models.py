"""Fetching models: read once, checked against their digests, kept in a content-addressed cache.

Nothing becomes visible before every digest held and the ONNX outline named no file outside the
model's folder, and no ONNX parser has seen the model by then. What the matrix declares of the
inputs is compared with the file at every fetch. How the cache lies on disk is `model_cache.py`,
how each kind of source is read `model_sources.py`.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from builders.model_cache import (
    FILES,
    MODEL_FILE,
    Work,
    load_entry,
    locked,
    publish,
    rehash_entry,
    work_for,
)
from planyard.core.digest import digest_of_value
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.core.matrix import Model, TensorSpec
from planyard.core.onnx_outline import (
    OnnxOutline,
    Shape,
    ValueInfo,
    check_external_locations,
    outline_of_onnx,
    plain_path,
    why_not_plain,
)
from planyard.edge.beneath import open_beneath
from planyard.edge.files import digest_of_file

if TYPE_CHECKING:
    from builders.model_sources import Reader

MODEL_LIMIT_BYTES = (1 << 31) - 1  # protobuf's own limit for one message
EXTERNAL_LIMIT_BYTES = 64 << 30

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class FetchedModel:
    """A model in the cache, checked when it was written; `folder` holds its files and no others.

    `external` gives the digest of each external file by its path in `folder`.
    """

    name: str
    path: Path
    folder: Path
    sha256: str
    external: Mapping[str, str]
    size_bytes: int
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]

    def outline(self) -> OnnxOutline:
        """The whole outline, read from the file."""
        return outline_of_file(self.path)

    def attention_blocks(self) -> int | None:
        """How many attention blocks the graph has; None where that cannot be read from it."""
        from planyard.core.attention import count_attention

        try:
            return count_attention(_mapped(self.path))
        except ValueError:
            return None


def fetch_model(
    name: str,
    model: Model,
    *,
    root: Path,
    cache: Path,
    network: bool,
    report: Report,
    verify: bool = False,
) -> FetchedModel:
    """The model from the cache, fetched into it first when it is not there.

    `root` is the folder of the matrix. Without `network` only the cache, files and generators are
    used. `verify` hashes a cached model again. Raises InputError (the model is not what the matrix
    declares, or names files it must not), StoreError (unreachable), IntegrityError (a digest).
    """
    digests = _digests(name, model)
    folder = cache / "models" / identity_of_model(model).removeprefix("sha256:")
    entry = load_entry(folder, digests)
    if entry is None:
        _fill(name, model, digests, folder=folder, root=root, network=network, report=report)
        entry = load_entry(folder, digests)
        if entry is None:
            raise StoreError(f"models.{name}: {folder} changed while it was written")
    elif verify:
        rehash_entry(folder, entry)
    if problems := input_problems(f"models.{name}.inputs", model.inputs, entry.inputs):
        raise InputError(problems)
    return FetchedModel(
        name=name,
        path=folder / FILES / MODEL_FILE,
        folder=folder / FILES,
        sha256=model.sha256,
        external=_without_model(digests),
        size_bytes=sum(entry.sizes.values()),
        inputs=entry.inputs,
        outputs=entry.outputs,
    )


def identity_of_model(model: Model) -> str:
    """The digest of a model with its external weights: what names its cache entry."""
    external = {plain_path(file): digest for file, digest in model.external_data.items()}
    return digest_of_value({"schema": 1, "model": model.sha256, "external": external})


def outline_of_file(path: Path) -> OnnxOutline:
    """The outline of an ONNX file, mapped instead of read; ValueError when it is none."""
    return outline_of_onnx(_mapped(path))


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError("byte 0: the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def input_problems(
    where: str, declared: Mapping[str, TensorSpec], actual: Sequence[ValueInfo]
) -> tuple[str, ...]:
    """How the declared inputs differ from the file's; the last line says what the file has."""
    found = {value.name: value for value in actual}
    problems = [f"{where}.{name}: the file has no such input" for name in declared.keys() - found]
    problems += [f"{where}: {name!r} is missing" for name in found.keys() - declared]
    for name in declared.keys() & found.keys():
        spec, value = declared[name], found[name]
        if spec.dtype != value.dtype or not _is_same_shape(spec.shape, value.shape):
            says = f"{spec.dtype} {_shape_text(spec.shape)}"
            problems.append(f"{where}.{name}: the matrix says {says}, the file {_text(value)}")
    if not problems:
        return ()
    has = ", ".join(f"{value.name} {_text(value)}" for value in actual)
    return (*sorted(problems), f"{where}: the file has {has or 'no inputs'}")


def _is_same_shape(declared: Shape, actual: Shape | None) -> bool:
    """Fixed dimensions are equal, dynamic ones have a name in the matrix, whatever name it is.

    Exporters also write 0 or -1 for a dynamic dimension.
    """
    if actual is None:
        return True
    fixed = [size if isinstance(size, int) and size > 0 else None for size in actual]
    return fixed == [size if isinstance(size, int) else None for size in declared]


def _text(value: ValueInfo) -> str:
    shape = "of any shape" if value.shape is None else _shape_text(value.shape)
    return f"{value.dtype} {shape}"


def _shape_text(shape: Shape) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def check_external_files(
    folder: Path, outline: OnnxOutline, listed: Mapping[str, str]
) -> tuple[str, ...]:
    """Why a model's external files are refused; empty when all is well.

    Each location is plain and in `listed`; on disk it is a regular file with one name, reached
    through no symbolic link below `folder`, and large enough for the tensors that lie in it.
    """
    if problems := _location_problems(outline, listed):
        return problems
    needed = dict.fromkeys(listed, 0)
    for place in outline.external:
        file = plain_path(place.location)
        needed[file] = max(needed[file], place.offset_bytes + (place.length_bytes or 0))
    return tuple(
        problem
        for file, size_bytes in needed.items()
        if (problem := _file_problem(folder, file, size_bytes))
    )


def _file_problem(folder: Path, file: str, size_bytes: int) -> str:
    try:
        with open_beneath(folder, file) as opened:
            has_bytes = os.fstat(opened.fileno()).st_size
    except InputError as error:
        return error.message
    if has_bytes < size_bytes:
        return f"{file!r}: has {has_bytes} bytes where its tensors need {size_bytes}"
    return ""


def _location_problems(outline: OnnxOutline, listed: Mapping[str, str]) -> tuple[str, ...]:
    """What can be said before any external file is there."""
    if problems := check_external_locations(outline):
        return problems
    named = {plain_path(place.location) for place in outline.external}
    return (
        *(f"{file!r}: not listed in external_data" for file in sorted(named - listed.keys())),
        *(f"{file!r}: no tensor of the model lies there" for file in sorted(listed.keys() - named)),
    )


def _digests(name: str, model: Model) -> dict[str, str]:
    """Every file of a model by its path in the entry; InputError for paths that are not plain."""
    problems, digests = [], {MODEL_FILE: model.sha256}
    for file, digest in model.external_data.items():
        reason = why_not_plain(file) or ("the name is taken" if plain_path(file) in digests else "")
        if reason:
            problems.append(f"models.{name}.external_data: {file!r}: {reason}")
        digests[plain_path(file)] = digest
    if problems:
        raise InputError(problems)
    return digests


def _without_model(digests: Mapping[str, str]) -> dict[str, str]:
    return {file: digest for file, digest in digests.items() if file != MODEL_FILE}


def _fill(
    name: str,
    model: Model,
    digests: Mapping[str, str],
    *,
    folder: Path,
    root: Path,
    network: bool,
    report: Report,
) -> None:
    """Make the cache entry, unless another process makes it while this one waits."""
    # Imported here: a build with a warm cache has no use for TLS, zip files and processes.
    from builders.model_sources import open_source

    def on_wait() -> None:
        report(f"model {name}: waiting for another process that fetches it")

    try:
        with locked(folder, on_wait=on_wait):
            if load_entry(folder, digests):
                return
            if folder.exists():
                report(f"model {name}: its cache entry is damaged and is fetched again")
                shutil.rmtree(folder)
            with work_for(folder) as work:
                reader = open_source(
                    model.source, root=root, scratch=work.scratch, parts=work.parts, report=report
                )
                _check_network(name, reader, network=network)
                report(f"model {name}: fetching {reader.text}")
                outline = _read_all(reader, work, digests)
                publish(work, folder, digests=digests, outline=outline)
    except InputError as error:
        problems = [f"models.{name}: {problem}" for problem in error.problems]
        raise InputError(problems, mend=error.mend) from error
    except OSError as error:
        message = f"models.{name}: {error.strerror or error}: {error.filename or folder}"
        raise StoreError(message, mend="check space and rights of the cache's disk") from error


def _check_network(name: str, reader: Reader, *, network: bool) -> None:
    if reader.uses_network and not network:
        message = f"models.{name}: {reader.text} is not in the cache, and the network is off"
        raise StoreError(message, mend="fetch it once with the network on")


def _read_all(reader: Reader, work: Work, digests: Mapping[str, str]) -> OnnxOutline:
    """Read and check the model, then the files that it names, in that order."""
    listed = _without_model(digests)
    path = work.files / MODEL_FILE
    _read(reader, reader.model, path, work=work, digest=digests[MODEL_FILE])
    try:
        outline = outline_of_file(path)
    except ValueError as error:
        raise InputError([f"{reader.text} is not a sound ONNX file: {error}"]) from error
    if problems := _location_problems(outline, listed):
        raise InputError(problems)
    for file, digest in listed.items():
        (work.files / file).parent.mkdir(parents=True, exist_ok=True)
        _read(reader, file, work.files / file, work=work, digest=digest)
    if problems := check_external_files(work.files, outline, listed):
        raise InputError(problems)
    return outline


def _read(reader: Reader, file: str, target: Path, *, work: Work, digest: str) -> None:
    """Read one file and check its digest; a fetch that died may have left it, whole."""
    if target.is_file() and digest_of_file(target) == digest:
        return
    limit_bytes = MODEL_LIMIT_BYTES if file == reader.model else EXTERNAL_LIMIT_BYTES
    went_on = any(work.parts.iterdir())
    reader.read(file, target, limit_bytes)
    actual = digest_of_file(target)
    if actual != digest and went_on:
        # The server's file may have changed since the part that the download went on from.
        reader.read(file, target, limit_bytes)
        actual = digest_of_file(target)
    if actual != digest:
        message = f"{file} of {reader.text}: expected {digest}, found {actual}"
        raise IntegrityError(message, mend="correct sha256 in the matrix if the change is meant")
