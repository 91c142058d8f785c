"""Bases: a Debian root bootstrapped from a package list, or a registry reference as it stands.

A Debian root has no shell, apt or dpkg: packages are only extracted, never configured. What was
resolved (package, version, sha256) is recorded and kept until `--refresh-bases` resolves anew.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tarfile
from pathlib import Path

import msgspec

from builders.layers import normalise_member
from planyard.core.digest import digest_of_value, short
from planyard.core.errors import ImageBuildError, IntegrityError
from planyard.core.matrix import DebianBase
from planyard.core.results import Package
from planyard.edge import files, proc
from planyard.edge.console import Report

# Made by mmdebstrap for its own run or copied from the building machine: never part of a base.
_FOREIGN = (
    "dev/*",
    "etc/apt*",
    "etc/hostname",
    "etc/resolv.conf",
    "etc/fstab",
    "var/cache/*",
    "var/lib/apt*",
    "var/lib/dpkg*",
    "var/log/*",
    "tmp/*",
)
_HOOK = """#!/bin/sh
# Called by mmdebstrap with the new root: what apt resolved and checked, before it is cleaned away.
cd "$1/var/cache/apt/archives" && sha256sum -- *.deb > "$(dirname "$0")/packages"
"""
_DEB = re.compile(r"^([0-9a-f]{64})  ([a-z0-9][a-z0-9+.-]+)_([^_]+)_[a-z0-9]+\.deb$")


class ResolvedBase(msgspec.Struct, frozen=True, kw_only=True):
    """A bootstrapped root: its tar by digest, and the packages in it."""

    digest: str
    packages: tuple[Package, ...]

    @property
    def tag(self) -> str:
        """The local tag under which the engine knows this base."""
        return f"planyard-base:{short(self.digest)}"


class BaseCache:
    """Bootstrapped roots in a folder, by what was asked for."""

    def __init__(self, folder: Path, *, epoch_seconds: int) -> None:
        self.folder = folder
        self.epoch_seconds = epoch_seconds

    def tar_path(self, base: ResolvedBase) -> Path:
        """Where the root's tar lies."""
        return self.folder / f"{base.digest.removeprefix('sha256:')}.tar"

    def find(self, spec: DebianBase) -> ResolvedBase | None:
        """The root resolved earlier for `spec`, or None."""
        path = self._record_path(spec)
        if not path.exists():
            return None
        base = msgspec.json.decode(path.read_bytes(), type=ResolvedBase)
        return base if self.tar_path(base).exists() else None

    def verified_tar(self, base: ResolvedBase) -> Path:
        """Where the root's tar lies; raises IntegrityError when it is not what its digest says."""
        path = self.tar_path(base)
        found = files.digest_of_file(path)
        if found != base.digest:
            raise IntegrityError(
                f"{path} is damaged: it should be {base.digest} and is {found}",
                mend=f"remove {path} and build again",
            )
        return path

    def bootstrap(self, spec: DebianBase, *, report: Report) -> ResolvedBase:
        """Resolve and extract `spec` with mmdebstrap; ImageBuildError carries its log's tail."""
        with files.scratch_folder(self.folder, prefix=".bootstrap-") as scratch:
            raw = scratch / "raw.tar"
            epoch = self.epoch_seconds
            hook = _write_hook(scratch)
            _mmdebstrap(spec, raw=raw, hook=hook, epoch_seconds=epoch, report=report)
            clean = scratch / "clean.tar"
            filter_root(raw, clean, remove=(*_FOREIGN, *spec.remove), epoch_seconds=epoch)
            base = ResolvedBase(
                digest=files.digest_of_file(clean),
                packages=packages_from_sums((scratch / "packages").read_text()),
            )
            clean.replace(self.tar_path(base))
        files.write_bytes(self._record_path(spec), msgspec.json.encode(base))
        return base

    def forget(self) -> None:
        """Forget what packages were resolved to: the next build asks the mirror again."""
        for record in self.folder.glob("*.json"):
            record.unlink()

    def _record_path(self, spec: DebianBase) -> Path:
        asked = {
            "spec": msgspec.to_builtins(spec),
            "epoch_seconds": self.epoch_seconds,
            "foreign": _FOREIGN,
        }
        return self.folder / f"{digest_of_value(asked).removeprefix('sha256:')}.json"


def packages_from_sums(text: str) -> tuple[Package, ...]:
    """The packages named in `sha256sum` lines of .deb files; apt writes `:` as `%3a` in names."""
    found = []
    for line in text.splitlines():
        match = _DEB.match(line)
        if not match:
            raise ImageBuildError(f"mmdebstrap listed a package this does not understand: {line!r}")
        sha256, name, version = match.groups()
        found.append(Package(name=name, version=version.replace("%3a", ":"), sha256=sha256))
    return tuple(sorted(found, key=lambda package: package.name))


def _write_hook(scratch: Path) -> Path:
    hook = scratch / "record-packages"
    hook.write_text(_HOOK)
    hook.chmod(0o755)
    scratch.chmod(0o755)
    return hook


def _mmdebstrap(
    spec: DebianBase, *, raw: Path, hook: Path, epoch_seconds: int, report: Report
) -> None:
    program = proc.find_program("mmdebstrap")
    if not program:
        raise ImageBuildError("mmdebstrap is not installed", mend="planyard setup")
    args = [
        program,
        "--variant=extract",
        f"--include={','.join(spec.packages)}",
        f"--extract-hook={hook}",
        spec.release,
        str(raw),
    ]
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch_seconds)}
    try:
        proc.run(args, timeout_seconds=900, env=env, on_line=report)
    except proc.ProcessError as error:
        raise ImageBuildError(
            f"the base {spec.release} could not be bootstrapped: {error}",
            mend="check the package names in matrix.yaml and that the Debian mirror answers",
            log_tail=error.tail,
        ) from error


def filter_root(raw: Path, clean: Path, *, remove: tuple[str, ...], epoch_seconds: int) -> None:
    """Copy a root's tar without what `remove` matches, in a normal form that digests equally.

    Nothing is extracted. A file that was removed and has other names lives on under the first.
    """
    pattern = re.compile("|".join(fnmatch.translate(glob) for glob in remove))
    with (
        tarfile.open(raw, encoding="utf-8") as source,
        tarfile.open(clean, "w", format=tarfile.PAX_FORMAT, encoding="utf-8") as target,
    ):
        seen: set[str] = set()
        removed: dict[str, tarfile.TarInfo] = {}
        moved: dict[str, str] = {}
        for member in source:
            member.name = name = member.name.removeprefix("./")
            if name in ("", ".") or name in seen:
                continue
            if pattern.match(name):
                removed[name] = member
                continue
            seen.add(name)
            content = member
            if member.islnk():
                linked = member.linkname.removeprefix("./")
                member.linkname = moved.get(linked, linked)
                if linked in removed and linked not in moved:
                    content, moved[linked] = removed[linked], name
                    member.type, member.size, member.linkname = content.type, content.size, ""
            body = source.extractfile(content) if content.isreg() else None
            target.addfile(normalise_member(member, epoch_seconds=epoch_seconds), body)
