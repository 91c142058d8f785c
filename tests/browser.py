"""Debian's Chromium, driven by Playwright, and axe-core from npm, which judges accessibility.

Playwright's own browsers are never downloaded. axe-core is packed by npm once, kept in the user's
cache, and compared with its integrity hash every time.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planyard.edge import files

AXE = "axe-core-4.14.1"
AXE_INTEGRITY = (
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu"
    "5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)
# Without these Chromium asks hosts of the outside as soon as it starts.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@functools.cache
def why_no_chromium() -> str:
    """Why pages cannot be opened here; empty when they can."""
    if not importlib.util.find_spec("playwright"):
        return "playwright is not installed (dependency group test)"
    if not find_chromium():
        return "chromium is not installed (apt-get install chromium)"
    try:
        axe_source()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"axe-core cannot be had: {error}"
    return ""


@functools.cache
def find_chromium() -> str | None:
    """Chromium on the PATH; where CI runs as root on Debian, installed now."""
    found = shutil.which("chromium")
    if found or not os.environ.get("CI") or os.geteuid() != 0 or not shutil.which("apt-get"):
        return found
    install = ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", "chromium"]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (install, ["apt-get", "update", "--quiet"], install):
        ended = subprocess.run(command, capture_output=True, check=False, timeout=600, env=quiet)
        if command == install and ended.returncode == 0:
            break
    return shutil.which("chromium")


@functools.cache
def axe_source() -> str:
    """The text of axe.min.js. Raises OSError or ValueError where it cannot be had as pinned."""
    kept = files.user_cache() / "tools" / f"{AXE}.tgz"
    if not kept.is_file() or integrity(kept.read_bytes()) != AXE_INTEGRITY:
        files.write_bytes(kept, _packed())
    with tarfile.open(fileobj=io.BytesIO(kept.read_bytes())) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def integrity(data: bytes) -> str:
    """npm's integrity hash."""
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


def _packed() -> bytes:
    """axe-core's package as npm serves it, verified."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    name, _, version = AXE.rpartition("-")
    with tempfile.TemporaryDirectory() as folder:
        pack = [npm, "pack", f"{name}@{version}", "--silent", "--ignore-scripts"]
        subprocess.run(pack, cwd=folder, check=True, capture_output=True, timeout=120)
        data = (Path(folder) / f"{AXE}.tgz").read_bytes()
    if integrity(data) != AXE_INTEGRITY:
        raise ValueError(f"{AXE} is not what was pinned: {integrity(data)}")
    return data


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A Playwright browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=list(ARGUMENTS), timeout=60_000
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(browser: Any, file: Path, **context: Any) -> Iterator[Any]:
    """A page from disk. Fails when it logs or raises anything, or asks for anything from afar."""
    settings = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | context
    opened = browser.new_context(**settings)
    page = opened.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"a dialog: {dialog.message}"))
    page.on("request", lambda asked: asked.url.startswith("file:") or said.append(asked.url))
    page.goto(file.as_uri())
    yield page
    opened.close()
    assert said == []


def violations(page: Any, *rules: str) -> list[str]:
    """What axe-core finds wrong with the page as it is, with the first place of each.

    By all rules, or by these alone.
    """
    page.evaluate(axe_source())
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = page.evaluate("(options) => axe.run(document, options)", options)
    return [
        f"{each['id']}: {each['help']} ({len(each['nodes'])}): {each['nodes'][0]['html'][:200]}"
        for each in found["violations"]
    ]
