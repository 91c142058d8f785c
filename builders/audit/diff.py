"""What became of one image in another: packages, files, sizes by owner, configuration. Pure.

The owners' differences add up to the difference of the images, to the byte: files that a later
layer hides count as well, because they are pulled. Files are compared as a runtime sees them.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from builders.audit.config_diff import config_changes
from builders.audit.contents import ImageContents, Placed
from builders.audit.owners import IMAGE, Ownership
from builders.audit.visible import visible
from planyard.core.contents import ImageDiff, LayerFile, Movement, Owner, PackageChange

MOVEMENTS = 10
FILES = 20

_KINDS = {"debian": "Debian package", "wheel": "wheel"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def diff_images(
    before: ImageContents,
    before_owners: Ownership,
    after: ImageContents,
    after_owners: Ownership,
    *,
    files: int | None = FILES,
) -> ImageDiff:
    """The differences between two images; `files` is how many files are named, None for all."""
    found = _changed_files(before, after)
    chosen = found.movements()
    return ImageDiff(
        before=_title(before),
        after=_title(after),
        before_pull_bytes=before.pull_bytes,
        after_pull_bytes=after.pull_bytes,
        before_unpacked_bytes=before.unpacked_bytes,
        after_unpacked_bytes=after.unpacked_bytes,
        packages=tuple(_packages(before_owners, after_owners)),
        files_added=len(found.added),
        files_removed=len(found.removed),
        files_changed=len(found.changed),
        files=tuple(chosen if files is None else chosen[:files]),
        movements=tuple(
            _movements(_weights(before, before_owners), _weights(after, after_owners))[:MOVEMENTS]
        ),
        config=config_changes(before.config, after.config),
    )


def normal_name(owner: Owner) -> str:
    """The name under which a package is the same one: PyPI takes `-`, `_` and `.` for equal."""
    return re.sub(r"[-_.]+", "-", owner.name).lower() if owner.kind == "wheel" else owner.name


def _title(image: ImageContents) -> str:
    """`name digest`; what has no name is its digest alone."""
    digest = image.image if _DIGEST.fullmatch(image.image) else visible(image.image)
    return f"{visible(image.name)} {digest}" if image.name else digest


# Owners


@dataclass
class _Weight:
    """What one owner weighs: `versions` are all that an image has of it."""

    owner: Owner
    versions: set[str] = field(default_factory=set)
    pull_bytes: int = 0
    unpacked_bytes: int = 0


_Weights = Mapping[tuple[str, str], _Weight]


def _weights(image: ImageContents, owners: Ownership) -> _Weights:
    """The weight of each owner, whatever its version; the sums are the image's."""
    found: dict[tuple[str, str], _Weight] = {}

    def of(owner: Owner) -> _Weight:
        weight = found.setdefault(_key(owner), _Weight(owner))
        if owner.version:
            weight.versions.add(owner.version)
        return weight

    of(IMAGE).pull_bytes += image.metadata_bytes
    for layer in image.layers:
        of(IMAGE).pull_bytes += layer.rest_bytes
        for file in layer.files:
            weight = of(owners.owner_of(file.path))
            weight.pull_bytes += file.pull_bytes
            weight.unpacked_bytes += file.size_bytes if file.kind == "file" else 0
    return found


def _movements(before: _Weights, after: _Weights) -> list[Movement]:
    """Every owner whose weight is another, the largest difference first."""
    found = []
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        movement = Movement(
            what=_owner_text([each for each in (old, new) if each]),
            before_bytes=old.unpacked_bytes if old else None,
            after_bytes=new.unpacked_bytes if new else None,
            before_pull_bytes=old.pull_bytes if old else None,
            after_pull_bytes=new.pull_bytes if new else None,
        )
        if old is None or new is None or _weight_of(movement):
            found.append(movement)
    return sorted(found, key=lambda each: (-_weight_of(each), each.what))


def _weight_of(movement: Movement) -> int:
    return max(
        abs(_difference(movement.before_bytes, movement.after_bytes)),
        abs(_difference(movement.before_pull_bytes, movement.after_pull_bytes)),
    )


def _owner_text(sides: Sequence[_Weight]) -> str:
    """`numpy 1.26.4 → 2.4.6 (wheel)`."""
    owner = sides[-1].owner
    if owner.kind == "image":
        return "what is no file"
    if owner.kind == "project":
        return "the project's own files"
    versions = " → ".join(dict.fromkeys(_versions(each.versions) for each in sides))
    return visible(f"{' '.join(filter(None, (owner.name, versions)))} ({_KINDS[owner.kind]})")


def _difference(before: int | None, after: int | None) -> int:
    return (after or 0) - (before or 0)


# Packages


def _packages(before: Ownership, after: Ownership) -> Iterator[PackageChange]:
    """Packages that came, went, or have other versions, by kind and name."""
    old, new = _versions_by_package(before), _versions_by_package(after)
    owners = {_key(each.owner): each.owner for each in (*before.packages, *after.packages)}
    for key, owner in sorted(owners.items()):
        was, now = old.get(key), new.get(key)
        if was != now:
            yield PackageChange(
                kind=owner.kind,
                name=visible(owner.name),
                before=visible(_versions(was)) if was else None,
                after=visible(_versions(now)) if now else None,
            )


def _versions_by_package(owners: Ownership) -> dict[tuple[str, str], Counter[str]]:
    """The versions of each package; a second copy is a difference too."""
    found: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for package in owners.packages:
        found[_key(package.owner)][package.owner.version] += 1
    return found


def _key(owner: Owner) -> tuple[str, str]:
    """What stays when a package gets another version."""
    return owner.kind, normal_name(owner)


def _versions(versions: Iterable[str]) -> str:
    """`1.2`, `1.2, 1.3`, or `1.2 (2 copies)`."""
    return ", ".join(
        version + (f" ({count} copies)" if count > 1 else "")
        for version, count in sorted(Counter(versions).items())
    )


# Files


@dataclass(frozen=True)
class _Files:
    """Paths of files that are in one image alone, or differ, with both sides."""

    added: dict[str, LayerFile]
    removed: dict[str, LayerFile]
    changed: dict[str, tuple[LayerFile, LayerFile]]

    def movements(self) -> list[Movement]:
        """One line for each file, the largest difference first; a moved file is one line."""
        moved = dict(_moved(self.added, self.removed))
        left = set(moved.values())
        found = [
            Movement(
                what=_changed_text(path, old, new), before_bytes=_size(old), after_bytes=_size(new)
            )
            for path, (old, new) in self.changed.items()
        ]
        for path, file in self.added.items():
            origin = moved.get(path)
            found.append(
                Movement(
                    what=visible(f"{origin} → {path}" if origin else path),
                    before_bytes=_size(file) if origin else None,
                    after_bytes=_size(file),
                )
            )
        found += [
            Movement(what=visible(path), before_bytes=_size(file), after_bytes=None)
            for path, file in self.removed.items()
            if path not in left
        ]
        return sorted(found, key=_by_weight)


def _by_weight(movement: Movement) -> tuple[int, int, str]:
    before, after = movement.before_bytes, movement.after_bytes
    return -abs(_difference(before, after)), -max(before or 0, after or 0), movement.what


def _changed_files(before: ImageContents, after: ImageContents) -> _Files:
    old, new = _files_of(before), _files_of(after)
    return _Files(
        added={path: new[path] for path in new.keys() - old.keys()},
        removed={path: old[path] for path in old.keys() - new.keys()},
        changed={
            path: (old[path], new[path])
            for path in old.keys() & new.keys()
            if _identity(old[path]) != _identity(new[path])
        },
    )


def _files_of(image: ImageContents) -> dict[str, LayerFile]:
    """What a runtime sees, but for folders."""
    placed: Mapping[str, Placed] = image.visible
    return {path: each.file for path, each in placed.items() if each.file.kind != "folder"}


def _identity(file: LayerFile) -> tuple[object, ...]:
    content = file.digest or file.size_bytes
    return file.kind, content, file.link, file.mode, file.uid, file.gid, file.capabilities


def _moved(
    added: Mapping[str, LayerFile], removed: Mapping[str, LayerFile]
) -> Iterator[tuple[str, str]]:
    """Pairs of a new path and the one its content had before; the same file name is preferred."""
    origins: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(removed, reverse=True):
        if removed[path].digest and removed[path].size_bytes:
            origins[removed[path].digest].append(path)
    for path in sorted(added):
        if waiting := origins.get(added[path].digest):
            name = posixpath.basename(path)
            same = [each for each in waiting if posixpath.basename(each) == name]
            origin = (same or waiting)[-1]
            waiting.remove(origin)
            yield path, origin


def _changed_text(path: str, old: LayerFile, new: LayerFile) -> str:
    """The path, and what else than its content is another."""
    notes = []
    if old.kind != new.kind:
        notes.append(f"{old.kind} → {new.kind}")
    elif old.link != new.link:
        notes.append(f"to {old.link} → to {new.link}")
    if old.mode != new.mode and "link" not in (old.kind, new.kind):
        notes.append(f"mode {old.mode & 0o7777:04o} → {new.mode & 0o7777:04o}")
    if (old.uid, old.gid) != (new.uid, new.gid):
        notes.append(f"owner {old.uid}:{old.gid} → {new.uid}:{new.gid}")
    if old.capabilities != new.capabilities:
        notes.append("has capabilities" if new.capabilities else "has no capabilities any more")
    return visible(path + (f" ({', '.join(notes)})" if notes else ""))


def _size(file: LayerFile) -> int:
    return file.size_bytes if file.kind == "file" else 0
