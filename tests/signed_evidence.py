"""An image with snapshots in a store, keys that need no cosign, and ways to forge evidence."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import msgspec

from engines import index
from engines.evidence.entries import EVIDENCE
from engines.snapshot import BudgetFigures, Commit, DeviceReport, Snapshot
from engines.store.protocol import Store
from planyard.core.digest import canonical_json, digest_of_bytes, digest_of_value
from planyard.core.errors import IntegrityError
from planyard.core.findings import Finding
from planyard.core.results import ImageRecord, Package, PlanRecord, SmokeVerdict
from tests.object_places import MemoryStore

NOW = "2026-11-21T18:00:00Z"
DAY_SECONDS = 86_400
MATRIX = digest_of_bytes(b"matrix")


class FakeKey:
    """Signs by a keyed hash: another key, or another byte, does not verify."""

    def __init__(self, secret: bytes = b"ours") -> None:
        self.secret = secret
        self.verified: list[bytes] = []

    def sign(self, statement: bytes) -> bytes:
        return hmac.new(self.secret, statement, hashlib.sha256).hexdigest().encode()

    def verify(self, statement: bytes, bundle: bytes) -> None:
        if not hmac.compare_digest(self.sign(statement), bundle):
            raise IntegrityError("the signature does not hold")
        self.verified.append(statement)


def put(store: Store, data: bytes) -> str:
    digest = digest_of_bytes(data)
    store.put_blob(digest, [data])
    return digest


def an_image(store: Store, name: str = "rtx") -> ImageRecord:
    config = put(store, f"config of {name}".encode())
    manifest = put(store, canonical_json({"config": {"digest": config, "size": 1}, "layers": []}))
    image = ImageRecord(
        name=name,
        digest=manifest,
        recipe=digest_of_bytes(f"recipe of {name}".encode()),
        pull_bytes=1,
        unpacked_bytes=1,
        layers=(),
        base=(Package(name="libc6", version="2.36-9", sha256="5" * 64),),
    )
    index.put_image(store, image)
    return image


def a_plan(store: Store, *, gpu: str = "l4", data: bytes = b"plan") -> PlanRecord:
    inputs = {
        "model": digest_of_bytes(b"model"),
        "builder_image": digest_of_bytes(b"builder"),
        "plugins": {"libx.so": digest_of_bytes(b"plugin")},
        "sm_targets": [89],
        "data": data.decode(),
    }
    return PlanRecord(
        cell=f"rtx/ocr/640/fp16/{gpu}",
        recipe=digest_of_value(inputs),
        digest=put(store, data),
        size_bytes=len(data),
        backend="tensorrt-rtx",
        version="1.7.1.116",
        sm=89,
        model="ocr",
        profile="640",
        precision="fp16",
        compile_seconds=0.5,
        inputs=inputs,
    )


def a_verdict(
    cell: str, verdict: str = "passed", *, warns: bool = False, **gates: str
) -> SmokeVerdict:
    warning = Finding(gate="logs", rule="slow", message="slow", severity="warn")
    return SmokeVerdict(
        cell=cell,
        verdict=verdict,  # type: ignore[arg-type]
        gates=gates,  # type: ignore[arg-type]
        findings=(warning,) if warns else (),
    )


def a_snapshot(image: ImageRecord, *, gpu: str = "l4", **fields: Any) -> Snapshot:
    whole = {
        "image": image.digest,
        "image_name": image.name,
        "image_recipe": image.recipe,
        "gpu": gpu,
        "sm": 89,
        "pins": {},
        "versions_found": {},
        "device": DeviceReport(),
        "workspace_bytes": 0,
        "plans": (),
        "smoke": (),
        "gates_off": (),
        "budget": BudgetFigures(pull_bytes=1, unpacked_bytes=1, largest_layer_bytes=1),
        "commit": Commit(id="a" * 40, dirty=False),
        "matrix_digest": MATRIX,
        "created": "2026-11-21T15:00:00Z",
        "planyard_version": "0.1.0",
    }
    return Snapshot(**(whole | fields))


def a_site(store: Store, verdict: str = "passed", *, name: str = "rtx") -> ImageRecord:
    """An image with two snapshots, a plan and a cell each; `l4` says `verdict`."""
    image = an_image(store, name)
    for gpu, said in (("l4", verdict), ("rtx4090", "passed")):
        plan = a_plan(store, gpu=gpu, data=f"plan of {name} for {gpu}".encode())
        smoke = a_verdict(plan.cell, said, exit="passed", logs=said, outputs="off")
        index.put_snapshot(store, a_snapshot(image, gpu=gpu, plans=(plan,), smoke=(smoke,)))
    return image


def only_entry(store: Store, image: str) -> dict[str, Any]:
    (document,) = store.entries(EVIDENCE, image)
    return json.loads(document)


def replace_entries(store: MemoryStore, image: str, *documents: object) -> None:
    """What somebody who can write into the store can do."""
    for listed in list(store.objects.listing(f"index/{EVIDENCE}/{image[7:]}/")):
        store.objects.remove(listed.name)
    for document in documents:
        data = document if isinstance(document, bytes) else canonical_json(document)
        store.put_entry(EVIDENCE, image, data)


def statement_in(signed: dict[str, str]) -> dict[str, Any]:
    return json.loads(base64.b64decode(signed["statement"]))


def signed_again(signed: dict[str, str], key: FakeKey, **fields: Any) -> dict[str, str]:
    """The statement with other top-level fields, signed as its owner would."""
    return signed_by(statement_in(signed) | fields, key)


def signed_by(statement: object, key: FakeKey) -> dict[str, str]:
    data = statement if isinstance(statement, bytes) else canonical_json(statement)
    return {
        "statement": base64.b64encode(data).decode(),
        "bundle": base64.b64encode(key.sign(data)).decode(),
    }


def resigned_set(
    document: dict[str, Any], key: FakeKey, change: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """A set that lists the statements as they now are, signed: what only the key's owner can do."""
    outer = statement_in(document["set"])
    outer["predicate"]["statements"] = [
        {
            "digest": digest_of_bytes(base64.b64decode(each["statement"])),
            "predicateType": statement_in(each)["predicateType"],
        }
        for each in document["statements"]
    ]
    if change:
        change(outer)
    return document | {"set": signed_by(outer, key)}


def later(snapshot: Snapshot, created: str, **fields: Any) -> Snapshot:
    return msgspec.structs.replace(snapshot, created=created, **fields)
