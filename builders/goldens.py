"""Goldens: what the fp32 reference in `ort-cpu` computed, kept in the store.

A golden belongs to one reference image, one model with its weights, and one set of input shapes
and seed. A run is held against the golden of the reference image of its own matrix, no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engines.store.protocol import Store
from planyard.core.digest import digest_of_bytes, digest_of_value
from smoke.inputs import SEED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]

KIND = "goldens"
_LIMIT_BYTES = 1 << 30


class GoldenTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One output of the reference: raw little-endian bytes under `digest`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str


def golden_key(*, image: str, model: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """What a golden is filed under; `model` is the model's identity with its weights."""
    return digest_of_value({"image": image, "model": model, "shapes": shapes, "seed": SEED})


def put_golden(store: Store, key: str, outputs: Arrays) -> None:
    """Keep the outputs of a reference run that passed its gates."""
    tensors = []
    for name, array in outputs.items():
        data = array.tobytes()
        digest = digest_of_bytes(data)
        store.put_blob(digest, [data])
        tensors.append(
            GoldenTensor(name=name, dtype=str(array.dtype), shape=array.shape, digest=digest)
        )
    store.put_entry(KIND, key, msgspec.json.encode(tensors))


def has_golden(store: Store, key: str) -> bool:
    """Whether a golden with all its outputs is there; its bytes are not read."""
    return any(_whole(store, document) for document in store.entries(KIND, key))


def find_golden(store: Store, key: str) -> Arrays | None:
    """The golden under a key, every byte verified; None when there is no whole one."""
    import numpy as np

    for document in store.entries(KIND, key):
        if tensors := _whole(store, document):
            return {
                each.name: np.frombuffer(
                    store.read_blob(each.digest, limit_bytes=_LIMIT_BYTES),
                    dtype=np.dtype(each.dtype),
                ).reshape(each.shape)
                for each in tensors
            }
    return None


def _whole(store: Store, document: bytes) -> tuple[GoldenTensor, ...]:
    """The outputs of a golden; none when any of their bytes is not stored."""
    tensors = msgspec.json.decode(document, type=tuple[GoldenTensor, ...])
    return tensors if all(store.has_blob(each.digest) for each in tensors) else ()
