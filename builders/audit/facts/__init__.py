"""What a single file says while it streams past: libraries, GPU code, secrets, package metadata."""

from __future__ import annotations

from dataclasses import dataclass

from planyard.core.contents import ElfFacts, SecretHit


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What was found in one file; all empty for most."""

    elf: ElfFacts | None = None
    text: str | None = None
    secrets: tuple[SecretHit, ...] = ()
