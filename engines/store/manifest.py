"""What an OCI image manifest names: its configuration and its layers.

https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from planyard.core.errors import InputError
from planyard.core.matrix_fields import Digest

MANIFEST_LIMIT_BYTES = 4 << 20
"""The size up to which a registry has to take a manifest, says the distribution specification."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A blob a manifest names."""

    digest: Digest
    size: Annotated[int, Meta(ge=0)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An image manifest, as far as a store looks at it."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = OCI_MANIFEST

    @property
    def digests(self) -> tuple[str, ...]:
        """Everything an image needs besides the manifest itself."""
        return (self.config.digest, *(layer.digest for layer in self.layers))


_MANIFEST = msgspec.json.Decoder(Manifest)


def manifest_from_bytes(data: bytes, *, digest: str) -> Manifest:
    """Read a manifest; raises InputError, naming `digest`, when it is none (an index, say)."""
    try:
        return _MANIFEST.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError([f"{digest} is not the manifest of one image: {error}"]) from error
