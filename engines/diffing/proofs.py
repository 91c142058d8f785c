"""What the smoke runs proved, and do not prove any more: verdicts, gates, findings, figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from engines.diffing import changes
from engines.diffing.changes import Change, ChangeSeverity
from engines.diffing.plans import Pair
from engines.diffing.views import ABSENT
from planyard.core.gates import GATE_NAMES
from planyard.core.results import SmokeVerdict

Both = tuple[SmokeVerdict, SmokeVerdict]

_VERDICTS: dict[tuple[str, str], tuple[ChangeSeverity, str]] = {
    ("passed", "failed"): ("breaks", "{cells} failed"),
    ("passed", "not run"): ("breaks", "{cells} not proved any more"),
    ("passed", ABSENT): ("breaks", "{cells} without a verdict"),
    ("failed", "passed"): ("none", "{cells} mended"),
    ("failed", "not run"): ("attention", "{cells} not tried again since"),
    ("failed", ABSENT): ("attention", "{cells} not tried again since"),
    ("not run", "passed"): ("none", "{cells} proved now"),
    ("not run", "failed"): ("breaks", "{cells} failed, the first time they were run"),
    ("not run", ABSENT): ("attention", "{cells} without a verdict"),
    (ABSENT, "passed"): ("none", "{cells} proved now"),
    (ABSENT, "failed"): ("breaks", "{cells} failed, the first time they were run"),
    (ABSENT, "not run"): ("attention", "{cells} not proved"),
}


def proof_changes(pair: Pair) -> list[Change]:
    """Verdicts, then gates, then findings."""
    return [*_verdict_changes(pair), *_switch_changes(pair), *_gate_changes(pair), *_findings(pair)]


def judged(pair: Pair) -> Iterator[tuple[str, Both]]:
    """The cells that both sides have a verdict for."""
    for cell in pair.cells:
        if cell in pair.before.verdicts and cell in pair.after.verdicts:
            yield cell, (pair.before.verdicts[cell], pair.after.verdicts[cell])


def grouped(
    pair: Pair, facts: Iterable[tuple[str, str, str, str]], make: Callable[..., Change]
) -> list[Change]:
    """One change for each (subject, before, after), over the cells that say so: (…, cell)."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for subject, before, after, cell in facts:
        if before != after:
            groups.setdefault((subject, before, after), []).append(cell)
    return [make(pair, *key, cells) for key, cells in groups.items()]


def change(
    pair: Pair,
    cells: Iterable[str],
    *,
    kind: str,
    subject: str,
    values: tuple[str, str],
    consequence: str,
    severity: ChangeSeverity,
    why: str = "",
) -> Change:
    """A change about cells."""
    named = tuple(cells)
    return Change(
        kind=kind,  # type: ignore[arg-type]
        subject=subject,
        before=values[0],
        after=values[1],
        consequence=consequence,
        severity=severity,
        gpus=tuple(sorted({cell.rpartition("/")[2] for cell in named})),
        cells=pair.ids(named),
        why=why,
    )


# Verdicts


def _verdict_changes(pair: Pair) -> list[Change]:
    def facts() -> Iterator[tuple[str, str, str, str]]:
        for cell in pair.cells:
            sides = [view.verdicts.get(cell) for view in (pair.before, pair.after)]
            before, after = (each.verdict if each else ABSENT for each in sides)
            yield "smoke", before, after, cell

    return grouped(pair, facts(), _verdict_change)


def _verdict_change(pair: Pair, subject: str, before: str, after: str, cells: list[str]) -> Change:
    severity, text = _VERDICTS[before, after]
    consequence = text.format(cells=changes.count(len(cells), "cell"))
    now = [pair.after.verdicts[cell] for cell in cells if cell in pair.after.verdicts]
    if after == "failed":
        rules = changes.union(*([_rule(each) for each in verdict.findings] for verdict in now))
        consequence += f": {', '.join(rules) or 'no finding says why'}"
    elif after == "not run":
        reasons = changes.union([verdict.reason for verdict in now if verdict.reason])
        consequence += f": {'; '.join(reasons)}" if reasons else ""
    values = (before, after)
    return change(
        pair,
        cells,
        kind="verdict",
        subject=subject,
        values=values,
        consequence=consequence,
        severity=severity,
    )


def _rule(finding: object) -> str:
    gate, rule = getattr(finding, "gate", ""), getattr(finding, "rule", "")
    return rule if rule.startswith(f"{gate}.") else f"{gate}.{rule}"


# Gates that are off


def _switch_changes(pair: Pair) -> list[Change]:
    """Gates the matrix turned off or on again, as the snapshots name them, for each GPU."""
    found = []
    for gpu in pair.gpus:
        before, after = (_off_by_gate(view.gates_off(gpu)) for view in (pair.before, pair.after))
        for gate in changes.union(before, after):
            here, there = before.get(gate, {}), after.get(gate, {})
            if here == there:
                continue
            weaker = set(there) - set(here)
            text = f"{gate} does not judge any more" if weaker else f"{gate} judges again"
            if set(there) == set(here):
                text = "the reason is another"
            found.append(
                Change(
                    kind="gate",
                    subject=f"gate {gate}",
                    before=_off_text(here),
                    after=_off_text(there),
                    consequence=text,
                    severity="breaks" if weaker else "none",
                    gpus=(gpu,),
                    cells=pair.ids(pair.after.cells_of(gpu)),
                )
            )
    return changes.merged(found)


def _off_by_gate(entries: Iterable[str]) -> dict[str, dict[str, str]]:
    """`latency for rtx/*: reason` as {"latency": {"rtx/*": "reason"}}; everywhere is ""."""
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        gate, _, rest = entry.partition(" for ")
        scope, _, reason = rest.partition(": ")
        found.setdefault(gate, {})[scope] = reason
    return found


def _off_text(scopes: dict[str, str]) -> str:
    if not scopes:
        return "on"
    texts = [f"{scope}: {reason}" if scope else "" for scope, reason in sorted(scopes.items())]
    return f"off ({'; '.join(texts)})" if any(texts) else "off"


def _gate_changes(pair: Pair) -> list[Change]:
    """Gates of single cells that say something else now, where the verdict does not say so."""
    named = set()
    for gpu in pair.gpus:
        before, after = (_off_by_gate(view.gates_off(gpu)) for view in (pair.before, pair.after))
        named |= {
            (gpu, gate)
            for gate in changes.union(before, after)
            if before.get(gate) != after.get(gate)
        }

    def facts() -> Iterator[tuple[str, str, str, str]]:
        for cell, (before, after) in judged(pair):
            for gate in changes.union(before.gates, after.gates):
                states = (before.gates.get(gate, ABSENT), after.gates.get(gate, ABSENT))
                switched = "off" in states and (cell.rpartition("/")[2], gate) in named
                if not switched and not _told_by_verdict(before, after, states):
                    yield (gate, *states, cell)

    return grouped(pair, facts(), _gate_change)


def _told_by_verdict(before: SmokeVerdict, after: SmokeVerdict, states: tuple[str, str]) -> bool:
    """Whether the line about the verdicts says it: the cell failed, or was not run."""
    if "off" in states or before.verdict == after.verdict:
        return False
    return after.verdict != "passed" or before.verdict == "not run" or states[1] == "passed"


def _gate_change(pair: Pair, gate: str, before: str, after: str, cells: list[str]) -> Change:
    many = changes.count(len(cells), "cell")
    if after == "off":
        severity, text = ("breaks" if before != ABSENT else "attention"), f"{many} not judged by it"
    elif after == "failed":
        severity, text = "breaks", f"{many} refused by it"
    elif before == "passed":
        severity, text = "breaks", f"{many} not proved by it any more"
    elif after == "passed":
        severity, text = "none", f"{many} judged by it now"
    else:
        severity, text = "attention", f"{many} concerned"
    return change(
        pair,
        cells,
        kind="gate",
        subject=f"gate {gate}",
        values=(before, after),
        consequence=text,
        severity=severity,  # type: ignore[arg-type]
        why="" if gate in (*GATE_NAMES, "exit") else "this planyard does not know the gate",
    )


# Findings


def _findings(pair: Pair) -> list[Change]:
    """Warnings that are new or gone; failures where the cell failed before as well."""

    def facts() -> Iterator[tuple[str, str, str, str]]:
        for cell, (before, after) in judged(pair):
            if "not run" in (before.verdict, after.verdict):
                continue
            sides = [{(each.severity, _rule(each)) for each in v.findings} for v in (before, after)]
            for severity, rule in sorted(sides[0] ^ sides[1]):
                if severity == "fail" and before.verdict != after.verdict:
                    continue
                told = "failure" if severity == "fail" else "warning"
                here, there = (ABSENT, told) if (severity, rule) in sides[1] else (told, ABSENT)
                yield rule, here, there, cell

    return grouped(pair, facts(), _finding_change)


def _finding_change(pair: Pair, rule: str, before: str, after: str, cells: list[str]) -> Change:
    severity: ChangeSeverity = "none" if after == ABSENT else "attention"
    if after == "failure":
        severity = "breaks"
    word = "gone from" if after == ABSENT else "new in"
    return change(
        pair,
        cells,
        kind="finding",
        subject=rule,
        values=(before, after),
        consequence=f"{word} {changes.count(len(cells), 'cell')}",
        severity=severity,
    )
