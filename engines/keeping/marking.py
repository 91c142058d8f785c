"""What of a store is kept, and why: marked from its roots through everything they name.

Roots are channels, the newest snapshots, what is young, and entries of kinds whose use cannot be
told. Everything read on the way is verified: with one damaged entry, map or manifest nothing can
be said about what it named, and marking ends with IntegrityError.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from engines.channels.history import PROMOTIONS, history, read_head
from engines.channels.record import key_of_channel
from engines.keeping import reach
from engines.keeping.reach import Said, said_by
from engines.store import objects as names
from engines.store.chunk_map import MAP_LIMIT_BYTES, map_from_bytes
from engines.store.claims import CLAIMS, SWEEPS
from engines.store.manifest import MANIFEST_LIMIT_BYTES, manifest_from_bytes
from engines.store.objects import Listed
from engines.store.protocol import ENTRY_LIMIT_BYTES, verified
from engines.store.store import ObjectStore
from planyard.core.errors import InputError, IntegrityError, StoreError

CHANNEL, SNAPSHOT, CLAIM, YOUNG, LASTING = "channel", "snapshot", "claim", "young", "lasting"
"""Why an object is kept; the first reason found counts."""

Inventory = Mapping[str, Listed]
"""Every object of a store by name."""

_OF_UNKNOWN_USE = (reach.GOLDENS, reach.PROBES, reach.LATENCIES)
_MEND = "run `planyard store fsck`, and mend what it finds, first"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is kept: for each channel the images of its last records, for each image name and GPU
    the last snapshots, and whatever was written within the grace period."""

    channel_records: int = 10
    snapshots: int = 10
    grace_seconds: float = 7 * 86_400.0


_LOOKS = (names.INDEX, names.MAPS, names.BLOBS, names.PACKS)


def take_inventory(store: ObjectStore) -> dict[str, Listed]:
    """List all objects, claims before maps: a writer removes its claim once its map is there."""
    return {each.name: each for area in _LOOKS for each in store.objects.listing(area)}


class Marker:
    """Marks a store, again and again; what was read once is not read again: it cannot change."""

    def __init__(self, store: ObjectStore, policy: Policy) -> None:
        self._store, self._policy = store, policy
        self._said: dict[str, Said] = {}
        self._packs: dict[str, tuple[str, ...]] = {}
        self._layers: dict[str, tuple[str, ...]] = {}

    def mark(self, inventory: Inventory, *, oldest_young: float) -> dict[str, str]:
        """The names of what is kept, each with why. Young is what is modified after a moment."""
        marking = _Marking(self, inventory)
        for entries, images in self._channels():
            marking.keep_names(entries, CHANNEL)
            marking.keep_digests(images, CHANNEL)
        for name in self._newest_snapshots(marking.snapshots):
            marking.keep_entry(name, SNAPSHOT)
        for listed in inventory.values():
            if listed.modified is None or listed.modified > oldest_young:
                marking.keep_young(listed.name)
        for name in marking.entries:
            kind = name.split("/")[1]
            if kind in _OF_UNKNOWN_USE or kind not in reach.KINDS:
                marking.keep_entry(name, LASTING)
        return marking.kept

    def _channels(self) -> Iterator[tuple[list[str], set[str]]]:
        """For each channel all its records, and the digests that the last ones need."""
        for channel in self._store.objects.pointers():
            head = read_head(self._store, channel)
            if head is None:
                continue
            key = key_of_channel(channel)
            entries: list[str] = []
            needed: set[str] = set()
            for number, state in enumerate(history(self._store, head.state)):
                entries.append(names.entry_name(PROMOTIONS, key, state.entry))
                if number < max(1, self._policy.channel_records):
                    needed |= {state.image, *state.snapshots, state.evidence} - {""}
            yield entries, needed

    def _newest_snapshots(self, found: Mapping[str, reach.SnapshotOutline]) -> Iterator[str]:
        groups = defaultdict(list)
        for name, outline in found.items():
            groups[outline.image_name, outline.gpu].append((outline.created, name))
        for group in groups.values():
            group.sort(reverse=True)
            yield from (name for _, name in group[: self._policy.snapshots])

    def said(self, name: str) -> Said:
        """What an entry says."""
        if name not in self._said:
            _, kind, key, _ = name.split("/")
            key = f"sha256:{key}"
            try:
                document = self._read(name, limit_bytes=ENTRY_LIMIT_BYTES)
            except FileNotFoundError:
                if kind != CLAIMS:
                    raise _removed(self._store, name) from None
                self._said[name] = Said(title="claim", mentions=frozenset([key]))
            else:
                self._said[name] = said_by(kind, key, document)
        return self._said[name]

    def packs(self, name: str) -> tuple[str, ...]:
        """The packs that a chunk map names."""
        if name not in self._packs:
            data = self._read_lasting(name, limit_bytes=MAP_LIMIT_BYTES)
            blob = f"sha256:{name.split('/')[1]}"
            where = f"{self._store.url}: {name}"
            found = map_from_bytes(data, blob=blob, name=name, where=where)
            self._packs[name] = tuple(names.pack_name(found.family, each) for each in found.packs)
        return self._packs[name]

    def layers(self, name: str) -> tuple[str, ...]:
        """What a blob names if it is the manifest of an image; nothing if it is none."""
        if name not in self._layers:
            data = self._read_lasting(name, limit_bytes=MANIFEST_LIMIT_BYTES)
            try:
                manifest = manifest_from_bytes(data, digest=name)
            except (InputError, UnicodeDecodeError):
                self._layers[name] = ()
            else:
                self._layers[name] = manifest.digests
        return self._layers[name]

    def _read_lasting(self, name: str, *, limit_bytes: int) -> bytes:
        try:
            return self._read(name, limit_bytes=limit_bytes)
        except FileNotFoundError:
            raise _removed(self._store, name) from None

    def _read(self, name: str, *, limit_bytes: int) -> bytes:
        where = f"{self._store.url}: {name}"
        try:
            pieces = self._store.objects.read(name, length=limit_bytes + 1)
            return b"".join(verified(names.digest_of_name(name), pieces, where=where))
        except IntegrityError as error:
            raise IntegrityError(f"nothing is collected: {error.message}", mend=_MEND) from error


def _removed(store: ObjectStore, name: str) -> StoreError:
    said = f"{store.url}: {name} was removed meanwhile: by another collection?"
    return StoreError(said, mend="run this again")


@dataclass
class _Marking:
    """One marking: `kept` grows until nothing is left to follow."""

    marker: Marker
    inventory: Inventory
    kept: dict[str, str] = field(default_factory=dict)
    entries: dict[str, Said] = field(default_factory=dict)
    snapshots: dict[str, reach.SnapshotOutline] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._followed: set[str] = set()
        self._about: defaultdict[str, list[str]] = defaultdict(list)
        self._maps: defaultdict[str, list[str]] = defaultdict(list)
        self._families: defaultdict[str, list[str]] = defaultdict(list)
        of_image: defaultdict[str, dict[str, reach.SnapshotOutline]] = defaultdict(dict)
        for name in self.inventory:
            area, first, *rest = name.split("/")
            if area == "maps":
                self._maps[f"sha256:{first}"].append(name)
            elif area == "packs":
                self._families[f"sha256:{first}"].append(name)
            elif area == "index" and first != SWEEPS:
                said = self.entries[name] = self.marker.said(name)
                if said.snapshot:
                    self.snapshots[name] = of_image[said.snapshot.image][name] = said.snapshot
                    self._about[f"sha256:{rest[-1]}"].append(name)  # records name it by its digest
                elif said.subject:
                    self._about[said.subject].append(name)
        for image, outlines in of_image.items():
            self._about[image] += reach.deciding(outlines)

    def keep_names(self, found: Iterable[str], why: str) -> None:
        """Keep objects, and nothing that they name."""
        for name in found:
            self.kept.setdefault(name, why)

    def keep_digests(self, found: Iterable[str], why: str) -> None:
        """Keep blobs of any form, what they name if they are images, and the entries about them."""
        waiting = list(found)
        while waiting:
            digest = waiting.pop()
            if digest in self._followed:
                continue
            self._followed.add(digest)
            waiting += self._blob(names.blob_name(digest), why)
            for name in self._maps.get(digest, ()):
                self._map(name, why)
            for name in self._about.get(digest, ()):
                self.kept.setdefault(name, why)
                waiting += self.entries[name].mentions

    def keep_entry(self, name: str, why: str) -> None:
        """Keep an entry and everything that it names."""
        self.kept.setdefault(name, why)
        self.keep_digests(self.entries[name].mentions, why)

    def keep_young(self, name: str) -> None:
        """Keep what was written just now, and everything that it names."""
        area = name.partition("/")[0]
        if area == "index":
            if name in self.entries:
                is_claim = name.split("/")[1] == CLAIMS
                self.keep_entry(name, CLAIM if is_claim else YOUNG)
                for digest in self.entries[name].mentions if is_claim else ():
                    self.keep_names(self._families.get(digest, ()), CLAIM)
        elif area == "maps":
            self._map(name, YOUNG)
        elif area == "blobs":
            self.keep_digests(self._blob(name, YOUNG), YOUNG)
        else:
            self.kept.setdefault(name, YOUNG)

    def _blob(self, name: str, why: str) -> tuple[str, ...]:
        """Keep a blob that is one object; returns what it names if it is an image."""
        listed = self.inventory.get(name)
        if listed is None:
            return ()
        self.kept.setdefault(name, why)
        return self.marker.layers(name) if listed.size_bytes <= MANIFEST_LIMIT_BYTES else ()

    def _map(self, name: str, why: str) -> None:
        self.kept.setdefault(name, why)
        self.keep_names(self.marker.packs(name), why)
