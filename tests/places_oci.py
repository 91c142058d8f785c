"""Registries as places of objects: Debian's 2.8 without, and crane's with the referrers API.

Each place has a server of its own, on loopback, that ends with the block. Tests that may ask for
one are marked with `registry`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from engines.store.objects import digest_of_name
from engines.store.oci import OCIObjects
from planyard.edge import proc
from tests.debian import find_or_unpack
from tests.object_places import ObjectPlace
from tests.servers import free_ports

CRANE_VERSION = "v0.22.1"
_CRANE = f"github.com/google/go-containerregistry/pkg/registry@{CRANE_VERSION}"
REPOSITORY = "planyard/store"


@contextlib.contextmanager
def serve_debian(folder: Path, **settings: str) -> Iterator[str]:
    """Debian's registry that deletes; `settings` are its environment, without REGISTRY_."""
    program = find_or_unpack("docker-registry", "docker-registry")
    assert program, "mark this test with registry"
    address = _free_address()
    configuration = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "debian")},
            "delete": {"enabled": True},
        },
        "http": {"addr": address},
    }
    (folder / "config.yml").write_text(json.dumps(configuration))  # JSON is YAML
    environment = {f"REGISTRY_{name}": value for name, value in settings.items()}
    with _serve([program, "serve", str(folder / "config.yml")], address, folder, environment):
        yield address


@contextlib.contextmanager
def serve_crane(folder: Path) -> Iterator[str]:
    """Crane's registry with the referrers API, blobs below `folder`, manifests in memory."""
    address = _free_address()
    disk = folder / "crane"
    disk.mkdir()
    with _serve([referrers_program(), address, str(disk)], address, folder, {}):
        yield address


def _free_address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


@contextlib.contextmanager
def _serve(
    args: list[str], address: str, folder: Path, environment: dict[str, str]
) -> Iterator[None]:
    log = folder / "log"
    process = proc.start(args, log=log, env={**os.environ, **environment})
    host, port = address.split(":")
    deadline = time.monotonic() + 30
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield
    finally:
        proc.end_group(process)


def referrers_program() -> str:
    """`tests/data/referrers_registry.go`, built with Go when it is not in the cache.

    Crane's package is pinned, and Go's checksum database vouches for it.
    """
    source, kept = _source_and_program()
    if kept.is_file():
        return str(kept)
    go = shutil.which("go")
    assert go, "mark this test with registry"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        shutil.copy(source, Path(folder, "main.go"))
        for args in (["mod", "init", "tests"], ["get", _CRANE], ["build", "-o", "program"]):
            done = subprocess.run(
                [go, *args], cwd=folder, capture_output=True, timeout=900, check=False
            )
            assert done.returncode == 0, done.stderr.decode(errors="replace")[-300:]
        Path(folder, "program").replace(kept)
    return str(kept)


def why_no_crane() -> str:
    """Why there is no registry made of crane's package; empty when there is, or Go to build it."""
    _, kept = _source_and_program()
    return "" if kept.is_file() or shutil.which("go") else "no Go to build crane's registry with"


def _source_and_program() -> tuple[Path, Path]:
    """The program's source, and where it is kept once it is built."""
    source = Path(__file__).parent / "data" / "referrers_registry.go"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    folder = cache / "planyard" / "tools" / f"crane-{CRANE_VERSION}"
    return source, folder / f"registry-{version}"


def _place(address: str, blob_path: Callable[[str], Path], *, mends: bool) -> ObjectPlace:
    url = f"oci://{address}/{REPOSITORY}"

    def damage(name: str, data: bytes) -> None:
        path = blob_path(digest_of_name(name)[7:])
        path.chmod(0o644)
        path.write_bytes(data)

    return ObjectPlace(
        OCIObjects.from_url(url),
        damage,
        lambda: OCIObjects.from_url(url),
        has_compare_and_swap=False,
        mends_by_rewriting=mends,
        hides_damage=mends,
    )


@contextlib.contextmanager
def oci_place(folder: Path) -> Iterator[ObjectPlace]:
    """Debian's registry: no referrers API, no pages, deletes by digest only."""
    with serve_debian(folder) as address:
        blobs = folder / "debian/docker/registry/v2/blobs/sha256"
        yield _place(address, lambda digits: blobs / digits[:2] / digits / "data", mends=False)


@contextlib.contextmanager
def oci_referrers_place(folder: Path) -> Iterator[ObjectPlace]:
    """Crane's registry: referrers API, deletes tags, denies damaged blobs and replaces them."""
    with serve_crane(folder) as address:
        yield _place(address, lambda digits: folder / "crane" / "sha256" / digits, mends=True)
