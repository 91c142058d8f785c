"""The end of a build: findings, the closing table, the document, GitHub's summary, the memo."""

from __future__ import annotations

import json as json_library
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from builders.github.annotations import (
    annotate,
    gpu_of,
    gpus_missed,
    place_of_cell,
    place_of_finding,
)
from builders.memo import memo_path, show_not_run, state_of
from planyard.core.units import format_bytes, format_seconds
from planyard.edge import files
from planyard.edge.console import Console

if TYPE_CHECKING:
    from builders.workspace import Workspace
    from engines.store.local_store import LocalStore
    from engines.store.mirrored import MirroredStore
    from planyard.core.findings import Finding
    from planyard.core.reader import LoadedMatrix
    from planyard.core.report import BuildReport


def close_build(
    report: BuildReport,
    *,
    loaded: LoadedMatrix,
    workspace: Workspace,
    matrix: Path,
    options: Sequence[str],
    json: bool,
    require_smoke: bool,
) -> int:
    """Show what came of a build and leave a memo when it was complete; returns the exit code.

    There is none for a store elsewhere: whether it still has everything is asked every time.
    """
    from engines.store.mirrored import MirroredStore
    from planyard.core.report import exit_code

    show_report(
        report,
        loaded=loaded,
        console=workspace.console,
        json=json,
        require_smoke=require_smoke,
    )
    code = exit_code(report, require_smoke=require_smoke)
    store = workspace.store
    if isinstance(store, MirroredStore):
        send_images(report, store=store, console=workspace.console)
    elif code == 0:
        _leave_memo(
            report,
            loaded=loaded,
            workspace=workspace,
            store=store,
            matrix=matrix,
            options=options,
        )
    elif exit_code(report) != 0:
        # Of an earlier build: the store now says otherwise, and a build has to say so again.
        # That smoke runs were required and could not be here says nothing about the store.
        memo_path(state_of(matrix)).unlink(missing_ok=True)
    return code


def send_images(report: BuildReport, *, store: MirroredStore, console: Console) -> None:
    """Have all that a build found or made in the far store, also what only the near one had.

    An image whose snapshots are not near came from there.
    """
    from engines.index import SNAPSHOTS
    from engines.keeping.copying import CopyProgress, copy_images

    named = dict.fromkeys(each.image for each in report.snapshots)
    images = [image for image in named if any(store.near.entries(SNAPSHOTS, image))]
    with console.step(f"send {len(images)} images to {store.url}") as now:

        def tell(progress: CopyProgress) -> None:
            moved = format_bytes(progress.moved_bytes)
            now.update(f"image {progress.number} of {progress.count}, {moved} moved")

        copy_images(store.near, store.far, images=images, report=tell)


def sign_images(report: BuildReport, *, workspace: Workspace) -> None:
    """Sign what each image of a build proved; raises IntegrityError where that cannot be done."""
    from builders.witness import sign_stored_image

    for image in dict.fromkeys(each.image for each in report.snapshots):
        with workspace.console.step(f"sign the evidence of {image[:19]}"):
            made, verified = sign_stored_image(workspace.store, image, root=workspace.root)
        until = f"version {made.version}, until {made.expires}"
        workspace.console.detail(f"  {len(made.statements)} statements, {until}")
        if not verified:
            workspace.console.warn("signed, but not verified: no public key was given")


def show_report(
    report: BuildReport,
    *,
    loaded: LoadedMatrix,
    console: Console,
    json: bool,
    require_smoke: bool,
) -> None:
    """Failures, findings, what nobody ran, and the table."""
    from planyard.core.report import TABLE_HEADER, findings_of, not_run, table_rows

    for image in report.images:
        if image.error:
            annotate(f"{image.name}: {image.error}", ("images", image.name), loaded, console)
    for failure in report.plan_failures:
        for line in failure.log_tail[-12:]:
            console.detail(f"  │ {line}")
        console.error(f"{failure.cell}: {failure.message}")
        place = place_of_cell(failure.cell)
        annotate(f"{failure.cell}: {failure.message}", place, loaded, console)
    for finding in findings_of(report):
        _show_finding(finding, loaded=loaded, console=console)
    for waiting in report.waiting:
        console.warn(f"{waiting.cell}: {waiting.reason}")
    if require_smoke:
        for cell, reason in gpus_missed(report):
            annotate(f"{cell} was not run: {reason}", ("gpus", gpu_of(cell)), loaded, console)
    show_not_run(
        [(each.cell, each.reason) for each in not_run(report)], console, required=require_smoke
    )
    rows = table_rows(report)
    console.say()
    console.table(TABLE_HEADER, rows)
    console.say(_times(report))
    _show_next([image.digest for image in report.images if image.digest], console, report)
    console.step_summary(_summary(TABLE_HEADER, rows, findings_of(report)))
    if json:
        import msgspec

        console.document(msgspec.json.encode(report).decode())


def _show_next(digests: Sequence[str], console: Console, report: BuildReport) -> None:
    if report.snapshots:
        with_plans = {snapshot.image for snapshot in report.snapshots if report.plans}
        best = next((digest for digest in digests if digest in with_plans), digests[0])
        console.say(f"next:  planyard lookup {best}")


def _times(report: BuildReport) -> str:
    own = max(report.seconds - report.outside_seconds, 0.0)
    return (
        f"{format_seconds(report.seconds)} in all, {format_seconds(own)} of them outside Docker, "
        "the compiler and downloads"
    )


def _show_finding(finding: Finding, *, loaded: LoadedMatrix, console: Console) -> None:
    show = console.error if finding.severity == "fail" else console.warn
    show(f"{finding.where}: {finding.message} [{finding.rule}]")
    for each in finding.evidence:
        console.detail(f"    {each}")
    annotate(
        f"{finding.where}: {finding.message}",
        place_of_finding(finding),
        loaded,
        console,
        level="error" if finding.severity == "fail" else "warning",
    )


def _summary(
    header: Sequence[str], rows: Sequence[Sequence[str]], findings: Sequence[Finding]
) -> str:
    """Markdown for GitHub's job summary; nothing in it is markup but what stands here."""
    from builders.audit.visible import markdown_text

    lines = ["## planyard build", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(markdown_text(each) for each in row)} |" for row in rows]
    if findings:
        lines += ["", "### Findings", ""]
        lines += [
            f"- **{markdown_text(each.where)}**: {markdown_text(each.message)} (`{each.rule}`)"
            for each in findings
        ]
    return "\n".join(lines) + "\n"


def _paths_in_store(report: BuildReport, *, store: LocalStore) -> Iterator[str]:
    """Where the store keeps what a build left: objects, and the keys of the index."""
    from engines import index

    digests = [plan.digest for plan in report.plans]
    digests += [verdict.log_digest for verdict in report.verdicts if verdict.log_digest]
    for image in report.images:
        if image.digest:
            digests += [image.digest, *index.read_manifest(store, image.digest).digests]
            yield f"index/snapshots/{image.digest[7:]}"
    for digest in digests:
        yield from store.objects_of_blob(digest)
    yield from (f"index/plans/{plan.recipe[7:]}" for plan in report.plans)


def _leave_memo(
    report: BuildReport,
    *,
    loaded: LoadedMatrix,
    workspace: Workspace,
    store: LocalStore,
    matrix: Path,
    options: Sequence[str],
) -> None:
    import msgspec

    from builders import memo
    from planyard.core.report import TABLE_HEADER, not_run, table_rows

    images = loaded.matrix.images
    inputs = {workspace.root / image.dockerfile for image in images.values()}
    inputs |= {workspace.root / image.context for image in images.values()}
    locks = [lock for image in images.values() for lock in (image.lock, image.compiler_lock)]
    inputs |= {workspace.root / lock for lock in locks if lock}
    samples = [model.calibration for model in loaded.matrix.models.values()]
    inputs |= {workspace.root / each.file for each in samples if each}
    summary = {
        "header": TABLE_HEADER,
        "rows": table_rows(report),
        "not_run": [(each.cell, each.reason) for each in not_run(report)],
        "images": [image.digest for image in report.images],
        "plans": len(report.plans),
        "lookup": next((each.image for each in report.snapshots), None),
    }
    document = memo.memo_of(
        matrix=matrix,
        options=options,
        inputs=[*inputs, *memo.own_files()],
        store=store.root,
        stored=_paths_in_store(report, store=store),
        summary=summary,
    )
    state = memo.state_of(matrix)
    # What a build with nothing to do will say: it builds and compiles nothing.
    images_kept = tuple(msgspec.structs.replace(each, built=False) for each in report.images)
    report = msgspec.structs.replace(report, images=images_kept, compiled=())
    files.write_bytes(memo.report_path(state), msgspec.json.encode(report))
    files.write_bytes(memo.memo_path(state), json_library.dumps(document).encode())
