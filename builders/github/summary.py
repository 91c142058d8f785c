"""What a run came to, as Markdown: for the job's summary, and ready to be a comment.

Words from outside (names, messages, log lines) are made text that means nothing in Markdown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from builders.audit.diff import diff_images
from builders.audit.diff_text import diff_markdown
from builders.audit.owners import find_owners
from builders.audit.sources import contents_of, image_in_store
from builders.audit.visible import markdown_code, markdown_text
from builders.github.judging import CellVerdict, ImageResult, RunVerdict
from engines import index
from engines.channels.history import read_head
from engines.snapshot_diff import SnapshotDiff, diff_snapshots, lines_of_work
from engines.store.store import ObjectStore
from planyard.core.errors import PlanyardError
from planyard.core.findings import Finding, failures
from planyard.core.units import format_bytes

MARKER = "<!-- planyard -->"
"""The first line: by it, a comment of an earlier run can be found and replaced."""
COMMENT_CHARACTERS = 65_536
"""The longest comment that GitHub takes; a job summary may have 1 MiB."""
_LONGEST = 500
_CHANGES_SHOWN = 20
_PROBLEMS_SHOWN = 50
_HEADINGS = {
    "breaks": "Breaks: it held before, and does not hold or is not proved now",
    "attention": "Work to do, or worth a look",
    "none": "For the record",
}


def summary_of(verdict: RunVerdict, *, store: ObjectStore, channels: Mapping[str, str]) -> str:
    """The whole summary. `channels` are the image of each: the last accepted ones are compared."""
    lines = [MARKER, f"## planyard: {'passed' if verdict.passed else 'NOT passed'}", ""]
    lines += table(
        ("image", "digest", "pull / budget", "unpacked / budget", "cells"),
        (_row(image, verdict) for image in verdict.images),
    )
    lines += _problems(verdict)
    for channel, name in channels.items():
        image = next((each for each in verdict.images if each.name == name), None)
        if image:
            lines += ["", f"### Since {_code(channel)}", "", *_since(channel, image, store)]
    return shortened("\n".join(lines) + "\n")


def _row(image: ImageResult, verdict: RunVerdict) -> tuple[str, ...]:
    counts = Counter(each.verdict for each in verdict.cells if each.image == image.name)
    order: tuple[CellVerdict, ...] = ("missing", "failed", "not run", "passed")
    return (
        _text(image.name),
        _code(image.digest[:19]),
        _against(image.pull_bytes, image.budget.get("pull")),
        _against(image.unpacked_bytes, image.budget.get("unpacked")),
        ", ".join(f"{counts[each]} {each}" for each in order if counts[each]) or "none",
    )


def _against(size_bytes: int, limit_bytes: int | None) -> str:
    if limit_bytes is None:
        return f"{format_bytes(size_bytes)} / no limit"
    share = f"{format_bytes(size_bytes)} / {format_bytes(limit_bytes)}"
    return f"**{share} OVER**" if size_bytes > limit_bytes else share


def _problems(verdict: RunVerdict) -> Iterator[str]:
    """Everything that stands in the way, stages first."""
    found = [f"- stage {_code(name)}: {_code(result)}" for name, result in verdict.jobs.items()]
    for image in verdict.images:
        found += [f"- {_code(image.name)}: {_finding(each)}" for each in failures(image.findings)]
    for cell in verdict.cells:
        if cell.verdict != "passed":
            found.append(f"- {_code(cell.cell)} {cell.verdict}: {_text(cell.why)}")
    if found:
        yield from ("", "### Problems", "", *found[:_PROBLEMS_SHOWN])
    if len(found) > _PROBLEMS_SHOWN:
        yield f"- and {len(found) - _PROBLEMS_SHOWN} more"


def _finding(finding: Finding) -> str:
    return f"{_text(finding.message)} {_code(finding.rule)}"


def _since(channel: str, image: ImageResult, store: ObjectStore) -> Iterator[str]:
    """What changed since the image that the channel is at."""
    head = read_head(store, channel)
    if head is None:
        yield "Nothing was accepted here before."
        return
    accepted = head.state.image
    if accepted == image.digest:
        yield f"The same image: {_code(accepted[:19])}."
        return
    yield f"{_code(accepted[:19])} was accepted; {_code(image.digest[:19])} is new."
    yield ""
    try:
        yield from [*_proofs(accepted, image.digest, store), ""]
        yield _contents(accepted, image.digest, store)
    except (
        PlanyardError
    ) as error:  # the accepted image may be damaged: that is not this run's fault
        yield f"They cannot be compared: {_text(error.message)}"


def _proofs(accepted: str, new: str, store: ObjectStore) -> Iterator[str]:
    """What the new image proves and the accepted one did not, and the other way round."""
    after = index.snapshots_of_image(store, new)
    before = index.snapshots_of_image(store, accepted)
    if before and after:
        yield from _differences(diff_snapshots(before, after))
    else:
        yield "One of the two has no snapshot, so what they prove cannot be compared."


def _contents(accepted: str, new: str, store: ObjectStore) -> str:
    """What changed in the image itself: sizes and whose they are, packages, files."""
    sides = []
    for digest in (accepted, new):
        found, _ = contents_of(image_in_store(store, digest), store=store)
        sides.append((found, find_owners(found)))
    return diff_markdown(diff_images(*sides[0], *sides[1]))


def _differences(diff: SnapshotDiff) -> Iterator[str]:
    for each in diff.not_compared:
        yield f"- not compared: {_text(each.what)}: {_text(each.why)}"
    for severity, heading in _HEADINGS.items():
        found = [change for change in diff.changes if change.severity == severity]
        if found:
            yield f"\n**{heading}** ({len(found)})\n"
            yield from (f"- {_text(str(change))}" for change in found[:_CHANGES_SHOWN])
        if len(found) > _CHANGES_SHOWN:
            yield f"- and {len(found) - _CHANGES_SHOWN} more"
    if not diff.changes:
        yield "No difference in what they prove."
    if work := lines_of_work(diff):
        yield "\n**In all**\n"
        yield from (f"- {_text(line)}" for line in work)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; `rows` are Markdown already."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def shortened(text: str, *, limit: int = COMMENT_CHARACTERS) -> str:
    """The whole lines that fit into `limit` characters; says when some were left out."""
    if len(text) <= limit:
        return text
    note = "\n\n(shortened: the log of this job has everything)\n"
    return text[: text.rfind("\n", 0, limit - len(note))] + note


def _text(words: str) -> str:
    return markdown_text(words, limit=_LONGEST)


def _code(words: str) -> str:
    return markdown_code(words, limit=_LONGEST)
