"""The single values of `matrix.yaml` that have a form of their own: a pattern, and what to write.

Each description is a noun phrase: a message about a wrong value ends with "write" and it, and an
editor shows it. Patterns match the whole value.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

DriverBranch = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{3}$",
        description='a driver branch in quotes, like "580"',
    ),
]
CudaMinor = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]+\.[0-9]+$",
        description='a CUDA minor in quotes, like "13.0"',
    ),
]
PythonMinor = Annotated[
    str,
    Meta(
        pattern=r"^3\.[0-9]+$",
        description='a Python minor in quotes, like "3.11"',
    ),
]
Digest = Annotated[
    str,
    Meta(pattern=r"^sha256:[0-9a-f]{64}$", description="sha256: and 64 lower-case hex digits"),
]
DebianPackage = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9+.-]+$",
        description="a Debian package: lower-case letters, digits, '+', '-' and '.'",
    ),
]
RegistryReference = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$",
        description="a reference pinned by digest: host/name@sha256:…",
    ),
]
Stage = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="a stage of the Dockerfile: letters, digits, '_', '.' and '-'",
    ),
]
BuildArgument = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the name of a build argument: letters, digits and '_'",
    ),
]
PathInImage = Annotated[
    str,
    Meta(
        pattern=r"^/[^\x00-\x1f]+$",
        description="an absolute path inside the image",
    ),
]
PathPattern = Annotated[
    str, Meta(min_length=1, description="a pattern over paths in the image, like /usr/include/*")
]
PinnedPackage = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.]*$",
        description="name==version, like rapidocr==3.10.0",
    ),
]
HubRepository = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="owner/name",
    ),
]
Commit = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{40}$",
        description="a commit: 40 hex digits, not a branch",
    ),
]
HttpsUrl = Annotated[
    str,
    Meta(
        pattern=r"^https://[^\s]+$",
        description="an https:// address",
    ),
]
S3Url = Annotated[
    str,
    Meta(
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,62}/[^\s]+$",
        description="an object, like s3://bucket/key",
    ),
]
Sm = Annotated[int, Meta(ge=50, le=200, description="an SM without its dot, like 89 for SM 8.9")]
MigSlice = Annotated[
    str,
    Meta(
        pattern=r"^(none|[1-9]g\.[0-9]+gb)$",
        description="none for whole GPUs only, or a MIG profile like 1g.10gb",
    ),
]
Dimension = Annotated[int, Meta(ge=1, le=1 << 20)]
DimensionName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,62}$",
        description="a name (a letter first) for a dimension that varies",
    ),
]
Shape = Annotated[
    tuple[Dimension, ...],
    Meta(max_length=8, description="a list of at most 8 whole numbers, like [1, 3, 640, 640]"),
]
InputShape = Annotated[
    tuple[Dimension | DimensionName, ...],
    Meta(
        max_length=8,
        description="a list of at most 8 dimensions: a whole number, or a name where it varies",
    ),
]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="lower-case letters, digits, '.', '_' and '-', at most 63 characters",
    ),
]
CellPattern = Annotated[
    str, Meta(min_length=1, description="a pattern over image/model/profile/precision/gpu")
]
Reason = Annotated[str, Meta(min_length=8, description="a reason in words; shown to everyone")]
