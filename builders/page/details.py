"""What the page of one cell shows: its gates, evidence, plan, log and history. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builders.page.cells import Cell
from builders.page.collect import Log
from builders.page.drawing import Series, all_series
from builders.page.loads import LoadPart, load_parts
from builders.page.logs import Excerpt, excerpt, stream_of
from planyard.core.findings import Finding
from planyard.core.gates import GATE_NAMES
from planyard.core.loads import LoadRecord
from planyard.core.matrix import Matrix
from planyard.core.results import NodePlacement

MOST_FINDINGS = 100
_LONGEST_VALUE = 2000


@dataclass(frozen=True, kw_only=True)
class GateRow:
    """A gate: what it said and why; `off` says where it was turned off."""

    name: str
    said: str
    findings: tuple[Finding, ...]
    left_out: int
    off: str


@dataclass(frozen=True, kw_only=True)
class ProviderRow:
    """What ran on one provider; `share` is in percent of all nodes."""

    provider: str
    nodes: int
    share: float
    operators: tuple[NodePlacement, ...]


@dataclass(frozen=True, kw_only=True)
class VersionRow:
    """One thing's version: as pinned, as found in the image, as loaded; empty where not known."""

    name: str
    pinned: str
    found: str
    how: str
    loaded: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Details:
    """The page of a cell."""

    cell: Cell
    image_anchor: str
    gates: tuple[GateRow, ...]
    series: tuple[Series, ...]
    with_limits: bool
    placement: tuple[ProviderRow, ...]
    versions: tuple[VersionRow, ...]
    recipe: tuple[tuple[str, str], ...]
    command: str
    streams: tuple[Excerpt, ...]
    log_problem: str
    log_files: dict[str, str]
    """The file that holds the whole of each stream, by its name."""
    loads: tuple[LoadPart, ...] = ()
    """What load runs measured, a part for each workload."""


def details(
    cell: Cell,
    *,
    image_anchor: str,
    matrix: Matrix | None,
    store: str,
    log: Log | None,
    log_files: Mapping[str, str],
    loads: Sequence[LoadRecord] = (),
) -> Details:
    """Everything about a cell; `store` is what a reader writes after `--store`, or empty.

    `loads` are the cell's load runs, the newest first.
    """
    findings = cell.verdict.findings if cell.verdict else ()
    streams = []
    if log and not log.problem:
        for name, text in (("stdout", log.stdout), ("stderr", log.stderr)):
            streams.append(excerpt(text, stream=name, findings=findings))
    return Details(
        cell=cell,
        image_anchor=image_anchor,
        gates=gate_rows(cell),
        series=all_series(cell, matrix),
        with_limits=matrix is not None,
        placement=placement_rows(cell),
        versions=version_rows(cell),
        recipe=tuple(recipe_rows(cell.plan.inputs)) if cell.plan else (),
        command=command_of(cell, store=store),
        streams=tuple(streams),
        log_problem=log.problem if log else "",
        log_files=dict(log_files),
        loads=load_parts(cell, loads),
    )


def gate_rows(cell: Cell) -> tuple[GateRow, ...]:
    """Every gate in the order they judge, and what else has findings."""
    if not cell.verdict:
        return ()
    said = cell.verdict.gates
    order = {name: number for number, name in enumerate(("exit", *GATE_NAMES))}
    names = dict.fromkeys([*said, *(each.gate for each in cell.verdict.findings)])
    rows = []
    for name in sorted(names, key=lambda each: order.get(each, len(order))):
        mine = [each for each in cell.verdict.findings if each.gate == name]
        mine.sort(key=lambda each: each.severity != "fail")
        row = GateRow(
            name=name,
            said=said.get(name, "-"),
            findings=tuple(mine[:MOST_FINDINGS]),
            left_out=max(len(mine) - MOST_FINDINGS, 0),
            off=_why_off(cell, name) if said.get(name) == "off" else "",
        )
        rows.append(row)
    return tuple(rows)


def _why_off(cell: Cell, name: str) -> str:
    """What the snapshot says of a gate that is off: `latency`, or `latency for rtx/*: reason`."""
    off = cell.step.view.gates_off(cell.axes[3]) if cell.step else ()
    said = [each for each in off if each == name or each.startswith(f"{name} ")]
    return "; ".join(said)


def placement_rows(cell: Cell) -> tuple[ProviderRow, ...]:
    """Nodes by provider, the largest first."""
    placed = cell.verdict.placement if cell.verdict else ()
    by_provider: dict[str, list[NodePlacement]] = {}
    for each in placed:
        by_provider.setdefault(each.provider, []).append(each)
    whole = sum(each.count for each in placed) or 1
    rows = [
        ProviderRow(
            provider=provider,
            nodes=sum(each.count for each in nodes),
            share=round(100 * sum(each.count for each in nodes) / whole, 1),
            operators=tuple(sorted(nodes, key=lambda each: (-each.count, each.operator))),
        )
        for provider, nodes in by_provider.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.nodes))


def version_rows(cell: Cell) -> tuple[VersionRow, ...]:
    """Pins, what is in the image, and what the process had loaded, side by side."""
    if not cell.step:
        return ()
    newest = cell.step.view.gpus.get(cell.axes[3], cell.step.newest)
    loaded = cell.verdict.loaded if cell.verdict else {}
    names = dict.fromkeys([*newest.pins, *newest.versions_found, *loaded])
    rows = []
    for name in names:
        found, library = newest.versions_found.get(name), loaded.get(name)
        row = VersionRow(
            name=name,
            pinned=newest.pins.get(name, ""),
            found=found.version if found else "",
            how=found.how if found else "",
            loaded=library.version if library else "",
            path=library.path if library else "",
        )
        rows.append(row)
    return tuple(rows)


def recipe_rows(inputs: Mapping[str, object], before: str = "") -> list[tuple[str, str]]:
    """All inputs of a plan, one value a line: `profile.x.min` and `[1, 3, 640, 640]`."""
    rows: list[tuple[str, str]] = []
    for name, value in sorted(inputs.items()):
        if isinstance(value, dict) and value:
            rows += recipe_rows(value, f"{before}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((f"{before}{name}", text[:_LONGEST_VALUE]))
    return rows


def command_of(cell: Cell, *, store: str) -> str:
    """The command that gets a cell's plans and snapshot, or builds what is not there."""
    if cell.step is None or cell.verdict is None:
        words = ["planyard", "build", "--select", cell.id]
    else:
        words = ["planyard", "lookup", cell.step.image]
        words += ["--sm", str(cell.sm), "--pull", "plans/"] if cell.plan and cell.sm else []
    words += ["--store", store] if store else []
    return shlex.join(words)


def line_anchor(finding: Finding) -> str:
    """The place on the page of the line that a finding points at; empty when there is none."""
    stream = stream_of(finding)
    return f"{stream}-{finding.line}" if stream and finding.line else ""
