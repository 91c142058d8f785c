"""Write docs/gpu/README.md from the records beside it: `python tests/gpu table`.

One line for each thing to prove: on which hardware, when, with what verdict. What no record has is
said to be unproved. A record that ran on a CPU proves nothing of a GPU and is named as such.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.gpu.lane import TASKS
from tests.gpu.machine import ROOT
from tests.gpu.record import Item, Record, item_of, read_record

FOLDER = ROOT / "docs" / "gpu"
PAGE = "README.md"
UNPROVED = "**not proved: no GPU could be had**"
_HEAD = """# What was proved on a GPU

Made by `python tests/gpu table` from the records in this folder; do not edit it. A record is what
`tests/gpu/run.sh` writes on a machine with a GPU ([how](../../tests/gpu/README.md)). Its runs are
judged again by the gates of today on every test run (`tests/unit/test_gpu_records.py`).
"""
_NO_GPU = """
No record of a GPU is here yet. Everything below the first line of the table is written, and tested
without a GPU only.
"""


def records(folder: Path = FOLDER) -> dict[str, Record]:
    """The records of a folder by their file names, oldest first."""
    found = {path.name: read_record(path) for path in sorted(folder.glob("*.json"))}
    return dict(sorted(found.items(), key=lambda each: (each[1].created, each[0])))


def page(found: Mapping[str, Record]) -> str:
    """The text of the page."""
    lines = [_HEAD]
    if not any(record.kind == "gpu" for record in found.values()):
        lines.append(_NO_GPU)
    lines += ["", "| | what | on what | when | verdict |", "|---|---|---|---|---|"]
    for number in TASKS:
        lines += _rows(number, found)
    for name, record in found.items():
        lines += ["", *_section(name, record)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _rows(number: int, found: Mapping[str, Record]) -> Iterator[str]:
    """A line for each record in which the item came to a verdict; one in any case."""
    title, shown = TASKS[number].title, False
    for name, record in found.items():
        item = item_of(record, number)
        if item is None or item.verdict == "not run":
            continue
        shown = True
        verdict = f"[{item.verdict}]({name})" + (f": {_cell(item.reason)}" if item.reason else "")
        when = (item.began or record.created)[:10]
        yield f"| {number} | {title} | {hardware(record)} | {when} | {verdict} |"
    if not shown:
        missing = UNPROVED if TASKS[number].needs_gpu else "not run"
        yield f"| {number} | {title} | | | {missing} |"


def hardware(record: Record) -> str:
    """`NVIDIA H100 80GB HBM3, SM 9.0, driver 580.159.04`; a CPU is said to be one."""
    gpu = record.machine.gpu
    if gpu is None:
        return f"a CPU, no GPU: {record.machine.processor}"
    return f"{gpu.name}, SM {gpu.sm // 10}.{gpu.sm % 10}, driver {gpu.driver}"


def _section(name: str, record: Record) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield f"{hardware(record)}; Python {record.machine.python}; begun {record.created}."
    for item in record.items:
        if item.verdict != "not run":
            yield ""
            yield from _details(item)


def _details(item: Item) -> Iterator[str]:
    yield f"**{item.number}. {item.title}**: {item.verdict}, {item.seconds:.0f} s"
    yield ""
    for run in item.runs:
        rules = dict.fromkeys(each.rule for each in run.findings if each.severity == "fail")
        why = f" ({', '.join(rules)})" if rules else ""
        wanted = ", as it has to be" if run.wanted == "refused" and run.is_as_wanted else ""
        aside = "" if run.counts else "; the verdict does not rest on it"
        yield f"- {run.what}: {run.verdict}{why}{wanted}{aside}"
    for plan in item.plans:
        header = plan.header.get("version") or plan.header.get("reason")
        cache = {"used": "with", "written": "before", "none": "without"}[plan.timing_cache]
        yield (
            f"- {plan.what}: {plan.size_bytes:,} bytes by TensorRT {plan.version} in "
            f"{plan.compile_seconds:g} s {cache} a timing cache; its header says {header}"
        )
    for key, value in item.figures.items():
        yield f"- {key}: {value:,}" if isinstance(value, int) else f"- {key}: {value}"
    yield from (f"- {note}" for note in item.notes)
    if item.loads:
        yield from ("", *_loads(item))


def _loads(item: Item) -> Iterator[str]:
    names = ("workload", "steps", "pictures", "at once", "contexts", "P50", "P95")
    yield f"| {' | '.join((*names, 'pictures/s', 'GPU', 'memory'))} |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in item.loads:
        asked = (row.workload, row.steps, row.pictures, row.concurrency)
        start = f"| {' | '.join(map(str, (*asked, row.contexts or row.concurrency)))} |"
        if row.series is None:
            yield f"{start} {_cell(row.why)} | | | | |"
            continue
        each = row.series
        busy = "" if each.gpu_percent is None else f"{each.gpu_percent:.0f} %"
        memory = "" if each.gpu_memory_bytes is None else f"{each.gpu_memory_bytes / 1e9:.1f} GB"
        times = f"{each.p50_ms:,.0f} ms | {each.p95_ms:,.0f} ms"
        yield f"{start} {times} | {each.items_per_second / 2:.2f} | {busy} | {memory} |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:300]


def main(arguments: Sequence[str]) -> int:
    """Write the page; returns the exit code."""
    (FOLDER / PAGE).write_text(page(records()))
    print(f"{PAGE} is written", file=sys.stderr)
    return 0
