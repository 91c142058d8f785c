"""The verb log-check: the log gate on files, standard input, or files that still grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from builders.cli.verbs import JsonOption, verb
from planyard.core.errors import EXIT_FINDINGS, InputError
from planyard.edge.console import Console

if TYPE_CHECKING:
    from builders.schemas import LogFinding
    from planyard.edge.follow import GrowingFile
    from smoke.gates.logs import LogHit, LogScanner
    from smoke.rules import RuleSet


def add_to(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("log-check")(log_check)


@verb
def log_check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Log files, also gzip; standard input when none is given."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what is appended, also after rotation.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --follow: end after this time.")
    ] = None,
    until_exit: Annotated[
        int | None, typer.Option(metavar="PID", help="With --follow: end when the process ends.")
    ] = None,
    exit_on_finding: Annotated[
        bool, typer.Option("--exit-on-finding", help="With --follow: end at the first loss.")
    ] = False,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML with [[allow]] entries of your own.")
    ] = None,
    stage: Annotated[
        Literal["smoke", "build", "serve"], typer.Option(help="Whose allow entries hold.")
    ] = "serve",
    process: Annotated[
        str, typer.Option(metavar="NAME", help="The program that wrote the log, for allow entries.")
    ] = "",
    json: JsonOption = False,
) -> int:
    """Find the lines in a log that say a GPU workload fell back to something slower.

    Ends with 4 when a loss was found. With --follow it goes on until --timeout, the end of the
    process, or Ctrl-C (130).

    Examples: planyard log-check server.log*, or docker logs app 2>&1 | planyard log-check --json,
    or planyard log-check --follow server.log --until-exit 4711
    """
    import msgspec

    from builders.schemas import LogDocument

    if not follow and (timeout is not None or until_exit is not None or exit_on_finding):
        raise InputError(["--timeout, --until-exit and --exit-on-finding need --follow"])
    report = _Report(Console(quiet=json), lines=not json)
    loaded = _rules(rules, stage=stage, process=process)
    if follow:
        ends = _ends(timeout_seconds=timeout, until_exit=until_exit)
        _follow(files or [], loaded, report, ends=ends, stop=exit_on_finding)
    else:
        _read(files or [], loaded, report)
    if json:
        report.console.document(
            msgspec.json.encode(LogDocument(findings=tuple(report.found))).decode()
        )
    elif not report.found:
        report.console.detail("no words of loss; a clean log alone proves nothing")
    return EXIT_FINDINGS if report.failed else 0


class _Report:
    """What was found so far; each finding is printed as it comes, unless a document is wanted."""

    def __init__(self, console: Console, *, lines: bool) -> None:
        self.console = console
        self.found: list[LogFinding] = []
        self._lines = lines
        self._explained: set[str] = set()

    @property
    def failed(self) -> bool:
        return any(each.severity == "fail" for each in self.found)

    def add(self, name: str, hits: list[LogHit]) -> None:
        import msgspec

        from builders.schemas import LogFinding

        for hit in hits:
            self.found.append(LogFinding(file=name, **msgspec.structs.asdict(hit)))
            if self._lines:
                self.console.document(f"{name}:{hit.line}: {hit.severity}: {hit.text} [{hit.rule}]")
                if hit.rule not in self._explained:
                    self._explained.add(hit.rule)
                    self.console.detail(f"    {hit.why}")


def _rules(
    file: Path | None, *, stage: Literal["smoke", "build", "serve"], process: str
) -> RuleSet:
    from smoke.allow_file import with_allow_file
    from smoke.rules import load_rules

    rules = load_rules() if file is None else with_allow_file(load_rules(), file)
    return rules.for_scope(stage=stage, process=process)


def _read(files: list[Path], rules: RuleSet, report: _Report) -> None:
    from planyard.edge.log_files import in_order_of_writing, pieces_of, pieces_of_stdin
    from smoke.gates.logs import LogScanner

    sources = [(str(file), pieces_of(file)) for file in in_order_of_writing(files)]
    for name, pieces in sources or [("stdin", pieces_of_stdin())]:
        scanner = LogScanner(rules)
        for piece in pieces:
            report.add(name, scanner.feed(piece))
        report.add(name, scanner.close())


def _ends(*, timeout_seconds: float | None, until_exit: int | None) -> Iterator[None]:
    from planyard.edge.follow import ticks

    if timeout_seconds is not None and timeout_seconds < 0:
        raise InputError([f"--timeout {timeout_seconds}: give seconds, 0 or more"])
    try:
        yield from ticks(timeout_seconds=timeout_seconds, until_exit=until_exit)
    except (OSError, OverflowError):
        raise InputError([f"--until-exit {until_exit}: there is no such process"]) from None


def _follow(
    files: list[Path], rules: RuleSet, report: _Report, *, ends: Iterator[None], stop: bool
) -> None:
    """Read what is new at each tick. A line is judged when it is whole, the last one at the end."""
    from planyard.edge.follow import GrowingFile
    from smoke.gates.logs import LogScanner

    if not files:
        raise InputError(["--follow needs a file; standard input is followed without it"])
    rules.match(b"compiled now, not at the first line")
    rules.prefilter.regions(b"", 0)

    def scanner() -> LogScanner:
        return LogScanner(rules)

    followed = [(GrowingFile(file), [scanner()]) for file in files]
    for _ in ends:
        for file, scanners in followed:
            _take(file, scanners, report, scanner=scanner)
            if stop and report.failed:
                return
    for file, (last,) in followed:
        report.add(str(file.path), last.close())


def _take(
    file: GrowingFile,
    scanners: list[LogScanner],
    report: _Report,
    *,
    scanner: Callable[[], LogScanner],
) -> None:
    try:
        for piece in file.read():
            if piece is None:
                report.add(str(file.path), scanners[0].close())
                scanners[0] = scanner()
            else:
                report.add(str(file.path), scanners[0].feed(piece))
    except OSError as error:
        raise InputError([f"{file.path}: cannot be read: {error.strerror}"]) from error
