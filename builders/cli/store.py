"""The verbs that keep a store: store fsck, store gc."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from builders.cli.verbs import JsonOption, StoreOption, open_store, verb
from planyard.core.errors import EXIT_DONE, InputError, IntegrityError
from planyard.core.units import format_bytes, format_seconds
from planyard.edge.console import Console

if TYPE_CHECKING:
    from engines.keeping.checking import FsckReport
    from engines.keeping.gc import GcReport

store_app = typer.Typer(
    help="Keep a store: check it, collect its garbage, copy it.", no_args_is_help=True
)

SHORTEST_GRACE_SECONDS = 3600.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%")


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the application."""
    from builders.cli.copy import copy

    store_app.command("copy")(copy)
    app.add_typer(store_app, name="store")


@store_app.command("fsck")
@verb
def fsck(
    share: Annotated[
        str, typer.Option("--share", help="Of blobs and packs read only this part, like 10%.")
    ] = "100%",
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Which part; by default each day the next one."),
    ] = None,
    repair_from: Annotated[
        str | None,
        typer.Option("--repair-from", metavar="URL", help="Mend from another store, verified."),
    ] = None,
    remove_damaged: Annotated[
        bool,
        typer.Option(
            "--remove-damaged", help="Remove what is damaged (still): a build makes it anew."
        ),
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """Check a store: every object, or a share of it, and what names what.

    Ends with 10 when something is damaged or missing and was not mended.

    Examples: planyard store fsck --share 10%, or planyard store fsck --repair-from s3://b/backup
    """
    import msgspec

    from engines.keeping.checking import check_store
    from engines.keeping.repair import remove_damaged_objects, repair
    from engines.store.fsck import Slice

    console = Console(quiet=json, result=True)
    parts = parts_of_share(share)
    opened = open_store(store, root=Path.cwd())
    source = open_store(repair_from, root=Path.cwd()) if repair_from else None
    part = Slice(number=_today() if seed is None else seed, of=parts)
    with console.step(f"check {opened.url}") as step:
        report = check_store(opened, part=part, progress=step.update)
    if source and not report.is_sound:
        with console.step(f"repair from {source.url}") as step:
            report = repair(opened, report, source=source, progress=step.update)
    if remove_damaged:
        report = remove_damaged_objects(opened, report)
    if json:
        console.document(msgspec.json.encode(report).decode())
    else:
        _show_check(report, console)
    return EXIT_DONE if report.is_sound else IntegrityError.exit_code


@store_app.command("gc")
@verb
def gc(
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="Newest snapshots of each image name and GPU.")
    ] = 10,
    keep_history: Annotated[
        int, typer.Option("--keep-history", min=1, help="Records of each channel with images.")
    ] = 10,
    grace: Annotated[
        str, typer.Option("--grace", help="Nothing younger goes, like 12h or 7d; at least 1h.")
    ] = "7d",
    alone: Annotated[
        bool,
        typer.Option(
            "--alone",
            help="I promise that nobody else uses this store now: allows a shorter grace period.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be freed, and free nothing.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """Remove what no channel and none of the newest snapshots leads to any more.

    Safe beside builds that take less than the grace period.

    Examples: planyard store gc --dry-run, or planyard store gc --keep 5 --grace 2d
    """
    import msgspec

    from engines.keeping.gc import collect
    from engines.keeping.marking import Policy

    console = Console(quiet=json, result=True)
    grace_seconds = seconds_of_duration(grace)
    if grace_seconds < SHORTEST_GRACE_SECONDS and not alone:
        raise InputError(
            [f"--grace {grace}: at least 1h, so that nothing goes that is being written now"],
            mend="add --alone if nobody else uses this store while it is collected",
        )
    policy = Policy(snapshots=keep, channel_records=keep_history, grace_seconds=grace_seconds)
    opened = open_store(store, root=Path.cwd())
    with console.step(f"collect {opened.url}") as step:
        report = collect(opened, policy, dry_run=dry_run, progress=step.update)
    if json:
        console.document(msgspec.json.encode(report).decode())
    else:
        _show_collection(report, console)
    return EXIT_DONE


def seconds_of_duration(text: str) -> float:
    """`90s`, `30m`, `12h`, `7d`, `2w` in seconds; raises InputError for anything else."""
    match = _DURATION.fullmatch(text)
    if match:
        return float(int(match[1]) * _UNITS[match[2]])
    if text == "0":
        return 0.0
    raise InputError([f"--grace {text[:40]}: write a whole number and s, m, h, d or w, like 7d"])


def parts_of_share(text: str) -> int:
    """How many runs with `10%` cover everything: 10; raises InputError for anything else."""
    match = _SHARE.fullmatch(text)
    percent = float(match[1]) if match else 0.0
    if not 0.1 <= percent <= 100:
        raise InputError([f"--share {text[:40]}: write a part of the whole, from 0.1% to 100%"])
    return int(100 / percent + 1e-9)


def _today() -> int:
    import time

    return int(time.time() // 86_400)


def _show_check(report: FsckReport, console: Console) -> None:
    for each in report.problems:
        line = f"{each.object}: {each.problem}"
        (console.error if each.severity == "damage" else console.warn)(line)
        for broken in each.breaks:
            console.say(f"    breaks {broken}")
        if each.repair:
            console.say(f"    {each.repair}" + (f": {each.why_not}" if each.why_not else ""))
    part = f", part {report.part} of {report.parts}" if report.parts > 1 else ""
    read = f"{report.objects} objects, {format_bytes(report.read_bytes)}{part}"
    if report.temporary_files:
        console.detail(f"{report.temporary_files} temporary files of writers; gc removes old ones")
    if report.is_sound:
        console.good(f"sound: {read}")
    else:
        console.say(f"read {read}")
        console.say("mend:  planyard store fsck --repair-from URL, or --remove-damaged and build")


def _show_collection(report: GcReport, console: Console) -> None:
    would = "would free" if report.dry_run else "freed"
    console.title(f"{would} {format_bytes(report.freed_bytes)}")
    rows = [
        ("freed", area, str(each.objects), format_bytes(each.size_bytes))
        for area, each in report.freed.items()
    ]
    rows += [
        ("kept", why, str(each.objects), format_bytes(each.size_bytes))
        for why, each in report.kept.items()
    ]
    console.table(("", "what or why", "objects", "bytes"), rows)
    if report.dead_bytes:
        dead = format_bytes(report.dead_bytes)
        console.detail(f"{dead} of no use lie in {report.packs_with_dead_bytes} packs in use")
    console.detail(f"younger than {_grace(report.grace_seconds)}: kept, whatever it is")


def _grace(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:g} days" if days >= 1 else format_seconds(seconds)
