"""Comparisons and node labels for people: the worst first, and YAML that can be pasted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planyard.core.digest import short
from planyard.core.units import format_bytes
from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.node_labels import NodeLabels
    from engines.snapshot_diff import Change, Side, SnapshotDiff

_HEADINGS = {
    "breaks": "BREAKS: it held before, and does not hold or is not proved now",
    "attention": "work to do, or worth a look",
    "none": "for the record",
}
_CELLS_SHOWN = 3


def show_diff(diff: SnapshotDiff, console: Console) -> None:
    """Both sides, every change under what it means, and what there is to do in all."""
    from engines.snapshot_diff import lines_of_work

    console.say(f"before  {_side_text(diff.before)}")
    console.say(f"after   {_side_text(diff.after)}")
    for each in diff.not_compared:
        console.detail(f"not compared: {each.what}: {each.why}")
    if not diff.changes:
        console.good("no difference")
        return
    for severity in ("breaks", "attention", "none"):
        found = [change for change in diff.changes if change.severity == severity]
        if found:
            console.say()
            console.title(f"{_HEADINGS[severity]} ({len(found)})")
            for change in found:
                _show_change(change, console)
    if lines := lines_of_work(diff):
        console.say()
        console.title("in all")
        for line in lines:
            console.say(f"  {line}")


def _side_text(side: Side) -> str:
    commit = f", commit {side.commit[:12]}" if side.commit else ""
    return (
        f"{side.image_name} {side.image[:19]} ({', '.join(side.snapshots)}), "
        f"{side.created}, planyard {side.planyard_version}{commit}, "
        f"matrix {short(side.matrix_digest)}"
    )


def _show_change(change: Change, console: Console) -> None:
    mark = console.paint("  ! ", "31", "1") if change.severity == "breaks" else "  - "
    console.say(f"{mark}{change}")
    if change.cells and change.severity != "none":
        rest = len(change.cells) - _CELLS_SHOWN
        named = ", ".join(change.cells[:_CELLS_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
        console.detail(f"      {named}")
    if change.why:
        console.detail(f"      {change.why}")


def show_fits(found: NodeLabels, console: Console) -> None:
    """What was left out, and what nobody has tried: on stderr, beside the document."""
    for fit in found.gpus:
        if found.needs_gpu and not fit.chosen:
            console.warn(f"left out: {fit.gpu}: {fit.why}")
        elif found.needs_gpu and fit.proved == "not run":
            console.warn(
                f"NOT PROVED: nobody ran all cells of {found.image_name} on {fit.gpu}: the labels "
                "say where it is meant to run"
            )


def labels_to_yaml(found: NodeLabels) -> str:
    """`affinity:` as a pod's specification or a chart's values take it, with what it is above."""
    import msgspec
    import yaml

    lines = [f"# {found.image_name} {found.image}, {found.backend}"]
    if not found.needs_gpu:
        lines.append("# It needs no GPU: any node will do.")
    for fit in found.gpus:
        if found.needs_gpu and fit.chosen:
            memory = f", {format_bytes(fit.memory_bytes)} of memory" if fit.memory_bytes else ""
            lines.append(f"# {fit.gpu}: SM {(fit.sm or 0) / 10}{memory}, smoke {fit.proved}")
        elif found.needs_gpu:
            lines.append(f"# left out: {fit.gpu}: {fit.why}")
    document = {"affinity": msgspec.to_builtins(found.affinity)}
    text: str = yaml.safe_dump(
        msgspec.json.decode(msgspec.json.encode(document)), sort_keys=False, width=1000
    )
    return "\n".join(lines) + "\n" + text
