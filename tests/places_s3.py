"""Objects on a real S3 server: one SeaweedFS a session, one prefix a place."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from engines.store.s3 import S3Objects
from planyard.edge import s3
from planyard.edge.s3_bucket import Bucket
from tests import object_places, servers

BUCKET = "planyard-tests"


@functools.cache
def server() -> dict[str, str]:
    """The environment of the server of this test session, started by the first who asks.

    Mark a test that may ask with `s3`: then it is skipped, or fails, where there is no SeaweedFS.
    """
    weed = servers.find_weed()
    if weed is None:
        raise RuntimeError("SeaweedFS is not here: mark this test with s3")
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="planyard-weed-", ignore_cleanup_errors=True)
    )
    found = stack.enter_context(servers.s3_server(weed, Path(folder) / "weed"))
    nowhere = str(Path(folder) / "none")
    found |= {"AWS_CONFIG_FILE": nowhere, "AWS_SHARED_CREDENTIALS_FILE": nowhere}
    with environment(found):
        s3.client().create_bucket(Bucket=BUCKET)
    return found


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Have these AWS variables, and no others, until the block ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with mock.patch.dict(os.environ, {**kept, **values}, clear=True):
        yield


@functools.cache
def probes() -> Path:
    """Where places remember that the server of this session passed the probe."""
    folder = tempfile.TemporaryDirectory(prefix="planyard-probes-")
    atexit.register(folder.cleanup)
    return Path(folder.name) / "probes.json"


@functools.cache
def bucket(number: int) -> Bucket:
    """A client of the server of this session, one for each `number`: making one takes a while."""
    with environment(server()):
        return Bucket(BUCKET)


@contextlib.contextmanager
def s3_place(_: Path) -> Iterator[object_places.ObjectPlace]:
    """Objects below a new prefix in the server of this session."""
    prefix = f"{uuid.uuid4().hex}/store"
    first, second = bucket(1), bucket(2)
    yield object_places.ObjectPlace(
        S3Objects(first, prefix=prefix, state=probes()),
        lambda name, data: first.put(f"{prefix}/{name}", data),
        lambda: S3Objects(second, prefix=prefix, state=probes()),
    )
    for one in first.listing(prefix):
        first.delete(one.key)
