"""The registry client against servers that break, lie, lead away and never end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, StoreError
from planyard.core.registry_address import parse_address
from planyard.edge import registry as edge_registry
from planyard.edge.network import Network, Zone, may_lead, zone_of
from planyard.edge.registry_http import Answer, Connections
from tests.scripted_registry import Asked, Reply, Scripted, scripted_registry

DATA = bytes(range(256)) * 40
DIGEST = digest_of_bytes(DATA)


def read(server: Scripted, start: int = 0, stop: int = len(DATA)) -> bytes:
    return b"".join(server.client().open_blob(DIGEST, start=start, stop=stop))


def in_turn(*replies: Reply) -> Iterator[Reply]:
    yield from replies
    while True:
        yield replies[-1]


def ranged(asked: Asked, *, cut_after: int | None = None) -> Reply:
    """DATA as a server that knows ranges sends it."""
    first, last = (int(each) for each in asked.headers["range"][6:].split("-"))
    last = min(last, len(DATA) - 1)
    headers = {"Content-Range": f"bytes {first}-{last}/{len(DATA)}"}
    return Reply(status=206, headers=headers, body=DATA[first : last + 1], cut_after=cut_after)


# Addresses


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("oci://ghcr.io/team/store", "https://ghcr.io/v2/team/store"),
        ("oci://registry.example:5000/a", "https://registry.example:5000/v2/a"),
        ("oci://localhost:5000/a/b-c/d_e", "http://localhost:5000/v2/a/b-c/d_e"),
        ("oci://127.0.0.1/a", "http://127.0.0.1/v2/a"),
        ("oci://[::1]:5000/a", "http://[::1]:5000/v2/a"),
        ("oci+http://registry.example/a", "http://registry.example/v2/a"),
        ("oci://docker.io/team/store", "https://registry-1.docker.io/v2/team/store"),
    ],
)
def test_an_address_is_read(url: str, api: str) -> None:
    assert parse_address(url).url == api


@pytest.mark.parametrize(
    "url",
    [
        "oci://",
        "oci://host",
        "oci://host/",
        "oci:///name",
        "oci://host/Name",
        "oci://host/name:tag",
        "oci://host/name@sha256:abc",
        "oci://host/../name",
        "oci://host/a//b",
        "oci://host:0/name",
        "oci://host:99999/name",
        "oci://user:word@host/name",
        "oci://127.0.0.1.evil.example@host/name",
        "https://host/name",
        "oci://host/" + "a" * 256,
        "oci://host/name?x=y",
        "oci://ho st/name",
        "oci://host/name\n",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="not the address of a repository") as error:
        parse_address(url)
    assert "oci://host[:port]/name" in error.value.mend


def test_a_name_that_only_starts_like_this_machine_is_spoken_to_with_tls() -> None:
    assert parse_address("oci://localhost.evil.example/a").url.startswith("https://")
    assert parse_address("oci://127.0.0.1.evil.example/a").url.startswith("https://")


# Zones


@pytest.mark.parametrize(
    ("address", "zone"),
    [
        ("8.8.8.8", Zone.PUBLIC),
        ("2606:4700::1111", Zone.PUBLIC),
        ("10.1.2.3", Zone.PRIVATE),
        ("100.64.0.1", Zone.PRIVATE),
        ("fd00::1", Zone.PRIVATE),
        ("169.254.169.254", Zone.LINK_LOCAL),
        ("fe80::1%eth0", Zone.LINK_LOCAL),
        ("127.8.8.8", Zone.LOOPBACK),
        ("::1", Zone.LOOPBACK),
        ("::ffff:127.0.0.1", Zone.LOOPBACK),
        ("::ffff:169.254.169.254", Zone.LINK_LOCAL),
        ("64:ff9b::a9fe:a9fe", Zone.LINK_LOCAL),
        ("2002:7f00:1::", Zone.LOOPBACK),
        ("0.0.0.0", Zone.NOWHERE),
        ("0.1.2.3", Zone.NOWHERE),
        ("::", Zone.NOWHERE),
        ("224.0.0.1", Zone.NOWHERE),
        ("255.255.255.255", Zone.NOWHERE),
    ],
)
def test_where_an_address_lies(address: str, zone: Zone) -> None:
    assert zone_of(address) is zone


def test_who_may_lead_where() -> None:
    allowed = {(a.value, b.value) for a in Zone for b in Zone if may_lead(a, b)}
    outwards = {(each.value, "public") for each in Zone if each is not Zone.NOWHERE}
    same = {("private", "private"), ("link-local", "link-local"), ("loopback", "loopback")}
    assert allowed == outwards | same | {("loopback", "private")}


# Redirects


@pytest.mark.parametrize("host", ["inside.test", "127.0.0.2", "127.0.0.3"])
def test_a_registry_on_the_internet_does_not_lead_here(host: str) -> None:
    def script(asked: Asked) -> Reply:
        return Reply(status=307, headers={"Location": server.url(host)})

    with scripted_registry(script) as server:
        with pytest.raises(StoreError, match=f"leads to {host} .*a loopback address"):
            read(server)
        assert [each.host for each in server.asked] == ["registry.test"]


def test_the_second_hop_is_judged_too() -> None:
    def script(asked: Asked) -> Reply:
        host = "token.test" if asked.host == "registry.test" else "inside.test"
        return Reply(status=302, headers={"Location": server.url(host)})

    with scripted_registry(script) as server:
        with pytest.raises(StoreError, match=r"leads to inside\.test"):
            read(server)
        assert {each.host for each in server.asked} == {"registry.test", "token.test"}


def test_a_registry_here_may_lead_here() -> None:
    def script(asked: Asked) -> Reply:
        if asked.host == "inside.test":
            return Reply(status=307, headers={"Location": server.url("127.0.0.3")})
        return Reply(body=DATA)

    with scripted_registry(script) as server:
        pieces = server.client("inside.test").open_blob(DIGEST, start=0, stop=len(DATA))
        assert b"".join(pieces) == DATA


def test_redirects_end() -> None:
    def script(asked: Asked) -> Reply:
        return Reply(status=302, headers={"Location": asked.path + "x"})

    with scripted_registry(script) as server:
        with pytest.raises(StoreError, match="redirects more than 5 times"):
            read(server)
        assert len(server.asked) == 6


def test_a_write_is_not_redirected() -> None:
    def script(asked: Asked) -> Reply:
        return Reply(status=307, headers={"Location": server.url("token.test")})

    with scripted_registry(script) as server:
        with pytest.raises(StoreError, match="redirects a PUT"):
            server.client().put_manifest("tag", b"{}", media_type="x/y")
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "location", ["http://other.example/x", "ftp://a/b", "https://:5/x", "file:/x"]
)
def test_https_leads_to_https_only(location: str) -> None:
    connections = Connections("https://registry.example/v2/a", Network())
    response = urllib3.HTTPResponse(status=302, headers={"Location": location})
    with pytest.raises(StoreError, match=r"no web address|not https"):
        connections.checked_location(Answer(response, "https://registry.example/v2/a/b"))


def test_a_relative_location_stays() -> None:
    connections = Connections("https://registry.example/v2/a", Network())
    response = urllib3.HTTPResponse(status=202, headers={"Location": "/v2/a/blobs/uploads/1?s=2"})
    found = connections.checked_location(Answer(response, "https://registry.example/v2/a/b"))
    assert found == "https://registry.example/v2/a/blobs/uploads/1?s=2"


# Credentials


def log_in(server: Scripted, folder: Path, entry: object = None) -> None:
    entry = entry or {"auth": "dXNlcjp3b3Jk"}  # user:word
    config = {"auths": {f"registry.test:{server.port}": entry}}
    (folder / "config.json").write_text(json.dumps(config))
    server.environment["DOCKER_CONFIG"] = str(folder)


def test_basic_credentials_stay_with_the_registry(tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        if asked.host == "token.test":
            return Reply(status=302, headers={"Location": server.url("registry.test", "/back")})
        if asked.path == "/back":
            return Reply(body=DATA)
        if "authorization" not in asked.headers:
            return Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        return Reply(status=307, headers={"Location": server.url("token.test")})

    with scripted_registry(script) as server:
        log_in(server, tmp_path)
        assert read(server) == DATA
        sent = [(each.host, each.path, each.headers.get("authorization")) for each in server.asked]
    blob = f"/v2/team/store/blobs/{DIGEST}"
    assert sent == [
        ("registry.test", blob, None),
        ("registry.test", blob, "Basic dXNlcjp3b3Jk"),
        ("token.test", "/elsewhere", None),
        ("registry.test", "/back", None),
    ]


def test_an_upload_elsewhere_goes_without_credentials(tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        if asked.host == "token.test":
            return Reply(status=201)
        if "authorization" not in asked.headers:
            return Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        return Reply(status=202, headers={"Location": server.url("token.test", "/up?state=1")})

    with scripted_registry(script) as server:
        log_in(server, tmp_path)
        server.client().upload_blob(DIGEST, size_bytes=len(DATA), body=DATA)
        (sent,) = server.seen("PUT")
    assert "authorization" not in sent.headers
    assert sent.query == {"state": "1", "digest": DIGEST}
    assert sent.body == DATA


def test_an_upload_is_not_led_inside() -> None:
    def script(asked: Asked) -> Reply:
        return Reply(status=202, headers={"Location": server.url("inside.test")})

    with scripted_registry(script) as server:
        with pytest.raises(StoreError, match=r"leads to inside\.test"):
            server.client().upload_blob(DIGEST, size_bytes=len(DATA), body=DATA)
        assert {each.host for each in server.asked} == {"registry.test"}


def test_somebody_elses_challenge_is_not_answered(tmp_path: Path) -> None:
    """A server the registry led to asks for a password."""

    def script(asked: Asked) -> Reply:
        if asked.host == "token.test":
            return Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        return Reply(status=307, headers={"Location": server.url("token.test")})

    with scripted_registry(script) as server:
        log_in(server, tmp_path)
        with pytest.raises(StoreError, match="answers 401"):
            read(server)
        assert not any("authorization" in each.headers for each in server.asked)


def bearer(realm: str) -> dict[str, str]:
    scope = "repository:team/store:pull"
    return {"WWW-Authenticate": f'Bearer realm="{realm}",service="s",scope="{scope}"'}


def test_a_token_is_fetched_once_and_again_when_it_expires(tmp_path: Path) -> None:
    tokens = iter(["first", "second", "third"])
    good = {"Bearer first"}

    def script(asked: Asked) -> Reply:
        if asked.path == "/token":
            return Reply(body=json.dumps({"token": next(tokens)}).encode())
        if asked.headers.get("authorization") not in good:
            return Reply(status=401, headers=bearer(server.url("registry.test", "/token")))
        return Reply(body=DATA)

    with scripted_registry(script) as server:
        log_in(server, tmp_path)
        client = server.client()
        for expected in (1, 1, 2):
            if expected == 2:
                good.clear()
                good.add("Bearer second")
            assert b"".join(client.open_blob(DIGEST, start=0, stop=len(DATA))) == DATA
            asked = [each for each in server.asked if each.path == "/token"]
            assert len(asked) == expected
        assert asked[0].query == {"service": "s", "scope": "repository:team/store:pull"}
        assert asked[0].headers["authorization"] == "Basic dXNlcjp3b3Jk"


@pytest.mark.parametrize("host", ["token.test", "inside.test"])
def test_a_token_server_without_tls_gets_nothing(host: str, tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        return Reply(status=401, headers=bearer(server.url(host, "/token")))

    with scripted_registry(script) as server:
        log_in(server, tmp_path)
        with pytest.raises(StoreError, match=f"names 'http://{host}.*which is not https"):
            read(server)
        assert {each.host for each in server.asked} == {"registry.test"}


def test_an_https_token_server_inside_gets_nothing(tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        return Reply(status=401, headers=bearer(f"https://inside.test:{server.port}/token"))

    with scripted_registry(script) as server:
        log_in(server, tmp_path)
        with pytest.raises(StoreError, match=r"leads to inside\.test"):
            read(server)
        assert {each.host for each in server.asked} == {"registry.test"}


def test_a_token_server_here_is_fine_for_a_registry_here() -> None:
    def script(asked: Asked) -> Reply:
        if asked.host == "127.0.0.3":
            return Reply(body=b'{"access_token": "t"}')
        if asked.headers.get("authorization") != "Bearer t":
            return Reply(status=401, headers=bearer(server.url("127.0.0.3", "/token")))
        return Reply(body=DATA)

    with scripted_registry(script) as server:
        pieces = server.client("inside.test").open_blob(DIGEST, start=0, stop=len(DATA))
        assert b"".join(pieces) == DATA


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=403),
        Reply(status=302, headers={"Location": "/v2/x"}),
        Reply(body=b"{}"),
        Reply(body=b"["),
        Reply(body=b'{"token": "a\\r\\nX: y"}'),
        Reply(body=b'{"token": 7}'),
    ],
)
def test_a_token_server_that_gives_none(reply: Reply) -> None:
    def script(asked: Asked) -> Reply:
        if asked.path == "/token":
            return reply
        return Reply(status=401, headers=bearer(server.url("registry.test", "/token")))

    with scripted_registry(script) as server:
        with pytest.raises(StoreError, match=r"registry\.test:\d+/token (refuses|gives no token)"):
            read(server)
        assert len(server.asked) == 2


def test_a_refresh_token_goes_in_the_body(tmp_path: Path) -> None:
    def script(asked: Asked) -> Reply:
        if asked.path == "/token":
            return Reply(body=b'{"access_token": "t"}')
        if asked.headers.get("authorization") != "Bearer t":
            return Reply(status=401, headers=bearer(server.url("registry.test", "/token")))
        return Reply(body=DATA)

    with scripted_registry(script) as server:
        log_in(server, tmp_path, {"identitytoken": "secret"})
        assert read(server) == DATA
        (sent,) = server.seen("POST")
    assert b"grant_type=refresh_token" in sent.body
    assert b"refresh_token=secret" in sent.body
    assert sent.query == {}


def test_without_credentials_it_says_how_to_log_in() -> None:
    headers = {"WWW-Authenticate": 'Basic realm="r"'}
    body = b'{"errors": [{"code": "UNAUTHORIZED", "message": "who\\u001b[2J?"}]}'
    with scripted_registry(lambda _: Reply(status=401, headers=headers, body=body)) as server:
        with pytest.raises(StoreError, match=r"answers 401 \(UNAUTHORIZED: who\[2J\?\)") as error:
            read(server)
        assert error.value.mend == f"docker login registry.test:{server.port}"
        assert len(server.asked) == 1


def test_a_wrong_password_is_tried_once(tmp_path: Path) -> None:
    reply = Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
    with scripted_registry(lambda _: reply) as server:
        log_in(server, tmp_path)
        client = server.client()
        with pytest.raises(StoreError, match="answers 401"):
            client.blob_size(DIGEST)
        assert len(server.asked) == 2


# Answers that break


def test_a_cut_read_goes_on_where_it_broke() -> None:
    cuts = iter([1000, 0, 500, None])
    with scripted_registry(lambda asked: ranged(asked, cut_after=next(cuts))) as server:
        assert read(server) == DATA
        ranges = [each.headers["range"] for each in server.asked]
    last = len(DATA) - 1
    assert ranges == [f"bytes={at}-{last}" for at in (0, 1000, 1000, 1500)]


def test_a_read_that_never_gets_further_ends() -> None:
    with scripted_registry(lambda asked: ranged(asked, cut_after=0)) as server:
        with pytest.raises(StoreError, match="byte 0 of"):
            read(server)
        assert len(server.asked) == 3


def test_a_server_that_ignores_ranges() -> None:
    cuts = iter([3000, None])
    with scripted_registry(lambda _: Reply(body=DATA, cut_after=next(cuts))) as server:
        assert read(server, 100, 9000) == DATA[100:9000]


def test_a_body_without_length_that_ends_early_is_not_an_end() -> None:
    replies = in_turn(Reply(body=DATA[:100], without_length=True), Reply(body=DATA))
    with scripted_registry(lambda _: next(replies)) as server:
        assert read(server) == DATA


def test_another_range_than_asked_for_is_refused() -> None:
    headers = {"Content-Range": f"bytes 5-104/{len(DATA)}"}
    reply = Reply(status=206, headers=headers, body=DATA[5:105])
    with (
        scripted_registry(lambda _: reply) as server,
        pytest.raises(StoreError, match="another range"),
    ):
        read(server, 0, 100)


def test_a_blob_that_is_shorter_than_thought_ends() -> None:
    with scripted_registry(ranged) as server:
        assert read(server, 10, len(DATA) + 50) == DATA[10:]
    with scripted_registry(lambda _: Reply(status=416)) as server:
        assert read(server, 10, 20) == b""


def test_a_compressed_body_is_refused() -> None:
    reply = Reply(headers={"Content-Encoding": "gzip"}, body=DATA)
    with (
        scripted_registry(lambda _: reply) as server,
        pytest.raises(StoreError, match="compressed body"),
    ):
        read(server)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(status: int) -> None:
    busy = Reply(status=status, headers={"Retry-After": "3600"})
    replies = in_turn(busy, busy, Reply(headers={"Content-Length": "7"}))
    with scripted_registry(lambda _: next(replies)) as server:
        assert server.client().blob_size(DIGEST) == 7
        assert server.paused == [10, 10]
    with scripted_registry(lambda _: busy) as server:
        with pytest.raises(StoreError, match=f"answers {status}"):
            server.client().blob_size(DIGEST)
        assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 405])
def test_a_refusal_is_not_asked_again(status: int) -> None:
    with scripted_registry(lambda _: Reply(status=status)) as server:
        with pytest.raises(StoreError, match=f"answers {status}"):
            server.client().put_manifest("tag", b"{}", media_type="x/y", is_whole=False)
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 404])
def test_a_registry_that_denies_what_is_there_is_asked_again(status: int) -> None:
    replies = in_turn(Reply(status=status), Reply(status=status), Reply(status=201))
    with scripted_registry(lambda _: next(replies)) as server:
        server.client().put_manifest("tag", b"{}", media_type="x/y")
        assert len(server.asked) == 3
    with scripted_registry(lambda _: Reply(status=status)) as server:
        with pytest.raises(StoreError, match=f"answers {status}"):
            server.client().put_manifest("tag", b"{}", media_type="x/y")
        assert len(server.asked) == 6


def test_a_cut_manifest_is_asked_for_again() -> None:
    replies = in_turn(Reply(body=b"{}  ", cut_after=2), Reply(body=b"{}  "))
    with scripted_registry(lambda _: next(replies)) as server:
        assert server.client().manifest("tag") == b"{}  "


def test_an_upload_that_is_cut_starts_again() -> None:
    sessions = []

    def script(asked: Asked) -> Reply | None:
        if asked.method == "POST":
            sessions.append(asked)
            return Reply(status=202, headers={"Location": f"/up/{len(sessions)}"})
        if asked.method == "PUT":
            return Reply(status=201) if len(sessions) == 2 else Reply(status=500)
        return None

    with scripted_registry(script) as server:
        server.client().upload_blob(DIGEST, size_bytes=len(DATA), body=DATA)
        assert [(each.path, each.body == DATA) for each in server.seen("PUT")] == [
            ("/up/1", True),
            ("/up/2", True),
        ]


def test_an_upload_that_arrived_though_the_answer_did_not() -> None:
    def script(asked: Asked) -> Reply:
        if asked.method == "POST":
            return Reply(status=202, headers={"Location": "/up"})
        if asked.method == "PUT":
            return Reply(status=504)
        return Reply(headers={"Content-Length": str(len(DATA))})

    with scripted_registry(script) as server:
        server.client().upload_blob(DIGEST, size_bytes=len(DATA), body=DATA)
        assert len(server.seen("PUT")) == 1


def test_nobody_there() -> None:
    with scripted_registry(lambda _: Reply()) as server:
        client = server.client()
    with pytest.raises(StoreError, match="cannot be reached") as error:
        client.blob_size(DIGEST)
    assert len(server.paused) == 2
    assert "check the network" in error.value.mend


# Answers without end


def test_a_manifest_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_registry, "MANIFEST_LIMIT_BYTES", 100)
    with scripted_registry(lambda _: Reply(body=b" " * 101)) as server:
        with pytest.raises(StoreError, match="more than 100 bytes"):
            server.client().manifest("tag")
        assert len(server.asked) == 1


def page(asked: Asked, *, each: int) -> Reply:
    at = int(asked.query.get("last", "0"))
    body = json.dumps({"tags": [str(at + i) for i in range(each)]}).encode()
    link = f'<{asked.path}?n={each}&last={at + max(each, 1)}>; rel="next"'
    return Reply(body=body, headers={"Link": link})


def test_endless_tags_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_registry, "TAGS_LIMIT", 25)
    with scripted_registry(lambda asked: page(asked, each=10)) as server:
        with pytest.raises(StoreError, match="lists more than 25 tags"):
            list(server.client().tag_pages())
        assert len(server.asked) == 3


def test_endless_empty_pages_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_registry, "PAGES_LIMIT", 7)
    with scripted_registry(lambda asked: page(asked, each=0)) as server:
        with pytest.raises(StoreError, match="without end"):
            list(server.client().tag_pages())
        assert len(server.asked) == 7


def tags_of_crane(asked: Asked, tags: list[str]) -> Reply:
    """A page as crane's registry cuts it: no Link, and from the start again past the end."""
    after = [each for each in tags if each > asked.query.get("last", "")] or tags
    return Reply(body=json.dumps({"tags": after[: int(asked.query["n"])]}).encode())


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 25])
def test_pages_without_a_link_are_found(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_registry, "TAGS_A_PAGE", 10)
    tags = [f"t{number:03}" for number in range(count)]
    with scripted_registry(lambda asked: tags_of_crane(asked, tags)) as server:
        assert [tag for page in server.client().tag_pages() for tag in page] == tags


def test_the_next_page_is_at_the_same_host() -> None:
    def script(asked: Asked) -> Reply:
        link = f'<{server.url("token.test", "/tags")}>; rel="next"'
        return Reply(body=b'{"tags": null}', headers={"Link": link})

    with scripted_registry(script) as server:
        with pytest.raises(StoreError, match="another place"):
            list(server.client().tag_pages())
        assert len(server.asked) == 1


@pytest.mark.parametrize(("a_page", "pages"), [(10, 3), (0, 49)])
def test_endless_referrers_end(a_page: int, pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_registry, "REFERRERS_LIMIT", 25)
    monkeypatch.setattr(edge_registry, "REFERRERS_LIMIT_BYTES", 50_000)

    def script(asked: Asked) -> Reply:
        at = int(asked.query.get("at", "0"))
        body = json.dumps({"manifests": [{}] * a_page}).encode()
        return Reply(body=body, headers={"Link": f'<?at={at + 1}>; rel="next"'})

    with scripted_registry(script) as server:
        with pytest.raises(StoreError, match="more than 25 referrers"):
            server.client().referrers(DIGEST)
        assert len(server.asked) == pages


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"tags": 5}', b'{"tags": [5]}', b"[" * 100_000])
def test_nonsense_instead_of_tags(body: bytes) -> None:
    with (
        scripted_registry(lambda _: Reply(body=body)) as server,
        pytest.raises(StoreError, match="does not answer with a list of tags"),
    ):
        list(server.client().tag_pages())


def test_a_registry_that_does_not_say_the_size() -> None:
    for length in ("", "-1", "1e9", "٣", "9" * 30):
        response = urllib3.HTTPResponse(headers={"Content-Length": length})
        with pytest.raises(StoreError, match="does not say the size"):
            edge_registry.length_of(Answer(response, "https://registry.example/v2/a"))
