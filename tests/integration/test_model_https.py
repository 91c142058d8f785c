"""Models over https against a real server, and what happens when things break off."""

from __future__ import annotations

import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builders.models import FetchedModel, fetch_model
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.core.matrix import Model, Source
from planyard.edge import fetch as edge_fetch
from planyard.edge import proc
from tests import onnx_models, servers
from tests.onnx_models import WEIGHTS, left_behind, visible

PLAIN = onnx_models.plain_model().SerializeToString()
EXTERNAL = onnx_models.external_model().SerializeToString()

Fetch = Callable[..., FetchedModel]


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    def call(model: Model, *, network: bool = True) -> FetchedModel:
        return fetch_model(
            "ocr",
            model,
            root=tmp_path,
            cache=tmp_path / "cache",
            network=network,
            report=lambda _line: None,
        )

    return call


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> servers.Authority:
    return servers.make_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def web(authority: servers.Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Web]:
    """An https server whose CA is trusted, and no proxy in between."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setattr(edge_fetch, "PAUSE_SECONDS", 0.01)
    with servers.https_server(authority, servers.Web()) as running:
        yield running


def test_https_with_weights_beside_and_the_query_kept(
    web: servers.Web, tmp_path: Path, fetch: Fetch
) -> None:
    web.files |= {"/m/a b.onnx": EXTERNAL, "/m/weights.bin": WEIGHTS}
    web.files["/m/a%20b.onnx"] = EXTERNAL
    source = Source(https=f"{web.url}/m/a%20b.onnx?signature=s")
    model = onnx_models.declared(EXTERNAL, source, external={"weights.bin": WEIGHTS})
    got = fetch(model)
    assert got.path.read_bytes() == EXTERNAL
    assert (got.folder / "weights.bin").read_bytes() == WEIGHTS
    assert [path for _, path, _ in web.asked] == [
        "/m/a%20b.onnx?signature=s",
        "/m/weights.bin?signature=s",
    ]
    web.asked.clear()
    assert fetch(model, network=False) == got
    assert web.asked == []
    assert left_behind(tmp_path / "cache") == []


def test_https_weights_are_not_asked_for_when_the_model_is_refused(
    web: servers.Web, fetch: Fetch
) -> None:
    data = onnx_models.external_model("../weights.bin").SerializeToString()
    web.files |= {"/m/a.onnx": data, "/weights.bin": WEIGHTS}
    with pytest.raises(InputError):
        fetch(onnx_models.declared(data, Source(https=f"{web.url}/m/a.onnx")))
    assert [path for _, path, _ in web.asked] == ["/m/a.onnx"]


def test_https_mismatch(web: servers.Web, tmp_path: Path, fetch: Fetch) -> None:
    web.files["/a.onnx"] = EXTERNAL
    with pytest.raises(IntegrityError, match=r"expected sha256:.*, found sha256:"):
        fetch(onnx_models.declared(PLAIN, Source(https=f"{web.url}/a.onnx")))
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_redirects_go_only_to_https(web: servers.Web, tmp_path: Path, fetch: Fetch) -> None:
    web.files["/a.onnx"] = PLAIN
    web.redirects |= {
        "/good": f"{web.url}/a.onnx",
        "/relative": "/a.onnx",
        "/plain": "http://127.0.0.1:1/a.onnx?key=secret",
        "/file": "file:///etc/passwd",
        "/loop": f"{web.url}/loop",
    }
    for path in ("/good", "/relative"):
        edge_fetch.download(f"{web.url}{path}", tmp_path / "got", limit_bytes=1 << 20)
        assert (tmp_path / "got").read_bytes() == PLAIN
        (tmp_path / "got").unlink()
    web.asked.clear()
    reasons = {"/plain": "not to https", "/file": "not allowed", "/loop": "infinite loop"}
    for path, reason in reasons.items():
        with pytest.raises(StoreError, match=reason) as caught:
            fetch(onnx_models.declared(PLAIN, Source(https=f"{web.url}{path}")))
        assert caught.value.exit_code == 8
        assert "secret" not in caught.value.message
    assert [path for _, path, _ in web.asked][:2] == ["/plain", "/file"]
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_an_unknown_authority_is_refused_at_once(
    web: servers.Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fetch: Fetch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(ssl.get_default_verify_paths().openssl_cafile))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    web.files["/a.onnx"] = PLAIN
    with pytest.raises(StoreError, match="unable to get local issuer certificate") as caught:
        fetch(onnx_models.declared(PLAIN, Source(https=f"{web.url}/a.onnx")))
    assert "SSL_CERT_FILE" in caught.value.mend
    assert web.asked == []


def test_errors_of_the_server(web: servers.Web, tmp_path: Path, fetch: Fetch) -> None:
    web.files["/a.onnx"] = PLAIN
    web.statuses["/a.onnx"] = [503, 429]
    assert fetch(onnx_models.declared(PLAIN, Source(https=f"{web.url}/a.onnx"))).path.exists()
    assert len(web.asked) == 3
    with pytest.raises(StoreError, match="answers 404") as caught:
        fetch(onnx_models.declared(EXTERNAL, Source(https=f"{web.url}/none.onnx?key=secret")))
    assert caught.value.mend
    assert "secret" not in caught.value.message
    web.statuses["/busy"] = [503] * 99
    with pytest.raises(StoreError, match="answers 503"):
        fetch(onnx_models.declared(EXTERNAL, Source(https=f"{web.url}/busy")))
    assert len([1 for _, path, _ in web.asked if path == "/busy"]) == edge_fetch.ATTEMPTS
    assert left_behind(tmp_path / "cache") == []


def test_no_server_at_all(web: servers.Web, tmp_path: Path, fetch: Fetch) -> None:
    [port] = servers.free_ports(1)
    with pytest.raises(StoreError, match=r"cannot be reached: .*refused") as caught:
        fetch(onnx_models.declared(PLAIN, Source(https=f"https://127.0.0.1:{port}/a.onnx")))
    assert caught.value.mend
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_a_broken_transfer_goes_on_where_it_stopped(web: servers.Web, fetch: Fetch) -> None:
    data = onnx_models.big_model(1 << 20)
    web.files["/a.onnx"] = data
    web.broken_after["/a.onnx"] = 400_000
    got = fetch(onnx_models.declared(data, Source(https=f"{web.url}/a.onnx")))
    assert got.path.read_bytes() == data
    assert [asked for *_, asked in web.asked] == ["", "bytes=400000-", "bytes=800000-"]


def test_a_server_without_ranges_sends_everything_again(
    web: servers.Web, tmp_path: Path, fetch: Fetch
) -> None:
    data = onnx_models.big_model(1 << 20)
    web.files["/a.onnx"] = data
    web.knows_ranges = False
    web.broken_after["/a.onnx"] = 400_000
    model = onnx_models.declared(data, Source(https=f"{web.url}/a.onnx"))
    with pytest.raises(StoreError, match="broke off after 400000 of"):
        fetch(model)
    assert visible(tmp_path / "cache") == []
    assert len(left_behind(tmp_path / "cache")) == 1
    web.broken_after.clear()
    assert fetch(model).path.read_bytes() == data
    assert left_behind(tmp_path / "cache") == []


def test_a_part_of_another_file_costs_one_more_download(
    web: servers.Web, tmp_path: Path, fetch: Fetch
) -> None:
    """The server's file changed between two calls, so the part does not fit any more."""
    data = onnx_models.big_model(1 << 20)
    web.files["/a.onnx"] = os.urandom(len(data))
    web.broken_after["/a.onnx"] = 100_000
    model = onnx_models.declared(data, Source(https=f"{web.url}/a.onnx"))
    with pytest.raises(StoreError):
        fetch(model)
    web.files["/a.onnx"] = data
    web.broken_after.clear()
    web.asked.clear()
    assert fetch(model).path.read_bytes() == data
    assert [asked for *_, asked in web.asked] == ["bytes=400000-", ""]


def test_a_part_longer_than_the_file_starts_again(web: servers.Web, tmp_path: Path) -> None:
    web.files["/a.onnx"] = PLAIN
    target = tmp_path / "part"
    for part in (PLAIN, PLAIN + b"more", PLAIN[:7]):
        target.write_bytes(part)
        edge_fetch.download(f"{web.url}/a.onnx", target, limit_bytes=1 << 20)
        assert target.read_bytes() == PLAIN


def test_size_limits_with_and_without_a_length(web: servers.Web, tmp_path: Path) -> None:
    web.files["/a.onnx"] = bytes(3 << 20)
    web.endless.add("/endless")
    for path in ("/a.onnx", "/endless"):
        with pytest.raises(StoreError, match=r"larger than 1\.0 MB"):
            edge_fetch.download(f"{web.url}{path}", tmp_path / "got", limit_bytes=10**6)
        assert (tmp_path / "got").stat().st_size == 0


def test_a_dripping_server_meets_the_deadline(web: servers.Web, tmp_path: Path) -> None:
    web.files["/a.onnx"] = bytes(64 << 20)
    web.slow.add("/a.onnx")
    with pytest.raises(StoreError, match="did not end in time"):
        edge_fetch.download(
            f"{web.url}/a.onnx", tmp_path / "got", limit_bytes=1 << 30, total_seconds=0.3
        )


def test_progress_ends_with_everything(web: servers.Web, tmp_path: Path) -> None:
    web.files["/a.onnx"] = bytes(1 << 20)
    seen: list[tuple[int, int | None]] = []
    edge_fetch.download(
        f"{web.url}/a.onnx",
        tmp_path / "got",
        limit_bytes=1 << 20,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (1 << 20, 1 << 20)
    assert seen == sorted(seen)


def fetch_in_a_process(tmp_path: Path, url: str, data: bytes) -> list[str]:
    """The arguments of a Python that fetches; prints the path at the end."""
    (tmp_path / "model.expected").write_bytes(data)
    code = """
import sys
from pathlib import Path
from builders.models import fetch_model
from planyard.core.matrix import Source
from tests import onnx_models
folder, url = Path(sys.argv[1]), sys.argv[2]
model = onnx_models.declared((folder / "model.expected").read_bytes(), Source(https=url))
got = fetch_model("ocr", model, root=folder, cache=folder / "cache", network=True, report=print)
print("path", got.path)
"""
    return [sys.executable, "-c", code, str(tmp_path), url]


def here() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def bytes_fetched(tmp_path: Path) -> int:
    return sum(one.stat().st_size for one in tmp_path.glob("cache/models/.work-*/parts/*"))


def test_a_killed_fetch_shows_nothing_and_the_next_goes_on(
    web: servers.Web, tmp_path: Path, fetch: Fetch
) -> None:
    data = onnx_models.big_model(8 << 20)
    web.files["/a.onnx"] = data
    web.slow.add("/a.onnx")
    started = proc.start(fetch_in_a_process(tmp_path, f"{web.url}/a.onnx", data), env=here())
    try:
        wait_until(lambda: bytes_fetched(tmp_path) > 1 << 20, "no byte came")
    finally:
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
    had = bytes_fetched(tmp_path)
    assert 1 << 20 < had < len(data)
    assert visible(tmp_path / "cache") == []
    web.slow.clear()
    web.asked.clear()
    got = fetch(onnx_models.declared(data, Source(https=f"{web.url}/a.onnx")))
    assert got.path.read_bytes() == data
    assert [asked for *_, asked in web.asked] == [f"bytes={had}-"]
    assert left_behind(tmp_path / "cache") == []


def test_ctrl_c_leaves_nothing(web: servers.Web, tmp_path: Path) -> None:
    data = onnx_models.big_model(8 << 20)
    web.files["/a.onnx"] = data
    web.slow.add("/a.onnx")
    started = proc.start(fetch_in_a_process(tmp_path, f"{web.url}/a.onnx", data), env=here())
    try:
        wait_until(lambda: bytes_fetched(tmp_path) > 1 << 20, "no byte came")
        os.kill(started.pid, signal.SIGINT)
        assert started.wait(timeout=60) != 0
    finally:
        proc.end_group(started)
    assert visible(tmp_path / "cache") == left_behind(tmp_path / "cache") == []


def test_two_processes_fetch_it_once(web: servers.Web, tmp_path: Path) -> None:
    data = onnx_models.big_model(2 << 20)
    web.files["/a.onnx"] = data
    web.slow.add("/a.onnx")
    args = fetch_in_a_process(tmp_path, f"{web.url}/a.onnx", data)
    both = [proc.start(args, env=here()) for _ in range(2)]
    said = [one.communicate(timeout=120)[0].decode() for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert len({text.splitlines()[-1] for text in said}) == 1
    assert len(web.asked) == 1
    assert len(visible(tmp_path / "cache")) == 1
    assert left_behind(tmp_path / "cache") == []
