"""Parts: folders as one compressed stream, cut so that each part fits a transfer, and put back.

`python bundle.py join PARTS INTO [GROUP …]` puts back every group whose parts are here. Standard
library alone: it runs before anything is installed. `manifest.json` lies beside the parts:

    schema   1
    parts    in order, each with name, size_bytes, sha256; put together they are the stream
    groups   in order, each with name, offset (in the stream), size_bytes and sha256 of its tar,
             and `blocks`: the lengths of its pieces, each BLOCK_BYTES of the tar as xz

Blocks are compressed apart, so that all cores work in both directions. Groups come in the order
they are needed: the first parts are of use while the last are under way.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import lzma
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

SCHEMA = 1
MANIFEST = "manifest.json"
PART_BYTES = 54 << 20
"""A transfer takes 64 MiB, and the checkout travels with each part."""
BLOCK_BYTES = 8 << 20
PRESET = 6
_READ_BYTES = 1 << 20


class BundleError(Exception):
    """Parts that are missing, damaged or of another bundle: which, and what to do."""


def write_tar(folder: Path, target: Path) -> None:
    """The files of a folder, by name, with no date or owner: the same bytes every time."""
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = tarfile.TarInfo(str(path.relative_to(folder)))
                entry.size = path.stat().st_size
                entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
                with path.open("rb") as file:
                    tar.addfile(entry, file)


def compress(tar: Path, target: Path, *, preset: int = PRESET) -> dict[str, Any]:
    """Write a tar as xz blocks, one after another; returns what the manifest says of it."""
    whole, lengths = hashlib.sha256(), []
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": preset}]

    def squeeze(block: bytes) -> bytes:
        return lzma.compress(block, format=lzma.FORMAT_XZ, filters=filters)

    with tar.open("rb") as file, target.open("wb") as out:
        for packed in _in_order(squeeze, _blocks(file, whole)):
            lengths.append(len(packed))
            out.write(packed)
    return {"size_bytes": tar.stat().st_size, "sha256": whole.hexdigest(), "blocks": lengths}


def _blocks(file: BinaryIO, whole: Any) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        whole.update(block)
        yield block


def _in_order(work: Any, given: Iterable[Any]) -> Iterator[Any]:
    """Results in order, by all cores; no more is held than twice as many pieces as cores."""
    cores = len(os.sched_getaffinity(0))
    given = iter(given)
    with ThreadPoolExecutor(cores) as pool:
        waiting = [pool.submit(work, each) for each in itertools.islice(given, 2 * cores)]
        while waiting:
            result = waiting.pop(0).result()
            if (more := next(given, None)) is not None:
                waiting.append(pool.submit(work, more))
            yield result


def split(
    streams: Sequence[tuple[str, Path, dict[str, Any]]], folder: Path, *, part_bytes: int
) -> dict[str, Any]:
    """Cut compressed groups (name, file, its entry) into parts; the manifest is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / MANIFEST, *folder.glob("part-*")]:
        old.unlink(missing_ok=True)
    groups, offset = [], 0
    for name, path, entry in streams:
        groups.append({"name": name, "offset": offset, **entry})
        offset += path.stat().st_size
    parts = []
    pieces = Stream(path for _, path, _ in streams)
    for number in itertools.count():
        name = f"part-{number:03}"
        digest, size_bytes = _fill(folder / name, pieces, part_bytes)
        if not size_bytes:
            (folder / name).unlink()
            break
        parts.append({"name": name, "size_bytes": size_bytes, "sha256": digest})
    manifest = {"schema": SCHEMA, "parts": parts, "groups": groups}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


class Stream:
    """The bytes of files, one after another."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = iter(paths)
        self._file: BinaryIO | None = None

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes; none at the end of the last file."""
        while True:
            if self._file is None:
                path = next(self._paths, None)
                if path is None:
                    return b""
                self._file = path.open("rb")
            if data := self._file.read(limit):
                return data
            self._file.close()
            self._file = None


def _fill(path: Path, pieces: Stream, limit: int) -> tuple[str, int]:
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("wb") as out:
        while size_bytes < limit and (data := pieces.read(min(_READ_BYTES, limit - size_bytes))):
            out.write(data)
            digest.update(data)
            size_bytes += len(data)
    return digest.hexdigest(), size_bytes


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest beside the parts; BundleError where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} has no {MANIFEST}: run tests/gpu/fetch.sh") from error
    if manifest.get("schema") != SCHEMA:
        raise BundleError(f"{MANIFEST} is of another version of this script: fetch again")
    return manifest


def join(folder: Path, into: Path, *, only: Sequence[str] = ()) -> dict[str, str]:
    """Put back the groups whose parts are here; returns what came of each, by its name.

    A group that is there already, whole, is left as it is. Raises BundleError for a damaged part.
    """
    manifest = read_manifest(folder)
    if unknown := set(only) - {group["name"] for group in manifest["groups"]}:
        raise BundleError(f"no group is called {', '.join(sorted(unknown))}")
    into.mkdir(parents=True, exist_ok=True)
    checked: set[str] = set()
    said = {}
    for group in manifest["groups"]:
        name = group["name"]
        if only and name not in only:
            continue
        done = into / f".{name}.joined"
        if done.is_file() and done.read_text() == group["sha256"]:
            said[name] = "was here"
        elif missing := _missing(folder, manifest, group):
            said[name] = f"waits for {', '.join(missing)}"
        else:
            _check(folder, _parts_of(manifest, group), checked)
            _extract(folder, manifest, group, into / name)
            done.write_text(group["sha256"])
            said[name] = "joined"
    return said


def _parts_of(manifest: dict[str, Any], group: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts that bytes of a group lie in."""
    begin, end = group["offset"], group["offset"] + sum(group["blocks"])
    found, at = [], 0
    for part in manifest["parts"]:
        if at < end and at + part["size_bytes"] > begin:
            found.append(part)
        at += part["size_bytes"]
    return found


def _missing(folder: Path, manifest: dict[str, Any], group: dict[str, Any]) -> list[str]:
    return [
        part["name"] for part in _parts_of(manifest, group) if not (folder / part["name"]).is_file()
    ]


def _check(folder: Path, parts: Sequence[dict[str, Any]], checked: set[str]) -> None:
    for part in parts:
        if part["name"] in checked:
            continue
        path = folder / part["name"]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != part["sha256"]:
            raise BundleError(f"{part['name']} is damaged, or of another bundle: carry it again")
        checked.add(part["name"])


def _extract(folder: Path, manifest: dict[str, Any], group: dict[str, Any], target: Path) -> None:
    """Write the files of a group; the tar's digest is checked before any of them counts."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    tar = target.with_name(f".{target.name}.tar")
    whole = hashlib.sha256()
    with tar.open("wb") as out:
        for block in _in_order(lzma.decompress, _packed(folder, manifest, group)):
            whole.update(block)
            out.write(block)
    if whole.hexdigest() != group["sha256"]:
        raise BundleError(f"{group['name']} does not have the digest of the manifest")
    with tarfile.open(tar) as archive:
        archive.extractall(part, filter="data")
    tar.unlink()
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def _packed(folder: Path, manifest: dict[str, Any], group: dict[str, Any]) -> Iterator[bytes]:
    """The compressed blocks of a group, from wherever they lie in the parts."""
    parts = _parts_of(manifest, group)
    before = itertools.takewhile(lambda part: part != parts[0], manifest["parts"])
    stream = Stream(folder / part["name"] for part in parts)
    _take(stream, group["offset"] - sum(part["size_bytes"] for part in before))
    for length in group["blocks"]:
        yield _take(stream, length)


def _take(stream: Stream, length: int) -> bytes:
    taken = io.BytesIO()
    while (left := length - taken.tell()) > 0:
        data = stream.read(left)
        if not data:
            raise BundleError("the parts end before their groups do")
        taken.write(data)
    return taken.getvalue()


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0 when all that was asked for is here, 1 when parts are missing."""
    if len(arguments) < 3 or arguments[0] != "join":
        print("usage: bundle.py join PARTS INTO [GROUP …]", file=sys.stderr)
        return 2
    try:
        said = join(Path(arguments[1]), Path(arguments[2]), only=arguments[3:])
    except BundleError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 10
    for name, what in said.items():
        print(f"bundle: {name}: {what}")
    return int(any(what.startswith("waits") for what in said.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
