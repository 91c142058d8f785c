"""An audit for people: layers, owners, findings. Names from the image are shown as text only."""

from __future__ import annotations

from builders.audit.visible import visible
from planyard.core.contents import ImageAudit, LayerAudit, Owner, OwnerSize
from planyard.core.findings import Finding, failures
from planyard.core.units import format_bytes
from planyard.edge.console import Console

_OWNERS = 15
_INSTRUCTION = 60
_NAME = 60
_EVIDENCE = 6
_KINDS = {"project": "the project's own files", "image": "what is no file"}


def show_audit(audit: ImageAudit, console: Console) -> None:
    """Print the layers, the heaviest owners, and what is wrong."""
    console.title(f"{visible(audit.name, limit=_NAME) or 'image'} {audit.image}")
    wasted = sum(layer.wasted_bytes for layer in audit.layers)
    console.say(
        f"{format_bytes(audit.pull_bytes)} to pull, {format_bytes(audit.unpacked_bytes)} unpacked, "
        f"{len(audit.layers)} layers, {len(audit.packages)} packages"
        + (f"; {format_bytes(wasted)} hidden by later layers" if wasted else "")
    )
    console.say()
    _show_layers(audit.layers, console)
    console.say()
    _show_owners(audit.owners, console)
    console.say()
    _show_findings(audit.findings, console)
    known = len(audit.layers) - len(audit.read_layers)
    console.detail(f"{len(audit.read_layers)} layers read now, {known} known from before")


def _show_layers(layers: tuple[LayerAudit, ...], console: Console) -> None:
    rows = [
        (
            str(number),
            layer.digest[7:19],
            format_bytes(layer.pull_bytes),
            format_bytes(layer.unpacked_bytes),
            format_bytes(layer.wasted_bytes) if layer.wasted_bytes else "-",
            _owner_text(layer.owners[0].owner) if layer.owners else "-",
            _instruction(layer.created_by),
        )
        for number, layer in enumerate(layers, 1)
    ]
    header = ("layer", "digest", "pull", "unpacked", "hidden", "heaviest owner", "made by")
    console.table(header, rows)


def _show_owners(owners: tuple[OwnerSize, ...], console: Console) -> None:
    rows: list[tuple[str, ...]] = [
        (
            _owner_text(size.owner),
            size.owner.kind,
            format_bytes(size.pull_bytes),
            format_bytes(size.unpacked_bytes),
            str(size.files),
        )
        for size in owners[:_OWNERS]
    ]
    rest = owners[_OWNERS:]
    if rest:
        rows.append(
            (
                f"{len(rest)} more",
                "",
                format_bytes(sum(size.pull_bytes for size in rest)),
                format_bytes(sum(size.unpacked_bytes for size in rest)),
                str(sum(size.files for size in rest)),
            )
        )
    console.table(("owner", "kind", "pull", "unpacked", "files"), rows)


def _show_findings(findings: tuple[Finding, ...], console: Console) -> None:
    for finding in findings:
        mark = console.paint("✗ ", "31") if finding.severity == "fail" else "! "
        console.say(f"{mark}{visible(finding.message)} [{finding.rule}]")
        for each in finding.evidence[:_EVIDENCE]:
            console.detail(f"    {visible(each)}")
        if len(finding.evidence) > _EVIDENCE:
            console.detail(f"    and {len(finding.evidence) - _EVIDENCE} more (--json has all)")
    failed = len(failures(findings))
    if failed:
        console.say(f"{failed} findings, {len(findings) - failed} warnings")
    elif findings:
        console.good(f"no findings, {len(findings)} warnings")
    else:
        console.good("no findings")


def _owner_text(owner: Owner) -> str:
    if owner.kind in _KINDS:
        return _KINDS[owner.kind]
    return visible(f"{owner.name} {owner.version}".strip(), limit=_NAME)


def _instruction(text: str) -> str:
    shown = visible(" ".join(text.split())).removeprefix("/bin/sh -c ").removeprefix("#(nop) ")
    return shown if len(shown) <= _INSTRUCTION else shown[: _INSTRUCTION - 1] + "…"
