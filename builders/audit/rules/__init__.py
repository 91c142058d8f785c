"""The rules of the image audit: what an image holds against what it is asked to be."""

from __future__ import annotations

from builders.audit.rules.asked import Asked
from builders.audit.rules.checking import check_contents

__all__ = ["Asked", "check_contents"]
