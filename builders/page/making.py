"""`planyard report --html`: from a store, which is only read, to a folder that a browser opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import planyard
from builders.page.collect import STEPS, Knowledge, Log, LogReader, read_store
from builders.page.comparing import Follows, figures, follows, pairs_of
from builders.page.details import details
from builders.page.loads import by_cell
from builders.page.overview import Overview, overview
from builders.page.rendering import cell_page, index_page
from builders.page.writing import KIND, Draft, Mark, drafting, publish
from planyard.core.cells import expand
from planyard.core.compat import load_compat
from planyard.core.contents import ImageAudit
from planyard.core.loads import LoadRecord
from planyard.core.matrix import Matrix

if TYPE_CHECKING:
    from engines.store.store import ObjectStore

REPORT_SCHEMA = 1


class ReportWritten(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `planyard report --json`: what was read, and what was written where.

    `cells` counts by state, `dropped` are points that rules took out. `damaged` are logs that are
    not what their digest says; they are not shown.
    """

    schema: int = REPORT_SCHEMA
    folder: str
    index: str
    store: str
    images: dict[str, str]
    """The newest image of each name, by its digest."""
    cells: dict[str, int]
    dropped: int
    steps: int
    compared: int
    pages: int
    logs: int
    size_bytes: int
    damaged: tuple[str, ...] = ()


def write_report(
    store: ObjectStore,
    folder: Path,
    *,
    root: Path,
    matrix: Matrix | None = None,
    audits: Mapping[str, ImageAudit] | None = None,
    title: str = "Planyard report",
    store_shown: str = "",
    made: str,
    steps: int = STEPS,
) -> ReportWritten:
    """Write the report of a store into `folder`, whole or not at all.

    `store_shown` is what a reader has to write after `--store`; empty for the workspace's own.
    `audits` are by image digest. Raises InputError for a folder that holds something else.
    """
    with drafting(folder) as draft:
        known = read_store(store, root=root, steps=steps)
        compared = {
            (before.image, after.image): follows(before, after)
            for before, after in pairs_of(known.histories.values())
        }
        page = overview(
            known,
            matrix=matrix,
            expansion=expand(matrix, load_compat()) if matrix else None,
            follows=compared,
            audits=audits or {},
            title=title,
            store=store_shown or "the workspace's own store",
            made=made,
        )
        reader = LogReader(store=store)
        loads = by_cell(known.loads)
        logs = write_evidence(
            page, draft, reader=reader, matrix=matrix, store=store_shown, loads=loads
        )
        index = render_index(page, known, compared, evidence=draft.name)
        mark = Mark(kind=KIND, planyard=planyard.__version__, made=made, evidence=draft.name)
        publish(draft, folder, index=index, mark=mark)
    return ReportWritten(
        folder=str(folder),
        index=str(folder / "index.html"),
        store=store_shown,
        images={name: history.now.image for name, history in known.histories.items()},
        cells={str(state): count for state, count in page.counts.items()},
        dropped=page.dropped,
        steps=sum(len(history.steps) for history in known.histories.values()),
        compared=len(compared),
        pages=len(page.cells),
        logs=logs,
        size_bytes=draft.size_bytes + len(index.encode("utf-8", "replace")),
        damaged=tuple(reader.damaged),
    )


def render_index(
    page: Overview,
    known: Knowledge,
    compared: Mapping[tuple[str, str], Follows],
    *,
    evidence: str,
) -> str:
    """The first page, with the figures that its script compares."""
    document = figures(known.histories.values(), dict(compared), known.loads)
    return index_page(page, figures=document, cells=f"{evidence}/cells")


def write_evidence(
    page: Overview,
    draft: Draft,
    *,
    reader: LogReader,
    matrix: Matrix | None,
    store: str,
    loads: Mapping[str, Sequence[LoadRecord]],
) -> int:
    """A page for each cell, and its whole log beside it; how many logs were written."""
    logs = 0
    for image in page.images:
        for cell in image.cells:
            log = (
                reader.read(cell.verdict.log_digest)
                if cell.verdict and cell.verdict.log_digest
                else None
            )
            names = _write_log(draft, cell.page, log)
            logs += bool(names)
            shown = details(
                cell,
                image_anchor=image.anchor,
                matrix=matrix,
                store=store,
                log=log,
                log_files=names,
                loads=loads.get(cell.id, ()),
            )
            draft.add(f"cells/{cell.page}.html", cell_page(shown, page))
    return logs


def _write_log(draft: Draft, page: str, log: Log | None) -> dict[str, str]:
    """The files that hold the streams of a log, by the stream's name."""
    names = {}
    for stream, text in (("stdout", log.stdout), ("stderr", log.stderr)) if log else ():
        if text:
            names[stream] = f"logs/{page}.{stream}.txt"
            draft.add(names[stream], text)
    return names
