"""What a registry's answers say: sizes, lists, the next page, its own words for a failure."""

from __future__ import annotations

import json
import re
import urllib.parse
from typing import Any

from planyard.core.errors import StoreError
from planyard.edge.registry_http import Answer, BrokenError, origin_of, shown

_ERROR_LIMIT_BYTES = 64 << 10
_NEXT = re.compile(r"<([^>]*)>\s*;\s*rel=\"?next\"?", re.IGNORECASE)


def next_page(answer: Answer) -> str | None:
    """The address of the next page, if there is one; StoreError when it is on another host."""
    match = _NEXT.search(answer.headers.get("Link", ""))
    if not match:
        return None
    url: str = urllib.parse.urljoin(answer.url, match[1])
    if origin_of(url) != origin_of(answer.url) or url == answer.url:
        message = f"{shown(answer.url)} has its next page at {shown(url)}, another place"
        raise StoreError(message, mend="ask who runs the registry")
    return url


def length_of(answer: Answer) -> int:
    """The size in bytes that an answer states."""
    said = answer.headers.get("Content-Length", "")
    if not re.fullmatch(r"[0-9]{1,18}", said):
        message = f"{shown(answer.url)} does not say the size"
        raise StoreError(message, mend="Planyard cannot use this registry: tell its authors")
    return int(said)


def list_in(data: bytes, key: str, kind: type, *, url: str) -> list[Any]:
    """The list under `key` of a document; none and null are empty."""
    try:
        document = json.loads(data)
        found = document.get(key) or []
        is_good = isinstance(found, list) and all(isinstance(each, kind) for each in found)
    except (ValueError, AttributeError, RecursionError):
        is_good = False
    if not is_good:
        raise StoreError(f"{shown(url)} does not answer with a list of {key}")
    return list(found)


def what_was_said(answer: Answer) -> str:
    """The registry's own words, shortened to printable ones."""
    try:
        errors = list_in(answer.whole(_ERROR_LIMIT_BYTES), "errors", dict, url=answer.url)
    except (StoreError, BrokenError):
        return ""
    words = "; ".join(f"{each.get('code')}: {each.get('message')}" for each in errors[:3])
    return f" ({''.join(c for c in words if c.isprintable())[:300]})" if words else ""
