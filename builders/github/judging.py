"""Whether a run came to what was expected: every cell, in this run's image, judged and stored.

What is missing is never read as success. The list of what is expected comes from the matrix, not
from the jobs; a job that died, or never ran, leaves a gap in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from builders.audit.budget import check_budget
from builders.github.handover import HandedImage, HandedSmoke
from engines import index
from engines.snapshot import Snapshot, to_json
from engines.store.protocol import Store
from planyard.core.cells import Cell
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import EXIT_DONE, EXIT_FINDINGS, InputError, SmokeNotRunError
from planyard.core.findings import Finding, failures
from planyard.core.matrix import Matrix
from planyard.core.results import SmokeVerdict

CellVerdict = Literal["passed", "failed", "not run", "missing"]


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """A cell that was expected, and what the store has of it; `why` unless it passed."""

    cell: str
    image: str
    verdict: CellVerdict
    why: str = ""


class ImageResult(msgspec.Struct, frozen=True, kw_only=True):
    """An image of this run. `passed`: every expected cell did, and nothing is wrong with it."""

    name: str
    digest: str
    passed: bool
    pull_bytes: int
    unpacked_bytes: int
    budget: dict[str, int] = {}
    findings: tuple[Finding, ...] = ()


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """A channel that may move, and to what."""

    channel: str
    image: str
    digest: str


class RunVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a whole run came to: the document of `planyard github judge --json`.

    `jobs` names the stages that did not end well, with GitHub's word for it.
    """

    schema: Literal[1] = 1
    cells: tuple[CellResult, ...]
    images: tuple[ImageResult, ...]
    jobs: dict[str, str] = {}
    promotions: tuple[Promotion, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything that was expected is there, and good."""
        return (
            not self.jobs
            and bool(self.cells)
            and all(cell.verdict == "passed" for cell in self.cells)
            and all(image.passed for image in self.images)
        )


def judge_run(
    cells: Sequence[Cell],
    *,
    matrix: Matrix,
    images: Mapping[str, HandedImage],
    smoked: Sequence[HandedSmoke],
    store: Store,
    jobs: Mapping[str, str],
    channels: Mapping[str, str],
) -> RunVerdict:
    """Hold the expected `cells` against what jobs handed over and the store really has.

    `jobs` are the stages that did not end well, `channels` the image of each channel to move. They
    move only when the whole run is good.
    """
    stored = {
        name: {
            digest_of_bytes(to_json(each)): each
            for each in index.snapshots_of_image(store, handed.image.digest)
        }
        for name, handed in images.items()
    }
    results = tuple(_result(cell, images, smoked=smoked, stored=stored) for cell in cells)
    outcomes = tuple(
        _image_result(images[name], results, matrix=matrix)
        for name in dict.fromkeys(cell.image for cell in cells)
        if name in images
    )
    found = RunVerdict(cells=results, images=outcomes, jobs=dict(jobs))
    if not found.passed:
        return found
    promotions = tuple(
        Promotion(channel=channel, image=image, digest=images[image].image.digest)
        for channel, image in channels.items()
    )
    return msgspec.structs.replace(found, promotions=promotions)


def exit_code(verdict: RunVerdict) -> int:
    """What was not done comes first, as in a build; then what is bad."""
    if verdict.jobs or any(each.verdict in ("missing", "not run") for each in verdict.cells):
        return SmokeNotRunError.exit_code
    return EXIT_DONE if verdict.passed else EXIT_FINDINGS


def stages_from(asked: Sequence[str], *, empty: Sequence[str]) -> dict[str, str]:
    """The stages that did not succeed, with GitHub's word for it, from `name=result`.

    A skipped stage is well only when it is in `empty`: there was nothing for it to do. Raises
    InputError for anything else than `name=result`: a result that was lost is no success.
    """
    found = {}
    for text in asked:
        name, is_pair, result = (part.strip() for part in text.partition("="))
        if not (name and is_pair):
            raise InputError([f"--stage {text!r}: write NAME=RESULT, like smoke=success"])
        if result != "success" and not (result == "skipped" and name in empty):
            found[name] = result or "no result"
    return found


def channels_from(asked: Sequence[str], *, images: Sequence[str]) -> dict[str, str]:
    """The image of each channel: `stable=rtx`, or `stable` where there is one image only.

    Raises InputError for names that are no images of the selection, and channels named twice.
    """
    from engines.channels.record import checked_channel

    found: dict[str, str] = {}
    for text in asked:
        channel, is_named, image = (part.strip() for part in text.partition("="))
        if not is_named and len(images) == 1:
            image = images[0]
        if image not in images:
            wanted = f"{image!r} is none of them" if image else "write CHANNEL=IMAGE"
            raise InputError([f"channel {text!r}: the run has {', '.join(images)}; {wanted}"])
        if checked_channel(channel) in found:
            raise InputError([f"channel {channel!r} is named twice"])
        found[channel] = image
    return found


def _result(
    cell: Cell,
    images: Mapping[str, HandedImage],
    *,
    smoked: Sequence[HandedSmoke],
    stored: Mapping[str, Mapping[str, Snapshot]],
) -> CellResult:
    """What is known of one cell; every doubt is a gap."""

    def result(verdict: CellVerdict, why: str = "") -> CellResult:
        return CellResult(cell=cell.id, image=cell.image, verdict=verdict, why=why)

    if cell.image not in images:
        return result("missing", f"no job handed over the image {cell.image}")
    mine = [each for each in smoked if cell.id in each.verdicts]
    if not mine:
        return result("missing", "no smoke job reported on it: it died, or never ran")
    verdicts = list(_stored_verdicts(cell, mine, stored=stored[cell.image]))
    if not verdicts:
        digest = images[cell.image].image.digest
        return result("missing", f"the store has no snapshot of {digest} with it")
    worst = next((each for each in verdicts if each.verdict != "passed"), None)
    return result(worst.verdict, _why(worst)) if worst else result("passed")


def _stored_verdicts(
    cell: Cell, mine: Sequence[HandedSmoke], *, stored: Mapping[str, Snapshot]
) -> Iterator[SmokeVerdict]:
    """The verdicts on a cell in the snapshots that this run's jobs named, as the store has them."""
    for handed in mine:
        for written in handed.snapshots:
            snapshot = stored.get(written.digest)
            if snapshot is not None:
                yield from (each for each in snapshot.smoke if each.cell == cell.id)


def _why(verdict: SmokeVerdict) -> str:
    if verdict.reason:
        return verdict.reason
    found = [f"{each.message} [{each.rule}]" for each in failures(verdict.findings)]
    return "; ".join(found) or f"it {verdict.verdict}"


def _image_result(
    handed: HandedImage, results: Sequence[CellResult], *, matrix: Matrix
) -> ImageResult:
    image, budget = handed.image, matrix.images[handed.name].budget
    seen = {(each.rule, each.message) for each in handed.findings}
    budgets = check_budget(image, budget)
    findings = handed.findings + tuple(
        each for each in budgets if (each.rule, each.message) not in seen
    )
    mine = [each for each in results if each.image == image.name]
    limits = {"pull": budget.pull, "unpacked": budget.unpacked}
    return ImageResult(
        name=image.name,
        digest=image.digest,
        passed=not failures(findings) and all(each.verdict == "passed" for each in mine),
        pull_bytes=image.pull_bytes,
        unpacked_bytes=image.unpacked_bytes,
        budget={name: int(limit) for name, limit in limits.items() if limit is not None},
        findings=findings,
    )
