"""What a download says and refuses before any server is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.model_sources import progress_lines
from planyard.core.errors import StoreError
from planyard.edge import fetch as edge_fetch


@pytest.mark.parametrize(
    "url",
    ["http://localhost/a", "file:///etc/passwd", "https:///a", "https://[::1/a", "https://a:b/c"],
)
def test_only_https_urls(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not an https URL"):
        edge_fetch.download(url, tmp_path / "got", limit_bytes=1)


def test_a_shown_url_has_no_secrets() -> None:
    url = "https://user:word@host:8443/a/b.onnx?signature=secret#part"
    assert edge_fetch.public_url(url) == "https://host:8443/a/b.onnx"


def test_progress_is_a_line_for_each_tenth() -> None:
    lines: list[str] = []
    progress = progress_lines("weights.bin", lines.append)
    for done in range(0, 2_000_001, 1000):
        progress(done, 2_000_000)
    assert len(lines) == 10
    assert lines[-1] == "weights.bin: 2.0 MB of 2.0 MB"
    lines.clear()
    progress = progress_lines("weights.bin", lines.append)
    for done in range(0, (1 << 30) + 1, 1 << 20):
        progress(done, None)
    assert lines == [
        f"weights.bin: {size}" for size in ("268.4 MB", "536.9 MB", "805.3 MB", "1.1 GB")
    ]
