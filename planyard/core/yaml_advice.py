"""What to do about a syntax error: the parser says what it met, this says what to write instead.

The left side is part of a message of libyaml (scanner.c, parser.c) or of PyYAML's own parser.
"""

from __future__ import annotations

_ADVICE = (
    ("cannot start any token", "put the value in quotes"),
    ("mapping values are not allowed", "check the indentation; quote a value that contains ': '"),
    ("could not find expected ':'", "end the key with a colon and a space, and quote long text"),
    ("expected ',' or ']'", "close the list with ], and part its items with commas"),
    ("expected ',' or '}'", "close the mapping with }, and part its entries with commas"),
    ("unexpected end of stream", "close the quote that is open here"),
    ("unexpected document indicator", "close the quote before --- or ..."),
    ("did not find expected key", "start every key of a mapping in the same column"),
    ("did not find expected '-' indicator", "start every item of a list in the same column"),
    ("expected <block end>", "start every key or item in the same column"),
    ("did not find expected node content", "write a value here, or take the comma away"),
    ("expected the node content", "write a value here, or take the comma away"),
    ("block sequence entries are not allowed", "start a list in a line of its own"),
    ("unknown escape character", r"write \\ for a backslash, or use single quotes"),
    ("hexdecimal number", r"write \\ for a backslash, or use single quotes"),
    ("escape", r"write \\ for a backslash, or use single quotes"),
    ("alphabetic or numeric", "put a value that begins with & or * in quotes"),
    ("tag", "put a value that begins with ! in quotes"),
    ("directive", "remove the line that begins with %"),
    ("document start", "check the indentation: the document has ended before this"),
    ("block scalar", "after | or > write the text in the next lines, indented"),
)


def advice_for(problem: str, *, context: str = "", at: str = "") -> str:
    """The advice for a parser's message, at the character `at`; a general one for the rest."""
    if at == "\t":
        return "indent with spaces, not with tabs"
    for part, advice in _ADVICE:
        if part in problem or part in context:
            return advice
    return "check the indentation and the quotes here"
