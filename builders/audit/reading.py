"""One layer, read as a stream, once: unpacked, checked against its digests, and indexed.

Nothing is extracted. The digest of the tar is taken in a thread beside the reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from builders.audit.layer_index import LIMITS, LayerReader, Limits, Piece, WatchFile
from builders.audit.tar_headers import DamagedTarError
from builders.audit.unpacking import Unpacking
from planyard.core.contents import LayerIndex
from planyard.core.errors import InputError, IntegrityError


def read_layer(
    pieces: Iterable[Piece],
    *,
    digest: str,
    diff_id: str,
    watch: WatchFile | None = None,
    limits: Limits = LIMITS,
) -> LayerIndex:
    """The index of a layer given as it is stored: gzip, zstd or plain tar, verified by its giver.

    A piece is used until the one after the next is asked for.

    The pull sizes of all members and the rest add up to the layer exactly. That of one member is
    exact where it has a gzip member of its own, as the large files of wheels have in planyard's
    layers; elsewhere 32 KiB of tar share what they are compressed to by their size, so a small file
    is as heavy as its neighbours.

    Raises InputError for a layer that is damaged, too large or a bomb, while it is read, and
    IntegrityError when the tar is not that of `diff_id`.
    """
    reader = LayerReader(watch=watch or default_watch(), limits=limits)
    unpacking = Unpacking(pieces, limits=limits)
    try:
        with _Sha256() as sha256:
            for piece in unpacking:
                sha256.update(piece)
                reader.feed(piece)
            found = sha256.digest()
        index = reader.finish(digest=digest, diff_id=diff_id, pulls=unpacking.pulls)
    except DamagedTarError as error:
        raise InputError([f"layer {digest} cannot be audited: {error.message}"]) from error
    except InputError as error:
        raise InputError([f"layer {digest}: {error.message}"], mend=error.mend) from error
    if found != diff_id:
        raise IntegrityError(
            f"layer {digest} unpacks to {found}, and the image's configuration says {diff_id}"
        )
    return index


def default_watch() -> WatchFile:
    """What looks into files: libraries, GPU code, secrets, package metadata."""
    from builders.audit.facts.watching import watch

    return watch


class _Sha256:
    """A digest in a thread of its own, never more than one piece behind."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._last: Future[None] | None = None

    def __enter__(self) -> _Sha256:
        return self

    def update(self, piece: Piece) -> None:
        """Digest a piece, after the one before it."""
        last, self._last = self._last, self._pool.submit(self._sha256.update, piece)
        if last:
            last.result()

    def digest(self) -> str:
        """The digest of all of them."""
        if self._last:
            self._last.result()
        return "sha256:" + self._sha256.hexdigest()

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
