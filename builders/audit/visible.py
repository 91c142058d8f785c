"""Names from an image, shown so that they can do no harm: on a terminal, in JSON, in Markdown.

Whoever made an image chose its file names: a newline, an escape sequence, a `|` or a tag in one of
them must stay a character of that name, wherever it is shown.
"""

from __future__ import annotations

_AS_IT_IS = frozenset("/-+ ,()=%")


def visible(text: str, *, limit: int = 4096) -> str:
    """`text` with what cannot be printed written as an escape, and cut after `limit` characters.

    Half of a surrogate pair (a name that is no UTF-8) becomes an escape too, so that what comes
    out can always be encoded.
    """
    cut = text if len(text) <= limit else text[:limit] + "…"
    if cut.isprintable():
        return cut
    return "".join(each if each.isprintable() else _escaped(each) for each in cut)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def markdown_text(text: str, *, limit: int = 4096) -> str:
    """`text` for a line or a table cell of GitHub's Markdown, none of it markup.

    Whatever could mean something (`|`, backticks, `<`, `_`, `@`) becomes a numeric entity.
    """
    return "".join(
        each if each.isalnum() or each in _AS_IT_IS else f"&#{ord(each)};"
        for each in visible(text, limit=limit)
    )


def markdown_code(text: str, *, limit: int = 4096) -> str:
    """`text` in a code font. Not as a code span: in a table no fence keeps every `|` in.

    GitHub makes no mention of an `@name` within `<code>`.
    """
    return f"<code>{markdown_text(text, limit=limit)}</code>"
