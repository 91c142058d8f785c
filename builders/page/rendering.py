"""The templates, and what keeps a page safe: everything is escaped, and only our script may run.

Style and script stand in the page itself, allowed by their hash, so that it works from file://.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import planyard
from builders.page.details import Details, line_anchor
from builders.page.drawing import change_percent, format_ms
from builders.page.load_scale import format_rate
from builders.page.logs import visible
from builders.page.overview import Overview, sparkline, why
from planyard.core.digest import short
from planyard.core.units import format_bytes, format_seconds

FOLDER = Path(__file__).parent / "templates"


def index_page(page: Overview, *, figures: dict[str, Any], cells: str) -> str:
    """The first page; `cells` is the folder of the cells' pages."""
    return _render(
        "index.html.j2",
        assets=_assets("base.css", "index.css", "copy.js", "index.js"),
        page=page,
        cells=cells,
        figures=embedded(figures),
    )


def cell_page(shown: Details, page: Overview) -> str:
    """The page of one cell; it says nothing of when it was made, so that it stays the same."""
    return _render(
        "cell.html.j2",
        assets=_assets("base.css", "load.css", "copy.js"),
        shown=shown,
        cell=shown.cell,
        title=page.title,
    )


def _render(name: str, *, assets: tuple[str, str], **values: Any) -> str:
    style, script = assets
    template = _environment().get_template(name)
    return template.render(
        csp=policy(style=style, script=script),
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        version=planyard.__version__,
        **values,
    )


@cache
def _environment() -> Environment:
    """The templates, compiled once."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    made.filters |= {
        "size": format_bytes,
        "ms": format_ms,
        "rate": format_rate,
        "seconds": format_seconds,
        "short": short,
        "when": _when,
        "slower": change_percent,
        "spark": sparkline,
        "why": why,
        "anchor": line_anchor,
        "state": _state_class,
    }
    return made


def policy(*, style: str, script: str) -> str:
    """The content security policy: nothing is loaded, and only these very texts are obeyed."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _assets(*names: str) -> tuple[str, str]:
    """Style and script as they stand in the page: the hash is of every byte between the tags."""
    texts = {name: (FOLDER / name).read_text(encoding="utf-8") for name in names}
    style = "".join(text for name, text in texts.items() if name.endswith(".css"))
    return style, "".join(text for name, text in texts.items() if name.endswith(".js"))


def embedded(document: object) -> Markup:
    """JSON that can stand in a script element: no `<`, `&`, or line separator is left in it."""
    text = msgspec.json.encode(_all_shown(document)).decode()
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - it cannot end its element any more


def _finalized(value: Any) -> Any:
    """Text from the store, with what cannot be seen written out; the rest as it is."""
    return _shown(value) if type(value) is str else value


def _shown(text: str) -> str:
    return text if text.isprintable() else "\n".join(map(visible, text.split("\n")))


def _all_shown(value: Any) -> Any:
    """A JSON value with what cannot be seen written out in every text."""
    if isinstance(value, str):
        return _shown(value)
    if isinstance(value, dict):
        return {_shown(name): _all_shown(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_all_shown(each) for each in value]
    return value


def _when(text: str) -> str:
    """`2026-11-21 15:00` of a time in UTC."""
    return text[:16].replace("T", " ")


def _state_class(state: str) -> str:
    return state.replace(" ", "-")
