"""One step of the store benchmark as a process of its own: `python -m tests.bench.store_steps`.

put URL FAMILY FILE DIGEST · get URL DIGEST FILE · copy URL URL DIGEST · s3-up FILE BUCKET KEY ·
s3-down FILE BUCKET KEY · s3-make BUCKET · digest FILE · rollback FOLDER DIGEST DIGEST
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from planyard.edge.files import digest_of_file


def main(step: str, *arguments: str) -> int:
    """Returns the exit code."""
    _STEPS[step](*arguments)
    print("done")
    return 0


def _put(url: str, family: str, file: str, digest: str) -> None:
    from engines.store.opening import open_url

    open_url(url).put_blob(digest, Path(file), family=family)


def _get(url: str, digest: str, file: str) -> None:
    from engines.store.opening import open_url

    open_url(url).fetch_blob(digest, Path(file))


def _copy(source: str, target: str, digest: str) -> None:
    from engines.store.copying import copy_blob
    from engines.store.opening import open_url

    copy_blob(digest, source=open_url(source), target=open_url(target))


def _s3_up(file: str, bucket: str, key: str) -> None:
    import boto3

    boto3.client("s3").upload_file(file, bucket, key)


def _s3_down(file: str, bucket: str, key: str) -> None:
    import boto3

    boto3.client("s3").download_file(bucket, key, file)


def _s3_make(bucket: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=bucket)


def _digest(file: str) -> None:
    print(digest_of_file(Path(file)))


def _rollback(folder: str, first: str, second: str) -> None:
    """Prints the median of seven rollbacks in milliseconds, without the start of Python."""
    from engines.channels.moves import Mover, promote, rollback
    from engines.store.local_store import LocalStore
    from tests.channel_sites import image_with_plan

    store = LocalStore(Path(folder))
    images = [
        image_with_plan(store, f"image{at}", each).digest for at, each in enumerate((first, second))
    ]
    mover = Mover(by="bench", now="2026-11-21T18:00:00Z")
    seconds = []
    for _ in range(7):
        for image in images:
            promote(store, "bench", image, mover=mover)
        started = time.perf_counter()
        moved = rollback(LocalStore(Path(folder)), "bench", mover=mover)
        seconds.append(time.perf_counter() - started)
        if moved.now is None or moved.now.image != images[0]:
            raise SystemExit("the rollback did not go back")
    print(f"{statistics.median(seconds) * 1e3:.1f}")


_STEPS: dict[str, Callable[..., None]] = {
    "put": _put,
    "get": _get,
    "copy": _copy,
    "s3-up": _s3_up,
    "s3-down": _s3_down,
    "s3-make": _s3_make,
    "digest": _digest,
    "rollback": _rollback,
}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
