"""When a channel may move, and to what. Every rule, no I/O.

Promote: the newest word on every cell is that it was run and passed; no budget is exceeded; the
contents of the image are in order; image and plans are stored whole; signed evidence agrees where
it is asked for. Whatever does not hold is an objection, a finding; a person may waive all of one
gate, with a reason that is recorded. That something is not stored cannot be waived.

Rollback: to the promotion in force before the one in force now. A rollback takes what it left out
of that line, so that two in a row go back twice, and one after a new promotion never returns to
what was rolled back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from engines.channels.record import ChannelState, Waived, one_line
from engines.evidence.rules import deciding
from engines.snapshot import Snapshot
from planyard.core.errors import InputError, IntegrityError
from planyard.core.findings import Finding, failures
from planyard.core.results import SmokeVerdict
from planyard.core.units import format_bytes

INCOMPLETE, NOT_RUN, SMOKE, SIGNATURE = "incomplete", "not-run", "smoke", "signature"
NEVER_WAIVED = frozenset({INCOMPLETE})
KNOWN_SHOWN = 20
_ASKED = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_SIGNED_RESULTS = ("evidence.failed", "evidence.no-tests", "evidence.not-run", "evidence.warned")


class Waiver(msgspec.Struct, frozen=True, kw_only=True):
    """All objections of one gate, and why they do not count."""

    gate: str
    because: str


class EvidenceState(msgspec.Struct, frozen=True, kw_only=True):
    """What verifying the signed evidence of an image came to; `entry` is empty without any.

    A failing finding means that it is not genuine, or that it says something did not pass.
    """

    entry: str = ""
    findings: tuple[Finding, ...] = ()


def chosen_snapshots(snapshots: Sequence[Snapshot], *, gpus: Sequence[str]) -> tuple[Snapshot, ...]:
    """The snapshots of these GPUs (all without any) that are the newest word on some cell.

    The newest snapshot of a GPU alone would not do: it may name only the cells of one `--select`.
    Raises InputError for a GPU without a snapshot.
    """
    known = sorted({each.gpu for each in snapshots})
    if strange := sorted(set(gpus) - set(known)):
        said = f"this image has snapshots for {', '.join(known)}"
        raise InputError([f"--gpu {gpu}: {said}" for gpu in strange])
    chosen = [each for each in snapshots if not gpus or each.gpu in gpus]
    return deciding(chosen) or tuple(chosen)


def objections(
    snapshots: Sequence[Snapshot],
    *,
    lost: Mapping[str, str],
    contents: Sequence[Finding] = (),
    evidence: EvidenceState | None = None,
    require_signed: bool = False,
) -> tuple[Finding, ...]:
    """Everything that speaks against promoting an image; warnings are among it.

    `snapshots` are the chosen ones, `lost` what is not stored by digest, `contents` the findings
    of the image's own record. A gate that is off is no objection: the record names it.
    """
    found = [finding for verdict in last_words(snapshots) for finding in _of_cell(verdict)]
    if not any(each.smoke or each.plans for each in snapshots):
        found.append(_finding(NOT_RUN, "no cell was ever tried: nothing is shown"))
    found += _of_budgets(snapshots)
    found += contents
    found += _of_audits(snapshots)
    found += incomplete(lost)
    if require_signed:
        found += _of_evidence(evidence)
    return tuple(found)


def objections_to_return(
    *,
    lost: Mapping[str, str],
    evidence: EvidenceState | None,
    require_signed: bool,
    waived: Sequence[Waived],
) -> tuple[Finding, ...]:
    """What speaks against going back to a promotion; `waived` is what was waived then."""
    signed = _of_evidence(evidence) if require_signed else ()
    gates = {each.gate for each in waived}
    return (*incomplete(lost), *(each for each in signed if each.gate not in gates))


def warnings_of(
    found: Sequence[Finding], *, image: str, before: ChannelState | None
) -> tuple[Finding, ...]:
    """What a person should know, and does not object to."""
    warnings = tuple(each for each in found if each.severity == "warn")
    if before and before.action == "rollback" and before.from_image == image:
        because = f": {before.because}" if before.because else ""
        message = f"it was rolled back from at {before.moved_at} by {before.by}{because}"
        back = _finding("rolled-back", message, where=before.channel)
        warnings += (msgspec.structs.replace(back, severity="warn"),)
    return warnings


def incomplete(lost: Mapping[str, str]) -> tuple[Finding, ...]:
    """The objection that something of an image is not stored: digest → what it is."""
    if not lost:
        return ()
    listed = tuple(f"{what} {digest}".strip() for digest, what in lost.items())
    return (_finding(INCOMPLETE, f"{len(lost)} of its parts are not stored", evidence=listed),)


def last_words(snapshots: Sequence[Snapshot]) -> Iterator[SmokeVerdict]:
    """The newest verdict on every cell that is named anywhere, of equally new ones each.

    A cell whose newest snapshot has a plan and no verdict is not run.
    """
    newest: dict[str, str] = {}
    for snapshot in snapshots:
        for cell in _verdicts(snapshot):
            newest[cell] = max(newest.get(cell, ""), snapshot.created)
    for snapshot in snapshots:
        for cell, verdict in _verdicts(snapshot).items():
            if newest[cell] == snapshot.created:
                yield verdict


def plans_to_serve(snapshots: Sequence[Snapshot]) -> dict[str, str]:
    """The digests of the plans that a lookup would choose from, each with its cell."""
    newest: dict[str, str] = {}
    for snapshot in snapshots:
        for plan in snapshot.plans:
            newest[plan.cell] = max(newest.get(plan.cell, ""), snapshot.created)
    return {
        plan.digest: plan.cell
        for snapshot in snapshots
        for plan in snapshot.plans
        if newest[plan.cell] == snapshot.created
    }


def waive(
    found: Sequence[Finding], waivers: Sequence[Waiver]
) -> tuple[tuple[Finding, ...], tuple[Waived, ...]]:
    """What is left of the objections, and what to record of the rest.

    Raises InputError for a waiver without a reason, of a gate twice, of what cannot be waived, and
    of a gate that does not object: a slip of a hand must not pass.
    """
    against = failures(tuple(found))
    gates = sorted({each.gate for each in against})
    problems = []
    for waiver in waivers:
        if waiver.gate in NEVER_WAIVED:
            problems.append(f"--waive {waiver.gate}: what is not stored cannot be served")
        elif waiver.gate not in gates:
            said = f"there are objections of {', '.join(gates)}" if gates else "nothing objects"
            problems.append(f"--waive {waiver.gate}: that gate does not object; {said}")
        elif not one_line(waiver.because):
            problems.append(f"--waive {waiver.gate}: say --because, it is recorded")
    counted = Counter(waiver.gate for waiver in waivers)
    problems += [f"--waive {gate} twice" for gate, count in counted.items() if count > 1]
    if problems:
        raise InputError(problems)
    waived = tuple(_waived(waiver, against) for waiver in waivers)
    return tuple(each for each in against if each.gate not in counted), waived


def line_of_promotions(history: Iterable[ChannelState]) -> Iterator[ChannelState]:
    """The promotion in force, then the one it took over from, and so on back to the first.

    `history` is newest first, and read only as far as is asked for. Raises IntegrityError for a
    rollback that does not restore the promotion it says.
    """
    wanted, restoring = 0, None
    for state in history:
        if wanted and state.version > wanted:
            continue
        if restoring and (state.action, state.image) != ("promote", restoring.image):
            raise IntegrityError(
                f"channel {state.channel}: version {restoring.version} says it restores version "
                f"{restoring.restores}, which is a {state.action} of {state.image}"
            )
        if state.action == "rollback":
            wanted, restoring = state.restores, state
        else:
            yield state
            wanted, restoring = state.version - 1, None
            if not wanted:
                return


def promotion_of(history: Iterable[ChannelState], asked: str, *, channel: str) -> ChannelState:
    """The newest promotion of an image, given by its digest or 12 or more of its hex digits.

    Raises InputError for text that is no digest, an image that was never promoted, or a prefix of
    several; the error names those that were.
    """
    match = _ASKED.fullmatch(asked)
    if not match:
        said = "write sha256: and 12 to 64 lower-case hex digits"
        raise InputError([f"--to {asked[:80]!r} is not an image digest: {said}"])
    promoted: dict[str, ChannelState] = {}
    for state in history:
        if state.action == "promote":
            promoted.setdefault(state.image, state)
    found = [state for image, state in promoted.items() if image[7:].startswith(match[1])]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(state.image for state in found)
        raise InputError([f"--to {asked} is the start of several images: {several}"])
    known = [f"version {each.version} {each.image}" for each in promoted.values()][:KNOWN_SHOWN]
    raise InputError(
        [f"--to {asked} was never promoted to channel {channel}; known: {'; '.join(known)}"],
        mend=f"`planyard channels {channel}` shows its history",
    )


def _waived(waiver: Waiver, against: Sequence[Finding]) -> Waived:
    where = [f"{each.where} {each.rule}" for each in against if each.gate == waiver.gate]
    because = one_line(waiver.because)
    return Waived(gate=waiver.gate, because=because, where=tuple(map(one_line, where)))


def _verdicts(snapshot: Snapshot) -> dict[str, SmokeVerdict]:
    reason = "there is a plan, and no verdict on it"
    found = {
        plan.cell: SmokeVerdict(cell=plan.cell, verdict="not run", reason=reason)
        for plan in snapshot.plans
    }
    return found | {verdict.cell: verdict for verdict in snapshot.smoke}


def _of_cell(verdict: SmokeVerdict) -> Iterator[Finding]:
    """The objections of every gate that did not pass the cell, with what it had seen."""
    cell = verdict.cell
    if verdict.verdict == "not run":
        reason = f": {verdict.reason}" if verdict.reason else ""
        yield _finding(NOT_RUN, f"nobody ran it{reason}", where=cell)
        return
    said: dict[str, list[str]] = {
        gate: [] for gate, word in verdict.gates.items() if word in ("failed", "not run")
    }
    for finding in failures(verdict.findings):
        said.setdefault(finding.gate, []).append(f"{finding.message} [{finding.rule}]")
    if verdict.verdict != "passed" and not said:
        said[SMOKE] = []
    for gate, seen in said.items():
        yield _finding(gate, f"the gate {gate} did not pass it", where=cell, evidence=tuple(seen))


def _newest_of_gpus(snapshots: Sequence[Snapshot]) -> Iterator[Snapshot]:
    """The newest snapshots of each GPU, of equally new ones each."""
    newest: dict[str, str] = {}
    for each in snapshots:
        newest[each.gpu] = max(newest.get(each.gpu, ""), each.created)
    return (each for each in snapshots if each.created == newest[each.gpu])


def _of_audits(snapshots: Sequence[Snapshot]) -> tuple[Finding, ...]:
    """What the newest snapshot of each GPU says is wrong with what the image holds."""
    said = (each for snapshot in _newest_of_gpus(snapshots) for each in snapshot.audit)
    return tuple(dict.fromkeys(said))


def _of_budgets(snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
    """What the newest snapshot of each GPU says the image weighs too much of."""
    said = set()
    for each in _newest_of_gpus(snapshots):
        budget = each.budget
        for name, weighs, limit in (
            ("pull", budget.pull_bytes, budget.pull_limit_bytes),
            ("unpacked", budget.unpacked_bytes, budget.unpacked_limit_bytes),
            ("largest-layer", budget.largest_layer_bytes, budget.largest_layer_limit_bytes),
        ):
            if limit is not None and weighs > limit:
                said.add((name, weighs, limit))
    for name, weighs, limit in sorted(said):
        message = f"{name}: {format_bytes(weighs)}, the budget is {format_bytes(limit)}"
        yield _finding("budget", message, rule=f"budget.{name}")


def _of_evidence(evidence: EvidenceState | None) -> Iterator[Finding]:
    """Signed results that are bad object as `evidence`, all that is not genuine as `signature`."""
    if evidence is None or not (evidence.entry or failures(evidence.findings)):
        yield _finding(SIGNATURE, "signed evidence is asked for, and there is none")
        return
    for finding in evidence.findings:
        signed = finding.rule in _SIGNED_RESULTS
        yield msgspec.structs.replace(finding, gate="evidence" if signed else SIGNATURE)


def _finding(
    gate: str, message: str, *, where: str = "", evidence: tuple[str, ...] = (), rule: str = ""
) -> Finding:
    return Finding(
        gate=gate, rule=rule or f"promote.{gate}", message=message, where=where, evidence=evidence
    )
