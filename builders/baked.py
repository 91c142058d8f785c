"""`/etc/planyard/session.json`: how sessions are made, baked into an image for its service.

A stage that copies `planyard-admission/session.json` is given the document of smoke/session.py. It
is part of the image's recipe, and the provider gate holds it against what was smoked
(docs/sessions.md).
"""

from __future__ import annotations

from builders.expectation import ADMISSION_FOLDER, SESSION
from planyard.core.errors import InputError
from planyard.core.matrix import PLAN_BACKENDS, Image
from planyard.core.matrix_runtime import SessionSpec
from smoke.session import session_json


def session_to_bake(name: str, spec: Image, *, stages: str, target: str) -> bytes | None:
    """How sessions are made, for an image whose stages copy it; None where they do not.

    Raises InputError when the matrix says how and the stage copies nothing, for the service would
    not know; and when a stage copies it for a backend without a session.
    """
    copied, path = f"{ADMISSION_FOLDER}/{SESSION}", f"/etc/planyard/{SESSION}"
    if copied in stages:
        if spec.backend in PLAN_BACKENDS:
            raise InputError(
                [f"images.{name}: the stage {target} copies {copied}, {spec.backend} runs plans"],
                mend=f"remove the line that copies it from the stage {target}",
            )
        return session_json(spec.session, spec.backend)
    if spec.session != SessionSpec():
        raise InputError(
            [f"images.{name}.session: the stage {target} does not copy {copied}"],
            mend=f"add COPY {copied} {path} to it, or remove session:",
        )
    return None
