"""What the configuration of an image says: its user, its labels, and secrets anywhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from builders.audit.contents import ImageContents
from builders.audit.facts.secret_rules import find_in_setting, secret_rules
from builders.audit.rules.found import Found, Place

WANTED_LABELS = ("io.planyard.recipe", "org.opencontainers.image.title")
_ROOT = ("", "0", "root")


def find_settings(contents: ImageContents) -> Iterator[Found]:
    """A root user, and labels that are not there."""
    user = str(contents.settings.get("User") or "")
    if user.partition(":")[0] in _ROOT:
        says = f"User {user}" if user else "no User"
        yield Found(
            rule="root-user",
            message=f"the configuration says {says!r}, so the service starts as root",
            places=(Place("User"),),
        )
    labels = contents.settings.get("Labels")
    labels = labels if isinstance(labels, dict) else {}
    missing = [name for name in WANTED_LABELS if not labels.get(name)]
    yield Found(
        rule="label-missing",
        message=f"the image is not labelled {' and '.join(missing)}",
        places=tuple(Place(f"Label {name}") for name in missing),
    )


def find_secrets(contents: ImageContents) -> Iterator[Found]:
    """One finding for each kind of secret, with the files and settings that have it."""
    places: dict[str, list[Place]] = defaultdict(list)
    for path, hits in contents.secrets.items():
        for hit in hits:
            places[hit.rule].append(Place(path, note=f"line {hit.line}, {hit.rule}"))
    for name, text in _settings(contents):
        for rule in find_in_setting(text):
            places[rule].append(Place(name, note=rule))
    why = {rule.id: rule.why for rule in secret_rules()}
    for rule, found in places.items():
        yield Found(
            rule="secret",
            message=f"this looks like {why.get(rule, rule)}",
            places=tuple(found),
        )


def _settings(contents: ImageContents) -> Iterator[tuple[str, str]]:
    """The texts of the configuration, each with a name that tells nothing of its value."""
    environment = contents.settings.get("Env")
    for each in environment if isinstance(environment, list) else ():
        yield f"Env {str(each).partition('=')[0]}", str(each)
    labels = contents.settings.get("Labels")
    for name, value in labels.items() if isinstance(labels, dict) else ():
        yield f"Label {name}", f"{name}={value}\n{value}"
    for key in ("Entrypoint", "Cmd"):
        words = contents.settings.get(key)
        yield key, " ".join(map(str, words)) if isinstance(words, list) else str(words or "")
    history = contents.config.get("history")
    for number, step in enumerate(history if isinstance(history, list) else ()):
        if isinstance(step, dict):
            yield f"history {number}", str(step.get("created_by") or "")
            yield f"history {number} comment", str(step.get("comment") or "")
