"""A comparison of two images for people: on a terminal, and as Markdown for a pull request.

What an image calls its files and packages is never markup: see visible.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from builders.audit.diff import FILES
from builders.audit.visible import markdown_code, markdown_text
from planyard.core.contents import ImageDiff, Movement, PackageChange
from planyard.core.units import format_bytes
from planyard.edge.console import Console

_WORTH_NAMING = 0.25
"""An owner with this share of the difference is named in the first sentence."""
_NAMED = 3
_NAME = 200
_LIST_LIMIT = 12_000
"""Characters of a name, and of one list, in Markdown: a comment on GitHub has 65,536 at most."""
_MARKS = {"came": "+", "went": "-", "other": "~"}
_WORDS = {"came": "came:", "went": "went:", "other": "changed:"}
"""For Markdown, where a mark at the beginning of a line means a list."""
_HEADER = ("", "before", "after", "difference", "to pull")


def is_same(diff: ImageDiff) -> bool:
    """Whether nothing differs, but perhaps the name."""
    return (
        (diff.before_pull_bytes, diff.before_unpacked_bytes)
        == (diff.after_pull_bytes, diff.after_unpacked_bytes)
        and not (diff.packages or diff.movements or diff.config)
        and not _touched(diff)
    )


def show_diff(diff: ImageDiff, console: Console) -> None:
    """Sizes and why first, then movements, packages, files and configuration."""
    console.say(f"before  {diff.before}")
    console.say(f"after   {diff.after}")
    if is_same(diff):
        console.good("no difference")
        return
    console.say()
    console.title(headline(diff))
    rows = [(title, *_sizes(*sizes), "") for title, *sizes in _totals(diff)]
    rows += [
        (each.what, *_sizes(each.before_bytes, each.after_bytes), _pull(each))
        for each in diff.movements
    ]
    console.table(_HEADER, rows)
    if diff.packages:
        console.say()
        console.title(_packages_title(diff))
        for change in diff.packages:
            console.say(f"  {_MARKS[_became(change)]} {_package_line(change)}")
    if _touched(diff):
        console.say()
        console.title(_files_title(diff))
        for file in diff.files:
            console.say(f"  {_sizes(file.before_bytes, file.after_bytes)[2]:>10}  {file.what}")
    if diff.config:
        console.say()
        console.title("configuration")
        for line in diff.config:
            console.say(f"  - {line}")


def headline(diff: ImageDiff) -> str:
    """`1.8 MB more to pull, 4.1 MB more unpacked; most of it: numpy 2.3.0 → 2.4.6 (wheel)`."""
    pull = diff.after_pull_bytes - diff.before_pull_bytes
    unpacked = diff.after_unpacked_bytes - diff.before_unpacked_bytes
    sizes = f"{_more(pull)} to pull, {_more(unpacked)} unpacked"
    named = _causes(diff, unpacked or pull)
    return f"{sizes}; most of it: {', '.join(named)}" if named else sizes


def _causes(diff: ImageDiff, total: int) -> list[str]:
    """The owners that moved the size in the direction it went."""
    found = [
        (each.what, (each.after_bytes or 0) - (each.before_bytes or 0)) for each in diff.movements
    ]
    return [
        f"{what} {_signed(size)}"
        for what, size in found
        if size * total > 0 and abs(size) >= _WORTH_NAMING * abs(total)
    ][:_NAMED]


# Markdown


def diff_markdown(diff: ImageDiff) -> str:
    """The comparison as a comment on a pull request; lists are folded away, long ones cut."""
    if is_same(diff):
        return f"### No difference\n\n{_sides(diff)}\n"
    lines = [f"### {markdown_text(headline(diff), limit=_NAME)}", "", _sides(diff), ""]
    lines += [_row(_HEADER), "|---|--:|--:|--:|--:|"]
    lines += [_row([f"**{title}**", *_sizes(*sizes), ""]) for title, *sizes in _totals(diff)]
    lines += [
        _row(
            [
                markdown_text(each.what, limit=_NAME),
                *_sizes(each.before_bytes, each.after_bytes),
                _pull(each),
            ]
        )
        for each in diff.movements
    ]
    if diff.packages:
        packages = [
            f"{_WORDS[_became(each)]} {markdown_text(_package_line(each), limit=_NAME)}"
            for each in diff.packages
        ]
        lines += _folded(_packages_title(diff), packages)
    if _touched(diff):
        lines += _folded(_files_title(diff), [_file_line(each) for each in diff.files])
    if diff.config:
        config = [markdown_text(line, limit=2 * _NAME) for line in diff.config]
        lines += _folded("configuration", config)
    return "\n".join([*lines, ""])


def _sides(diff: ImageDiff) -> str:
    before, after = (markdown_code(each, limit=_NAME) for each in (diff.before, diff.after))
    return f"{before} → {after}"


def _file_line(file: Movement) -> str:
    difference = _sizes(file.before_bytes, file.after_bytes)[2]
    return f"{difference} {markdown_code(file.what, limit=_NAME)}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _folded(title: str, found: Sequence[str]) -> list[str]:
    """A list behind its title, cut where it gets long."""
    listed, length = [], 0
    for line in found:
        length += len(line)
        if length > _LIST_LIMIT:
            break
        listed.append(f"- {line}")
    if rest := len(found) - len(listed):
        listed.append(f"- and {rest:,} more")
    summary = f"<summary>{markdown_text(title)}</summary>"
    return ["", "<details>", summary, "", *listed, "", "</details>"]


# Words for both


def _touched(diff: ImageDiff) -> int:
    return diff.files_added + diff.files_removed + diff.files_changed


def _totals(diff: ImageDiff) -> list[tuple[str, int, int]]:
    return [
        ("pull", diff.before_pull_bytes, diff.after_pull_bytes),
        ("unpacked", diff.before_unpacked_bytes, diff.after_unpacked_bytes),
    ]


def _sizes(before: int | None, after: int | None) -> tuple[str, str, str]:
    """Before, after and difference; `-` where it is not there."""
    shown = ["-" if size is None else format_bytes(size) for size in (before, after)]
    return shown[0], shown[1], _signed((after or 0) - (before or 0))


def _pull(movement: Movement) -> str:
    return _signed((movement.after_pull_bytes or 0) - (movement.before_pull_bytes or 0))


def _signed(size_bytes: int) -> str:
    sign = "+" if size_bytes > 0 else "-" if size_bytes else "±"
    return f"{sign}{format_bytes(abs(size_bytes))}"


def _more(size_bytes: int) -> str:
    if not size_bytes:
        return "as much"
    return f"{format_bytes(abs(size_bytes))} {'more' if size_bytes > 0 else 'less'}"


def _package_line(change: PackageChange) -> str:
    """`numpy 2.3 → 2.4 (wheel)`, or the one version that there is."""
    versions = " → ".join(each for each in (change.before, change.after) if each is not None)
    kind = {"debian": "Debian package", "wheel": "wheel"}.get(change.kind, change.kind)
    return f"{change.name} {versions} ({kind})"


def _became(change: PackageChange) -> str:
    if change.before is None:
        return "came"
    return "went" if change.after is None else "other"


def _packages_title(diff: ImageDiff) -> str:
    counted = Counter(map(_became, diff.packages))
    words = {"came": "came", "went": "went", "other": "with another version"}
    return f"packages: {_counted((counted[key], said) for key, said in words.items())}"


def _files_title(diff: ImageDiff) -> str:
    counts = [
        (diff.files_added, "came"),
        (diff.files_removed, "went"),
        (diff.files_changed, "changed"),
    ]
    cut = f"; the {FILES} that weigh most" if len(diff.files) == FILES else ""
    return f"files: {_counted(counts)}{cut}"


def _counted(counts: Iterable[tuple[int, str]]) -> str:
    return ", ".join(f"{count:,} {words}" for count, words in counts if count)
