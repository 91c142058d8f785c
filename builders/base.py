"""Bases: a Debian root bootstrapped from a package list, or a registry reference as it stands.

A Debian root has no shell, apt or dpkg: packages are only extracted, never configured. What was
resolved (package, version, sha256) is recorded and kept until `--refresh-bases` resolves anew. The
root itself says what is in it as distroless images do, in /var/lib/dpkg/status.d: scanners know it.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import tarfile
from collections.abc import Mapping
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
    "var/lib/dpkg/[!s]*",
    "var/lib/dpkg/statoverride*",
    "var/lib/dpkg/status",
    "var/lib/dpkg/status-*",
    "var/log/*",
    "tmp/*",
)
_HOOK = """#!/bin/sh
# Called by mmdebstrap with the new root: what apt resolved and checked, before it is cleaned away.
# For each package its control file, and the sums of what it holds, settings included.
set -eu
umask 022
scratch="$(dirname "$0")"
cd "$1/var/cache/apt/archives"
sha256sum -- *.deb > "$scratch/packages"
cd "$1"
mkdir -p var/lib/dpkg/status.d
for deb in var/cache/apt/archives/*.deb; do
    rm -rf "$scratch/control"
    dpkg-deb --control "$deb" "$scratch/control"
    name="$(dpkg-deb --field "$deb" Package)"
    cp "$scratch/control/control" "var/lib/dpkg/status.d/$name"
    sums="var/lib/dpkg/status.d/$name.md5sums"
    : > "$sums"
    [ ! -f "$scratch/control/md5sums" ] || cat "$scratch/control/md5sums" > "$sums"
    [ ! -f "$scratch/control/conffiles" ] ||
        sed -n 's|^/||p' "$scratch/control/conffiles" | xargs -r -d '\\n' md5sum -- >> "$sums"
    chmod 644 "var/lib/dpkg/status.d/$name" "$sums"
done
"""
_STATUS = "var/lib/dpkg/status.d/"
_SUMS = ".md5sums"
_DOCUMENTATION = "usr/share/doc/"
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
            remove = (*_FOREIGN, *spec.remove)
            lists = package_lists(raw, remove=remove)
            filter_root(raw, clean, remove=remove, epoch_seconds=epoch, lists=lists)
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
            "hook": _HOOK,
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


def package_lists(raw: Path, *, remove: tuple[str, ...]) -> dict[str, bytes | None]:
    """What the root's lists of packages say once `remove` is gone: lines of other files only.

    A package of which nothing but documentation is left is None, and so are its sums: nobody has
    to mend a program that is not there.
    """
    pattern = _any_of(remove)
    found: dict[str, bytes | None] = {}
    with tarfile.open(raw, encoding="utf-8") as source:
        for member in source:
            name = member.name.removeprefix("./")
            if not (name.startswith(_STATUS) and name.endswith(_SUMS) and member.isreg()):
                continue
            body = source.extractfile(member)
            lines = body.read().decode(errors="surrogateescape").splitlines() if body else []
            kept = [line for line in lines if not pattern.match(line[34:])]
            if _programs(lines) and not _programs(kept):
                found[name] = found[name.removesuffix(_SUMS)] = None
            else:
                text = "".join(f"{line}\n" for line in kept)
                found[name] = text.encode(errors="surrogateescape")
    return found


def _programs(lines: list[str]) -> bool:
    """Whether a list names more than documentation."""
    return any(not line[34:].startswith(_DOCUMENTATION) for line in lines)


def _any_of(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs))


def filter_root(
    raw: Path,
    clean: Path,
    *,
    remove: tuple[str, ...],
    epoch_seconds: int,
    lists: Mapping[str, bytes | None] | None = None,
) -> None:
    """Copy a root's tar without what `remove` matches, in a normal form that digests equally.

    Nothing is extracted. A file that was removed and has other names lives on under the first.
    `lists` are files with another content, or None for those that go.
    """
    pattern = _any_of(remove)
    lists = lists or {}
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
            if lists.get(name, b"") is None:
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
            if (listed := lists.get(name)) is not None:
                member.size, body = len(listed), io.BytesIO(listed)
            target.addfile(normalise_member(member, epoch_seconds=epoch_seconds), body)
