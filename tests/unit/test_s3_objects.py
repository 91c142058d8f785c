"""S3 where no good server leads: against a fake that forgets conditions, checksums and answers."""

from __future__ import annotations

import json
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.store import objects as names
from engines.store import s3_swap
from engines.store.s3 import S3Objects, bucket_and_prefix, probe_compare_and_swap
from engines.store.s3_upload import Blocks
from planyard.core.digest import digest_of_bytes
from planyard.core.errors import InputError, IntegrityError, StoreError
from planyard.edge.s3 import Patience
from planyard.edge.s3_bucket import Bucket
from tests.fake_s3 import FakeS3, fake_s3

pytest.importorskip("botocore")

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
DATA = bytes(range(256)) * 20
NAME = names.blob_name(digest_of_bytes(DATA))
PREFIX = "team/plans"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeS3, Bucket]]:
    with fake_s3() as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield fake, Bucket("depot", endpoint=fake.url, patience=Patience(attempts=1))


@pytest.fixture
def fake(running: tuple[FakeS3, Bucket]) -> FakeS3:
    fresh, kept = FakeS3(), running[0]
    for name, value in vars(fresh).items():
        if name not in ("url", "lock"):
            setattr(kept, name, value)
    return kept


@pytest.fixture
def held(fake: FakeS3, running: tuple[FakeS3, Bucket]) -> S3Objects:
    return S3Objects(running[1], prefix=PREFIX)


# Addresses


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("s3://depot", ("depot", "")),
        ("s3://depot/", ("depot", "")),
        ("s3://my.depot-1/a/b_c/d.e", ("my.depot-1", "a/b_c/d.e")),
        ("s3://depot/a/", ("depot", "a")),
    ],
)
def test_addresses(url: str, wanted: tuple[str, str]) -> None:
    assert bucket_and_prefix(url) == wanted


@pytest.mark.parametrize(
    "url",
    [
        *("", "s3:", "s3://", "s3:///a", "s3://ab", "s3://Depot", "s3://de_pot", "s3://a..b/c"),
        *("S3://depot", "https://depot/a", "s3://key:secret@depot/a", "s3://-depot", "s3://depot-"),
        *("s3://depot/../x", "s3://depot/a/../b", "s3://depot/a//b", "s3://depot//a"),
        *("s3://depot/a b", "s3://depot/a?x=1", "s3://depot/a\n", "s3://depot\n", "s3://depot/.a"),
        *("s3://depot/é", f"s3://depot/{'x' * 513}", f"s3://{'x' * 64}"),
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InputError) as refused:
        bucket_and_prefix(url)
    assert refused.value.mend


def test_the_address_is_kept(held: S3Objects) -> None:
    assert (held.url, held.is_near) == (f"s3://depot/{PREFIX}", False)


def test_settings_come_from_the_usual_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general.invalid:1")
    assert Bucket("depot").endpoint == "http://general.invalid:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.invalid:2")
    found = S3Objects.from_url("s3://depot/a")
    assert found.bucket.endpoint == "http://s3.invalid:2"
    made = found.bucket._caller._client
    assert made.meta.region_name == "us-east-1"
    assert made.meta.config.s3["addressing_style"] == "path"
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError) as refused:
        Bucket("depot")
    assert "nobody" in refused.value.message
    assert "AWS_PROFILE" in refused.value.mend


# What goes along with the bytes


def test_the_md5_goes_along_until_the_server_knows_the_sha256(
    fake: FakeS3, held: S3Objects
) -> None:
    for _ in range(3):
        held.write(NAME, DATA)
    assert ["content-md5" in sent for _, _, sent in fake.asked] == [True, False, False]
    assert all(sent["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD" for _, _, sent in fake.asked)
    wanted = s3_swap.checksum(DATA)
    assert all(sent["x-amz-checksum-sha256"] == wanted for _, _, sent in fake.asked)
    signed = fake.asked[0][2]["authorization"]
    assert "x-amz-checksum-sha256" in signed  # nobody on the way can change it


def test_a_server_without_sha256_is_sent_the_md5_and_asked_for_the_size(
    fake: FakeS3, held: S3Objects
) -> None:
    fake.knows_sha256 = False
    for _ in range(2):
        held.write(NAME, DATA)
    puts = [sent for method, _, sent in fake.asked if method == "PUT"]
    assert ["content-md5" in sent for sent in puts] == [True, True]
    assert [method for method, _, _ in fake.asked] == ["PUT", "HEAD", "PUT", "HEAD"]


def test_wrong_bytes_are_never_sent(fake: FakeS3, held: S3Objects) -> None:
    with pytest.raises(IntegrityError):
        held.write(NAME, DATA + b"x")
    assert fake.asked == []


def test_wrong_bytes_that_were_called_proved_are_refused_by_the_server(
    fake: FakeS3, held: S3Objects
) -> None:
    with pytest.raises(StoreError, match="BadDigest"):
        held.write(NAME, DATA + b"x", proved=True)
    assert fake.held == {}


@pytest.mark.parametrize("size", [10, 2 << 20])
def test_bytes_do_not_wait_for_a_second_answer(fake: FakeS3, held: S3Objects, size: int) -> None:
    """SeaweedFS holds a lock meanwhile: 32 conditional writes took 10 s, and take 0.1 s."""
    data = bytes(size)
    held.write(names.blob_name(digest_of_bytes(data)), data)
    assert "expect" not in fake.asked[0][2]


# Compare-and-swap


def test_a_server_that_lets_two_win_is_refused(fake: FakeS3, held: S3Objects) -> None:
    fake.keeps_conditions = False
    for _ in range(2):  # bad news is not remembered: the server may be mended
        asked = fake.count("PUT")
        with pytest.raises(StoreError, match="of 32 that created one object at once") as refused:
            held.move_pointer("prod", b"x", expected=None)
        assert fake.count("PUT") == asked + 32
        assert "conditional writes" in refused.value.message
        assert refused.value.mend
    assert fake.held == {}
    fake.keeps_conditions = True
    assert held.move_pointer("prod", b"x", expected=None)


def test_the_probe_by_itself(fake: FakeS3, held: S3Objects) -> None:
    assert probe_compare_and_swap(held) == ""
    assert probe_compare_and_swap(held, writers=4) == ""
    fake.keeps_conditions = False
    assert probe_compare_and_swap(held, writers=4).startswith("4 of 4")
    assert fake.held == {}


def test_a_good_probe_is_remembered_for_a_week(
    fake: FakeS3, running: tuple[FakeS3, Bucket], tmp_path: Path
) -> None:
    state = tmp_path / "deep" / "probes.json"

    def puts_of_a_move(name: str) -> int:
        before = fake.count("PUT")
        assert S3Objects(running[1], state=state).move_pointer(name, b"x", expected=None)
        return fake.count("PUT") - before

    assert puts_of_a_move("a") == 32 + 32 + 1
    assert puts_of_a_move("b") == 1
    (place,) = json.loads(state.read_text())
    assert place == f"{fake.url} depot"
    day = 86_400
    for age, puts in ((6.9 * day, 1), (7.1 * day, 65), (-day, 65)):
        state.write_text(json.dumps({place: time.time() - age}))
        assert puts_of_a_move(f"age{age}".replace("-", "m")) == puts
    state.write_text(json.dumps({f"{fake.url} other": time.time()}))
    assert puts_of_a_move("elsewhere") == 65
    for garbage in ("", "[]", '{"x', '{"' + place + '": "long ago"}'):
        state.write_text(garbage)
        assert puts_of_a_move(f"garbage{len(garbage)}") == 65


def test_a_move_whose_answer_was_lost_is_found_out(fake: FakeS3, held: S3Objects) -> None:
    assert held.move_pointer("prod", b"one", expected=None)
    now = held.pointer("prod")
    assert now
    fake.lost_answers = 1
    assert held.move_pointer("prod", b"two", expected=now.token)
    assert held.pointer("prod").data == b"two"  # type: ignore[union-attr]
    fake.lost_answers = 1
    assert held.move_pointer("other", b"new", expected=None)


def test_what_cannot_be_found_out_is_said(fake: FakeS3, held: S3Objects) -> None:
    assert held.move_pointer("prod", b"one", expected=None)
    now = held.pointer("prod")
    assert now
    fake.lost_answers = 1
    fake.after_lost = (f"{PREFIX}/channels/prod", b"by somebody else")
    with pytest.raises(StoreError, match="not known") as refused:
        held.move_pointer("prod", b"two", expected=now.token)
    assert refused.value.mend


@pytest.mark.parametrize("refusal", [(409, "ConditionalRequestConflict"), (503, "SlowDown")])
def test_a_move_is_tried_again(fake: FakeS3, held: S3Objects, refusal: tuple[int, str]) -> None:
    assert held.move_pointer("prod", b"one", expected=None)
    now = held.pointer("prod")
    assert now
    fake.statuses = [refusal]
    assert held.move_pointer("prod", b"two", expected=now.token)


def test_a_conflict_with_a_winner_is_lost(fake: FakeS3, held: S3Objects) -> None:
    assert held.move_pointer("prod", b"one", expected=None)
    fake.statuses = [(409, "ConditionalRequestConflict")]
    assert held.move_pointer("prod", b"two", expected=None) is False


def test_a_pointer_that_is_gone_is_not_moved(fake: FakeS3, held: S3Objects) -> None:
    assert held.move_pointer("prod", b"one", expected=None)
    now = held.pointer("prod")
    assert now
    fake.statuses = [(404, "NoSuchKey")]  # what AWS says of If-Match
    assert held.move_pointer("prod", b"two", expected=now.token) is False


def test_a_pointer_that_does_not_fit_its_checksum_is_not_believed(
    fake: FakeS3, held: S3Objects
) -> None:
    assert held.move_pointer("prod", b"one", expected=None)
    key = f"{PREFIX}/channels/prod"
    fake.held[key] = (b"two", fake.held[key][1])
    with pytest.raises(StoreError, match="did not come whole"):
        held.pointer("prod")


# Reading


def test_a_connection_that_breaks_is_taken_up_where_it_broke(fake: FakeS3, held: S3Objects) -> None:
    held.write(NAME, DATA)
    fake.asked.clear()
    fake.broken_reads = 3
    assert b"".join(held.read(NAME)) == DATA
    spans = [sent["range"] for _, _, sent in fake.asked]
    assert spans == ["bytes=0-", "bytes=2560-5119", "bytes=3840-5119", "bytes=4480-5119"]
    assert ["if-match" in sent for _, _, sent in fake.asked] == [False, True, True, True]
    fake.broken_reads = 4
    with pytest.raises(StoreError, match="broke off 4 times"):
        list(held.read(NAME))


def test_two_objects_are_never_mixed(fake: FakeS3, held: S3Objects) -> None:
    held.write(NAME, DATA)
    fake.broken_reads = 1
    fake.after_broken = (f"{PREFIX}/{NAME}", DATA[::-1])
    with pytest.raises(StoreError, match="replaced while it was read"):
        list(held.read(NAME))


def test_a_server_that_sends_other_ranges(fake: FakeS3, held: S3Objects) -> None:
    held.write(NAME, DATA)
    fake.knows_ranges = False
    assert b"".join(held.read(NAME)) == DATA
    for span in ({"start": 5}, {"length": 9}):
        with pytest.raises(StoreError, match="other ranges"):
            held.read(NAME, **span)


# Listing


def test_a_listing_goes_over_pages_and_skips_what_is_no_object(
    fake: FakeS3, held: S3Objects
) -> None:
    fake.page = 2
    wanted = sorted(names.blob_name(digest_of_bytes(bytes([n]))) for n in range(7))
    for number in range(7):
        held.write(names.blob_name(digest_of_bytes(bytes([number]))), bytes([number]))
    for stray in ("README", NAME + ".tmp", NAME.upper(), "a/" + NAME):
        fake.held[f"{PREFIX}/{names.BLOBS}{stray}"] = (b"", {})
    fake.held["team/plans-old/" + NAME] = (b"", {})
    assert [one.name for one in held.listing(names.BLOBS)] == wanted


# Errors


def messages(held: S3Objects) -> tuple[str, str]:
    with pytest.raises(StoreError) as refused:
        held.size(NAME)
    return refused.value.message, refused.value.mend


def test_no_bucket(fake: FakeS3, held: S3Objects) -> None:
    fake.has_bucket = False
    wanted = f"aws --endpoint-url {fake.url} s3 mb s3://depot"
    message, mend = messages(held)
    assert "there is no bucket depot" in message
    assert mend == wanted
    for call in (
        lambda: held.read(NAME),
        lambda: held.write(NAME, DATA),
        lambda: list(held.listing(names.BLOBS)),
        lambda: held.pointer("prod"),
    ):
        with pytest.raises(StoreError) as refused:
            call()
        assert refused.value.mend == wanted


def test_a_missing_object_is_not_a_missing_bucket(fake: FakeS3, held: S3Objects) -> None:
    assert [held.size(NAME), held.size(NAME)] == [None, None]
    assert fake.count("HEAD") == 3  # the bucket is asked for once


@pytest.mark.parametrize(
    ("refusal", "said", "mend"),
    [
        ((403, "AccessDenied"), "403", "s3:GetObject"),
        ((403, "InvalidAccessKeyId"), "403", "AWS_ACCESS_KEY_ID"),
        ((403, "SignatureDoesNotMatch"), "403", "AWS_ACCESS_KEY_ID"),
        ((403, "RequestTimeTooSkewed"), "403", "clock"),
        ((500, "InternalError"), "500", "again later"),
        ((503, "SlowDown"), "503", "again later"),
        ((301, "PermanentRedirect"), "301", "AWS_DEFAULT_REGION"),
    ],
)
def test_refusals(
    fake: FakeS3, held: S3Objects, refusal: tuple[int, str], said: str, mend: str
) -> None:
    fake.held[f"{PREFIX}/{NAME}"] = (DATA, {})
    fake.statuses = [refusal] * 2
    with pytest.raises(StoreError, match=said) as refused:
        held.read(NAME)
    assert mend in refused.value.mend


def test_no_connection() -> None:
    with fake_s3() as gone, pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        bucket = Bucket("depot", endpoint=gone.url, patience=Patience(attempts=1))
    message, mend = messages(S3Objects(bucket))
    assert f"{gone.url} did not answer" in message
    assert "AWS_ENDPOINT_URL" in mend


def test_no_credentials(fake: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "none")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    _, mend = messages(S3Objects(Bucket("depot", endpoint=fake.url)))
    assert mend.startswith("set AWS_ACCESS_KEY_ID")
    assert fake.asked == []


def test_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "botocore.session", None)
    with pytest.raises(StoreError, match="not installed") as refused:
        Bucket("depot")
    assert refused.value.mend == 'pip install "planyard[s3]"'


def test_retries_of_what_the_server_was_too_busy_for(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.endpoint

    hurried = types.SimpleNamespace(time=time.time, sleep=lambda _: None)
    monkeypatch.setattr(botocore.endpoint, "time", hurried)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    held = S3Objects(Bucket("depot", endpoint=fake.url))
    fake.statuses = [(503, "SlowDown")] * 3
    held.write(NAME, DATA)
    assert fake.count("PUT") == 4
    fake.statuses = [(503, "SlowDown")] * 4
    with pytest.raises(StoreError, match="503"):
        held.write(NAME, DATA)


# Blocks


@pytest.mark.parametrize("cuts", [[10], [1] * 10, [3, 0, 4, 0, 3], [5, 5], [9, 1, 0]])
@pytest.mark.parametrize("size", [1, 3, 5, 10, 11])
def test_blocks(cuts: list[int], size: int) -> None:
    data, pieces, at = bytes(range(10)), [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    blocks = list(Blocks(pieces, size))
    assert b"".join(blocks) == data
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert 0 < len(blocks[-1]) <= size


def test_no_blocks_of_nothing() -> None:
    assert list(Blocks([b"", b""], 4)) == []
