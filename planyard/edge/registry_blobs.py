"""Reading a blob of a registry to its end, whatever breaks on the way.

A transfer that is cut goes on with a Range request; a server that ignores ranges sends everything
and what is there already is skipped. Only the length that the server itself states is an end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from planyard.core.errors import StoreError
from planyard.edge.registry_http import Answer, BrokenError, shown

_TRIES = 3
_TRIES_IN_ALL = 100
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_LENGTH = re.compile(r"[0-9]{1,18}")


class BlobReader:
    """`ask(begin, end)` gives an answer with status 200, 206 or 416; None when it is missing."""

    def __init__(
        self, ask: Callable[[int, int], Answer | None], rest: Callable[[int], None]
    ) -> None:
        self._ask = ask
        self._rest = rest

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes `start` to `stop`; raises FileNotFoundError at once when there is no blob."""
        answer = self._ask(start, stop)
        if answer is None:
            raise FileNotFoundError("the registry has no such blob")
        return self._go_on(answer, start, stop)

    def _go_on(self, answer: Answer, at: int, stop: int) -> Iterator[bytes]:
        tries = 0
        for _ in range(_TRIES_IN_ALL):
            begin = at
            end = _end(answer, at=at, stop=stop)
            reason = "ends early"
            try:
                for piece in _wanted(answer, at=at, stop=end if end is not None else stop):
                    at += len(piece)
                    yield piece
            except BrokenError as error:
                reason = str(error)
            finally:
                answer.close()
            if at >= stop or at == end:
                return
            tries = 0 if at > begin else tries + 1
            if tries >= _TRIES:
                break
            self._rest(tries)
            again = self._ask(at, stop)
            if again is None:
                raise StoreError(f"{shown(answer.url)} went away while it was read")
            answer = again
        mend = "check the network and run the same command again"
        raise StoreError(f"{shown(answer.url)}: byte {at} of {stop}: {reason}", mend=mend)


def _wanted(answer: Answer, *, at: int, stop: int) -> Iterator[bytes]:
    """The body from byte `at` of the blob on, up to `stop`; the rest is not read."""
    if answer.status == 416:
        return
    skip = at if answer.status == 200 else 0
    left = stop - at
    for piece in answer.pieces():
        part = piece[skip : skip + left]
        skip = max(0, skip - len(piece))
        left -= len(part)
        if part:
            yield part
        if left <= 0:
            return


def _end(answer: Answer, *, at: int, stop: int) -> int | None:
    """Where the blob ends if that is before `stop`, else `stop`; None when the server does not say.

    Raises StoreError for another range than the one asked for.
    """
    if answer.status == 416:
        return at
    if answer.status == 200:
        said = answer.headers.get("Content-Length", "")
        return max(at, min(stop, int(said))) if _LENGTH.fullmatch(said) else None
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if not match or int(match[1]) != at:
        answer.close()
        message = f"{shown(answer.url)} sent another range than asked for"
        raise StoreError(message, mend="check the proxies between here and the registry")
    return max(at, min(stop, int(match[3]))) if match[3] != "*" else None
