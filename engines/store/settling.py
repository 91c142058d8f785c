"""Order on a disk: what a process found or removed is on it for good before what it does next.

A writer that was killed may have left names that no `fsync` has reached. Who finds such an object
and writes an entry that names it would, after a power cut, have the entry and not the object; who
removes an entry and then its object could find the entry again. So folders are noted when something
is found or removed in them, and synced before the next change elsewhere.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from planyard.edge import files


class Settling:
    """The folders of a store, below `root`, that may have names that are not on the disk yet."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._noted: set[str] = set()
        self._known: set[Path] = set()
        self._one = threading.Lock()

    def note(self, folder: str | Path) -> None:
        """Something was found or removed in this folder."""
        self._noted.add(str(folder))

    def settle(self, *, but: str = "") -> None:
        """Sync the noted folders, except `but`; raises OSError where that fails."""
        with self._one:
            for folder in sorted(self._noted - {but}):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    files.sync_folder(Path(folder))
                    self.settle_name(Path(folder))
                self._noted.discard(folder)

    def settle_name(self, folder: Path) -> None:
        """Make the folder's own name, and those above it, survive; done once for each."""
        while folder not in self._known and folder.is_relative_to(self._root):
            files.sync_folder(folder.parent)
            self._known.add(folder)
            folder = folder.parent
