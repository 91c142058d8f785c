"""The record of a lane: what ran on which GPU, what the gates said, and what they said it from.

One JSON document. A run's evidence is kept so that the gates of any later day can judge it again
(`judging.py`). There are no paths, host names or serial numbers in it: they are taken out before
anything is judged, so that what was judged is what is kept.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from planyard.core.findings import Finding
from planyard.core.loads import LoadSeries
from planyard.core.matrix import Backend, Tolerance
from planyard.core.matrix_smoke import Gates
from planyard.core.results import SmokeRun, Verdict
from planyard.edge.files import atomic_write

RECORD_SCHEMA = 1
TELLING = ("exit", "providers", "placement")
"""Gates that say that a run did not do its work where it was asked to."""
_ROOTS = frozenset(
    {
        *(
            "bin",
            "boot",
            "data",
            "dev",
            "etc",
            "home",
            "lib",
            "lib64",
            "media",
            "mnt",
            "nix",
            "opt",
        ),
        *("proc", "root", "run", "sbin", "snap", "srv", "sys", "tmp", "usr", "var", "work"),
        *("workspace", "Users", "Volumes"),
    }
)
_GPU_NUMBER = re.compile(r"\b(?:GPU|MIG)-[0-9a-f]{8}-[0-9a-f-]{20,40}\b")


class GpuFound(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU of a record; `cuda` is the newest CUDA its driver runs."""

    name: str
    sm: int
    driver: str
    cuda: str = ""
    memory_bytes: int | None = None


class MachineFound(msgspec.Struct, frozen=True, kw_only=True):
    """The machine as far as its figures depend on it."""

    processor: str
    cores: int
    memory_bytes: int
    python: str
    gpu: GpuFound | None = None


class OutputDistance(msgspec.Struct, frozen=True, kw_only=True):
    """How far one output was from its golden: the figures of `smoke.gates.outputs.Distance`.

    None is a figure that is no number, or of no limit: JSON has neither. `not_finite` values are
    NaN or infinite; then, and where there is no golden, nothing else was measured.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    not_finite: int = 0
    max_abs: float | None = None
    mean_abs: float | None = None
    cosine: float | None = None
    psnr_db: float | None = None
    peak: float | None = None
    """The largest of the golden's values less the smallest."""


class JudgedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run, all that its gates looked at, and what they said.

    `golden` says against what outputs were held: `own` for a run that makes the golden, the cell
    that made it, or `none` where there is none. `wanted` is what the lane wants of the gates:
    `refused` for a run that was broken on purpose.
    """

    what: str
    wanted: Literal["passed", "refused"] = "passed"
    backend: Backend
    run: SmokeRun
    gates: Gates
    pins: dict[str, str]
    needed: tuple[str, ...]
    attention_blocks: int | None
    asked: tuple[tuple[int, int], ...]
    golden: str
    tolerance: Tolerance | None = None
    outputs: tuple[OutputDistance, ...] = ()
    missing_outputs: tuple[str, ...] = ()
    verdict: Verdict
    verdicts: dict[str, str]
    findings: tuple[Finding, ...] = ()
    counts: bool = True
    """Whether the item's verdict rests on it; a run that only explains another one does not."""

    @property
    def is_as_wanted(self) -> bool:
        """Whether the gates said what the lane is there to show.

        A run that was broken has to be refused for what it did, not for what was slow or unsaid.
        """
        if self.wanted == "passed":
            return self.verdict == "passed"
        return self.verdict == "failed" and any(self.verdicts[gate] == "failed" for gate in TELLING)


class PlanFound(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that was compiled: what the compiler said, and what its header says without it."""

    what: str
    version: str
    compile_seconds: float
    size_bytes: int
    digest: str
    header: dict[str, Any]
    timing_cache: Literal["none", "written", "used"] = "none"
    layers: int | None = None
    """Layers that the engine inspector named."""


class LoadRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the workload table; `series` is None where it could not be measured, see `why`.

    A picture is a batch of two: guidance.
    """

    workload: str
    served: str
    steps: int
    contexts: int | None = None
    seed: int
    pictures: int
    concurrency: int
    series: LoadSeries | None = None
    why: str = ""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to prove: what came of it, and everything that it rests on."""

    number: int
    title: str
    verdict: Verdict
    reason: str = ""
    began: str = ""
    """UTC, like 2026-11-22T05:00:00Z."""
    seconds: float = 0.0
    runs: tuple[JudgedRun, ...] = ()
    plans: tuple[PlanFound, ...] = ()
    loads: tuple[LoadRow, ...] = ()
    figures: dict[str, float | str] = {}
    notes: tuple[str, ...] = ()


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A whole lane. `kind` is `cpu` where it ran without a GPU, and then proves nothing of one."""

    schema: int = RECORD_SCHEMA
    kind: Literal["gpu", "cpu"]
    created: str
    revision: str = ""
    """The commit of the checkout, where the machine knows it."""
    machine: MachineFound
    versions: dict[str, str] = {}
    items: tuple[Item, ...] = ()


def item_of(record: Record, number: int) -> Item | None:
    """The item of a number; None where the record does not have it."""
    return next((item for item in record.items if item.number == number), None)


def with_item(record: Record, item: Item) -> Record:
    """The record with an item in its place, instead of an earlier one of its number."""
    others = [each for each in record.items if each.number != item.number]
    items = tuple(sorted([*others, item], key=lambda each: each.number))
    return msgspec.structs.replace(record, items=items)


def write_record(record: Record, path: Path) -> None:
    """Write the record, whole or not at all, once more without anything of this machine."""
    document = without_places(msgspec.to_builtins(record, enc_hook=int))
    data = msgspec.json.format(msgspec.json.encode(document), indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(data + b"\n")


def read_record(path: Path) -> Record:
    """A record; ValueError for a file that is none, or of another schema."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path.name} is no record of the GPU lane: {error}") from error
    if record.schema != RECORD_SCHEMA:
        raise ValueError(f"{path.name} has schema {record.schema}, this reads {RECORD_SCHEMA}")
    return record


def cleaned(run: SmokeRun) -> SmokeRun:
    """A run without paths, names and serial numbers of its machine."""
    return msgspec.convert(without_places(msgspec.to_builtins(run, enc_hook=int)), type=SmokeRun)


def without_places(value: Any) -> Any:
    """Any value of JSON with all its strings cleaned; keys stay as they are."""
    return _mapped(value, cleaner())


def cleaner(*, roots: Iterable[str] | None = None, host: str | None = None) -> Callable[[str], str]:
    """What takes absolute paths down to their last part, and names and serial numbers away.

    Only paths below a folder that machines have are taken for paths: nodes of ONNX graphs have
    names like /down_blocks.0/attentions.1/Mul.
    """
    here = {each.name for each in os.scandir("/")} if roots is None else set(roots)
    first = "|".join(re.escape(name) for name in sorted(here | _ROOTS, key=len, reverse=True))
    path = re.compile(rf"(?<![\w.…])/(?:{first})(?:/[\w.+@%~=-]*)*")
    host = platform.node() if host is None else host
    numbers: dict[str, str] = {}
    named = re.compile(rf"\b{re.escape(host)}\b") if len(host) > 2 else None

    def numbered(found: re.Match[str]) -> str:
        return numbers.setdefault(found[0], f"GPU {len(numbers)}")

    def clean(text: str) -> str:
        text = path.sub(lambda found: "…/" + found[0].rstrip("/").rpartition("/")[2], text)
        text = _GPU_NUMBER.sub(numbered, text)
        return named.sub("HOST", text) if named else text

    return clean


def _mapped(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: _mapped(each, clean) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(each, clean) for each in value]
    return value
