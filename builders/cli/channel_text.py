"""Channels for people: what moved, from where to where, who did it, what spoke against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.channels.moves import Move
    from engines.channels.record import ChannelState
    from planyard.core.findings import Finding


def show_move(move: Move, console: Console) -> None:
    """What a promotion or rollback came to: from where to where, by whom, and what spoke for it."""
    for skipped in move.skipped:
        console.warn(f"passed over version {skipped.version}, {skipped.image}")
        _show_findings(skipped.findings, console)
    _show_findings(move.warnings, console)
    _show_findings(move.objections, console)
    now = move.now
    if move.objections:
        at = f"stays at {_image(now)} (version {now.version})" if now else "was not made"
        console.error(f"{move.channel} {at}")
        gates = sorted({each.gate for each in move.objections} - {"incomplete"})
        if gates and move.action == "promote":
            waived = " ".join(f"--waive {gate}" for gate in gates)
            console.detail(f'to do it all the same, on record: {waived} --because "…"')
    elif now and not move.moved:
        console.good(f"nothing to do: {move.channel} is at {_image(now)} (version {now.version})")
    elif now:
        _show_moved(now, move.before, console)


def _show_moved(now: ChannelState, before: ChannelState | None, console: Console) -> None:
    word = {"promote": "promoted", "rollback": "rolled back"}[now.action]
    console.good(f"{now.channel} {word} to {_image(now)} (version {now.version})")
    if before:
        console.say(f"  from     {_image(before)} (version {before.version})")
    console.say(f"  by       {now.by}, {now.moved_at}")
    if now.because:
        console.say(f"  because  {now.because}")
    for waived in now.waived:
        console.warn(f"waived {waived.gate} ({', '.join(waived.where)}): {waived.because}")
    if now.gates_off:
        console.warn(
            f"did not judge, because the matrix turns them off: {', '.join(now.gates_off)}"
        )
    if now.evidence:
        console.detail(f"  signed evidence {now.evidence}")
    if before and now.action == "promote":
        console.detail(f"undo:  planyard rollback {now.channel}")
    else:
        console.detail(f"look:  planyard channels {now.channel}")


def _show_findings(findings: Sequence[Finding], console: Console) -> None:
    for finding in findings:
        line = f"{finding.where}: {finding.message} [{finding.rule}]".removeprefix(": ")
        (console.error if finding.severity == "fail" else console.warn)(line)
        for seen in finding.evidence:
            console.detail(f"    {seen}")


def show_channels(states: Sequence[ChannelState], console: Console, *, url: str) -> None:
    """Every channel on a line."""
    if not states:
        console.say(f"{url} has no channels; planyard promote CHANNEL IMAGE_DIGEST makes one")
        return
    rows = [
        (each.channel, _image(each), str(each.version), each.action, each.moved_at, each.by)
        for each in states
    ]
    console.table(("channel", "image", "version", "by way of", "when", "who"), rows)


def show_history(states: Sequence[ChannelState], console: Console, *, older: int) -> None:
    """The states of one channel, as given; `older` ones are left out."""
    rows = [
        (str(each.version), _what(each), _image(each), each.moved_at, each.by, _why(each))
        for each in states
    ]
    console.table(("version", "what", "image", "when", "who", "why"), rows)
    if older:
        console.detail(f"{older} older ones; --limit shows more")


def _what(state: ChannelState) -> str:
    return f"back to {state.restores}" if state.restores else "promoted"


def _why(state: ChannelState) -> str:
    waived = [f"waived {each.gate}: {each.because}" for each in state.waived]
    return "; ".join(dict.fromkeys([state.because, *waived])).strip("; ") or "-"


def _image(state: ChannelState) -> str:
    return f"{state.image_name} {state.image[:19]}".strip()
