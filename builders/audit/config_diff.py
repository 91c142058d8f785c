"""What differs in two image configurations, in words. A value that may be a secret is not shown.

https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from builders.audit.visible import visible

_PLAIN = {
    "User": "user",
    "WorkingDir": "working folder",
    "Entrypoint": "entrypoint",
    "Cmd": "command",
    "StopSignal": "stop signal",
    "Healthcheck": "health check",
}
_NAMED = {"ExposedPorts": "port", "Volumes": "volume"}
_TOP = {"architecture": "architecture", "os": "system", "variant": "variant"}
_SECRET = re.compile(
    r"pass(word|wd|phrase)?|secret|token|credential|private|auth(?!or)|(^|_)(api_?)?key(_|$)|dsn|_url$",
    re.IGNORECASE,
)
_DIGEST = re.compile(r"\b(sha256:[0-9a-f]{12})[0-9a-f]{52}\b")
_LONGEST = 200


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """One line for each difference: `user: 65532:65532 → not set`."""
    old, new = _settings(before), _settings(after)
    return (
        *_changed(_named(before, _TOP), _named(after, _TOP)),
        *_changed(_named(old, _PLAIN), _named(new, _PLAIN)),
        *(
            line
            for key, title in _NAMED.items()
            for line in _keyed(title, _keys(old.get(key)), _keys(new.get(key)))
        ),
        *_keyed("environment", _environment(old), _environment(new)),
        *_keyed("label", _table(old.get("Labels")), _table(new.get("Labels"))),
    )


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _table(config.get("config"))


def _named(settings: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    return {title: settings.get(key) for key, title in titles.items()}


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for title in before:
        old, new = before[title] or None, after[title] or None
        if old != new:
            yield f"{title}: {_shown(old)} → {_shown(new)}"


def _keyed(title: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What came, went and changed in a table."""
    for key in sorted({**before, **after}):
        old, new = before.get(key), after.get(key)
        name = f"{title} {visible(key, limit=_LONGEST)}"
        hidden = bool(_SECRET.search(key))
        if key not in before:
            yield f"{name} came" + ("" if new is None else f": {_shown(new, hidden=hidden)}")
        elif key not in after:
            yield f"{name} went"
        elif old != new and hidden:
            yield f"{name}: another value (not shown)"
        elif old != new:
            yield f"{name}: {_shown(old)} → {_shown(new)}"


def _shown(value: Any, *, hidden: bool = False) -> str:
    if hidden:
        return "(value not shown)"
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return visible(_DIGEST.sub(r"\1…", text), limit=_LONGEST)


def _environment(settings: Mapping[str, Any]) -> dict[str, str]:
    found = settings.get("Env")
    entries = found if isinstance(found, list) else []
    return dict(str(entry).partition("=")[::2] for entry in entries)


def _keys(value: Any) -> dict[str, None]:
    return dict.fromkeys(map(str, _table(value)))


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
