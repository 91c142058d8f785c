"""`planyard promote`, `rollback` and `channels`: exit codes, documents, what a person reads."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import msgspec
import pytest
import typer
from typer.testing import CliRunner

from builders import signing
from builders.cli import channels as cli_channels
from builders.cli import sign as cli_sign
from builders.cli.verbs import open_store
from builders.image_names import image_named
from builders.signed_state import trust_wanted
from builders.signing import Trust
from engines.channels.history import ChannelHistory, Channels
from engines.channels.moves import Move
from engines.channels.seen import seen_file
from planyard.core.errors import InputError, IntegrityError, LookupMissError
from planyard.core.matrix import Promotion
from planyard.edge.cosign_flags import CosignError
from tests import small_site
from tests.channel_sites import images
from tests.signed_evidence import FakeKey, a_site

UNSET = ("PLANYARD_STORE", "PLANYARD_VERIFY_KEY", "COSIGN_PUBLIC_KEY", "GITHUB_ACTIONS")
WHY = ("--because", "no L4 until May")


class FakeCosign:
    """The text of a key's file signs and verifies."""

    missing = False
    broken = False

    def find_cosign(self) -> str:
        if self.missing:
            raise CosignError("no cosign", mend="planyard setup --with cosign")
        return "cosign"

    def sign_statement(self, cosign, statement, *, key, environment):
        return FakeKey(Path(key).read_bytes()).sign(statement)

    def verify_statement(self, cosign, statement, bundle, *, key, identity, issuer, environment):
        if self.broken:
            raise CosignError("cosign was killed")
        FakeKey(Path(key).read_bytes()).verify(statement, bundle)


@pytest.fixture
def cosign(monkeypatch) -> FakeCosign:
    fake = FakeCosign()
    monkeypatch.setattr(signing, "cosign_tool", lambda: fake)
    return fake


@pytest.fixture
def run(tmp_path, monkeypatch, cosign) -> Iterator:
    """The verbs in a folder of their own: `run("promote", …)`."""
    monkeypatch.chdir(tmp_path)
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    for name in ("ours.key", "ours.pub"):
        (tmp_path / name).write_text("ours")
    (tmp_path / "theirs.pub").write_text("theirs")
    app = typer.Typer()
    for module in (cli_channels, cli_sign):
        module.add_to(app)
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *args: CliRunner().invoke(app, list(args))
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def store(run, tmp_path):
    return open_store(None, root=tmp_path)


@pytest.fixture
def three(store) -> list[str]:
    """Three images that may be promoted."""
    return images(store, 3)


def document(result, kind):
    """The one document on stdout, which fits its published schema."""
    found = json.loads(result.stdout)
    jsonschema.validate(found, msgspec.json.schema(kind))
    return found


def state_of(run, channel="stable"):
    return document(run("channels", channel, "--json"), ChannelHistory)["history"][0]


# Promote


def test_a_promotion_says_what_moved_and_how_to_undo_it(run, three):
    first = run("promote", "stable", three[0], "--because", "the first")
    assert first.exit_code == 0, first.stderr
    assert f"stable promoted to rtx0 {three[0][:19]} (version 1)" in first.stdout
    assert "because  the first" in first.stdout
    assert "rollback" not in first.stdout
    second = run("promote", "stable", three[1][7:19]).stdout
    assert f"from     rtx0 {three[0][:19]} (version 1)" in second
    assert "undo:  planyard rollback stable" in second
    assert "@" in second.split("by       ")[1].splitlines()[0]


def test_a_promotion_as_a_document(run, three):
    run("promote", "stable", three[0])
    move = document(run("promote", "stable", three[1], "--json"), Move)
    assert (move["schema"], move["moved"], move["action"]) == (1, True, "promote")
    assert move["before"]["image"] == move["now"]["from"] == three[0]
    assert move["now"]["version"] == 2


def test_what_is_there_already_is_nothing_to_do(run, three):
    run("promote", "stable", three[0])
    again = run("promote", "stable", three[0])
    assert again.exit_code == 0
    assert "nothing to do: stable is at rtx0" in again.stdout
    assert state_of(run)["version"] == 1


def test_objections_end_with_4_and_name_the_waiver(run, store):
    image = a_site(store, "not run").digest
    result = run("promote", "stable", image)
    assert result.exit_code == 4
    assert "rtx/ocr/640/fp16/l4: nobody ran it [promote.not-run]" in result.stderr
    assert "stable was not made" in result.stderr
    assert "--waive not-run --because" in result.stdout
    as_json = run("promote", "stable", image, "--json")
    assert as_json.exit_code == 4
    assert document(as_json, Move)["objections"][0]["rule"] == "promote.not-run"
    assert run("channels", "stable").exit_code == 9


def test_a_waiver_is_shown_and_recorded(run, store):
    image = a_site(store, "not run").digest
    result = run("promote", "stable", image, "--waive", "not-run", *WHY)
    assert result.exit_code == 0
    assert "waived not-run (rtx/ocr/640/fp16/l4 promote.not-run): no L4" in result.stderr
    (waived,) = state_of(run)["waived"]
    assert (waived["gate"], waived["because"]) == ("not-run", "no L4 until May")
    assert "waived not-run: no L4 until May" in run("channels", "stable").stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--waive", "not-run"], "say --because"),
        (["--waive", "not-run", "--because", " "], "say --because"),
        (["--waive", "notrun", *WHY], "there are objections of not-run"),
        (["--waive", "not-run", "--waive", "logs", *WHY, *WHY, *WHY], "once for each"),
        (["--because", "a", "--because", "b"], "nothing to waive"),
        (["--gpu", "a100"], "snapshots for l4, rtx4090"),
    ],
)
def test_a_slip_of_the_hand_ends_with_2(run, store, args, said):
    image = a_site(store, "not run").digest
    result = run("promote", "stable", image, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert run("channels", "stable").exit_code == 9


def test_each_waiver_has_its_own_reason_or_all_have_one():
    both = cli_channels.waivers_of(["a", "b"], ["x", "y"])
    assert [(each.gate, each.because) for each in both] == [("a", "x"), ("b", "y")]
    one = cli_channels.waivers_of(["a", "b"], ["x"])
    assert [each.because for each in one] == ["x", "x"]
    assert cli_channels.waivers_of([], ["x"]) == []


def test_one_gpu_may_be_promoted(run, store):
    image = a_site(store, "failed").digest
    assert run("promote", "stable", image).exit_code == 4
    assert run("promote", "stable", image, "--gpu", "rtx4090").exit_code == 0
    assert state_of(run)["gpus"] == ["rtx4090"]


def test_a_channel_is_promoted_from_another(run, three):
    run("promote", "canary", three[1])
    assert run("promote", "stable", "canary").exit_code == 0
    assert state_of(run)["image"] == three[1]


@pytest.mark.parametrize(
    ("image", "code", "said"),
    [
        ("sha256:" + "0" * 64, 9, "has no image"),
        ("0" * 12, 9, "has no image"),
        ("nobody", 2, "not an image digest, nor a channel"),
        ("SHA256:00", 2, "is not an image digest"),
    ],
)
def test_an_image_that_is_not_there(run, three, image, code, said):
    result = run("promote", "stable", image)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr


@pytest.mark.parametrize("name", ["Stable", "../x", "0123456789abc"])
def test_what_is_no_channel_ends_with_2(run, three, name):
    assert run("promote", name, three[0]).exit_code == 2


# Signed evidence


def promotion_in_matrix(tmp_path, text):
    matrix = small_site.MATRIX + f"promotion: {text}\n"
    (tmp_path / "matrix.yaml").write_text(matrix)


def test_signed_evidence_where_an_option_asks_for_it(run, three):
    image = three[0]
    unsigned = run("promote", "stable", image, "--key", "ours.pub")
    assert unsigned.exit_code == 4
    assert "has no evidence of" in unsigned.stderr
    run("sign", image, "--key", "ours.key")
    assert run("promote", "stable", image, "--key", "theirs.pub").exit_code == 4
    good = run("promote", "stable", image, "--key", "ours.pub", "--require-signed")
    assert good.exit_code == 0, good.stderr
    assert state_of(run)["evidence"].startswith("sha256:")
    assert "signed evidence sha256:" in good.stdout


def test_signed_evidence_where_the_matrix_asks_for_it(run, three, tmp_path):
    promotion_in_matrix(tmp_path, "{signed: true, key: ours.pub}")
    assert run("promote", "stable", three[0]).exit_code == 4
    run("sign", three[0], "--key", "ours.key")
    assert run("promote", "stable", three[0]).exit_code == 0
    other = run("promote", "stable", three[1], "--key", "theirs.pub")
    assert other.exit_code == 2
    assert "an option cannot say another" in other.stderr
    waived = run("promote", "stable", three[1], "--waive", "signature", "--because", "hurry")
    assert waived.exit_code == 0
    assert state_of(run)["waived"][0]["gate"] == "signature"


def test_a_rollback_asks_as_the_matrix_says(run, three, tmp_path):
    for image in three:
        run("promote", "stable", image)
    run("sign", three[0], "--key", "ours.key")
    promotion_in_matrix(tmp_path, "{signed: true, key: ours.pub}")
    back = run("rollback", "stable")
    assert back.exit_code == 0, back.stderr
    assert f"passed over version 2, {three[1]}" in back.stderr
    assert state_of(run)["image"] == three[0]


def test_what_was_signed_as_failed_objects_on_its_own(run, store):
    image = a_site(store, "failed").digest
    run("sign", image, "--key", "ours.key")
    found = run("promote", "stable", image, "--key", "ours.pub", "--json")
    gates = {each["gate"] for each in document(found, Move)["objections"]}
    assert gates == {"logs", "evidence"}
    chosen = ("--gpu", "rtx4090", "--key", "ours.pub")
    assert run("promote", "stable", image, *chosen).exit_code == 0


@pytest.mark.parametrize(("how", "said"), [("missing", "no cosign"), ("broken", "was killed")])
def test_without_cosign_nothing_is_known_and_nothing_moves(run, three, cosign, how, said):
    run("sign", three[0], "--key", "ours.key")
    cosign.missing, cosign.broken = how == "missing", how == "broken"
    args = ("promote", "stable", three[0], "--key", "ours.pub", "--waive", "signature", *WHY)
    result = run(*args)
    assert result.exit_code == 10
    assert said in result.stderr
    assert run("channels", "stable").exit_code == 9


@pytest.mark.parametrize(
    ("promotion", "option", "required", "expected"),
    [
        (Promotion(), Trust(), False, None),
        (Promotion(), Trust(key="k"), False, Trust(key="k")),
        (Promotion(), Trust(), True, InputError),
        (Promotion(signed=True), Trust(), False, InputError),
        (Promotion(signed=True), Trust(key="k"), False, Trust(key="k")),
        (Promotion(signed=True, key="a.pub"), Trust(), False, Trust(key="root/a.pub")),
        (Promotion(signed=True, key="a.pub"), Trust(key="a.pub"), False, InputError),
        (
            Promotion(signed=True, identity="i", issuer="u"),
            Trust(),
            False,
            Trust(identity="i", issuer="u"),
        ),
    ],
)
def test_whose_signature_counts(promotion, option, required, expected):
    def wanted():
        return trust_wanted(promotion, option, required=required, root=Path("root"), environment={})

    if expected is InputError:
        with pytest.raises(InputError):
            wanted()
    else:
        assert wanted() == expected


def test_a_matrix_that_is_named_has_to_be_there(run, three):
    assert run("promote", "stable", three[0], "--matrix", "other.yaml").exit_code == 2


def test_a_matrix_that_is_wrong_moves_nothing(run, three, tmp_path):
    (tmp_path / "matrix.yaml").write_text("schema: 1\n")
    assert run("promote", "stable", three[0]).exit_code == 2
    assert run("rollback", "stable").exit_code == 2


# Rollback


def test_a_rollback_says_what_moved(run, three):
    for image in three:
        run("promote", "stable", image)
    result = run("rollback", "stable", "--because", "latency doubled")
    assert result.exit_code == 0
    assert f"stable rolled back to rtx1 {three[1][:19]} (version 4)" in result.stdout
    assert f"from     rtx2 {three[2][:19]} (version 3)" in result.stdout
    assert "because  latency doubled" in result.stdout
    second = document(run("rollback", "stable", "--json"), Move)
    assert (second["now"]["image"], second["now"]["restores"]) == (three[0], 1)
    third = run("rollback", "stable")
    assert (third.exit_code, third.stdout) == (9, "")


def test_a_rollback_to_a_given_image(run, three):
    for image in three:
        run("promote", "stable", image)
    assert run("rollback", "stable", "--to", three[0]).exit_code == 0
    assert state_of(run)["image"] == three[0]
    strange = run("rollback", "stable", "--to", "sha256:" + "0" * 64)
    assert strange.exit_code == 2
    assert three[1] in strange.stderr


def test_a_rollback_of_no_channel_is_a_miss(run, three):
    result = run("rollback", "stable")
    assert result.exit_code == 9
    assert "planyard promote stable" in result.stderr


# Channels


def test_channels_are_listed(run, three):
    assert "has no channels" in run("channels").stdout
    run("promote", "stable", three[0])
    run("promote", "canary", three[1])
    lines = run("channels").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["channel", "canary", "stable"]
    found = document(run("channels", "--json"), Channels)
    assert [each["image"] for each in found["channels"]] == [three[1], three[0]]


def test_a_history_is_newest_first_and_may_be_cut(run, three):
    for image in three:
        run("promote", "stable", image)
    run("rollback", "stable")
    lines = run("channels", "stable").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["4", "3", "2", "1"]
    assert "back to 2" in lines[1]
    cut = run("channels", "stable", "--limit", "1").stdout
    assert "3 older ones" in cut
    assert document(run("channels", "stable", "--limit", "3", "--json"), ChannelHistory)[
        "older"
    ] == (1)


# What this machine has seen


def test_an_old_store_ends_with_10(run, three, tmp_path, store):
    run("promote", "stable", three[0])
    path = tmp_path / ".planyard" / "store" / "channels" / "stable"
    old = path.read_bytes()
    run("promote", "stable", three[1])
    path.write_bytes(old)
    for args in (
        ["channels"],
        ["channels", "stable"],
        ["promote", "stable", three[2]],
        ["promote", "canary", "stable"],
        ["rollback", "stable"],
    ):
        result = run(*args)
        assert (result.exit_code, result.stdout) == (10, ""), args
        assert "the store shows version 1, this machine has seen version 2" in result.stderr
    seen_file(tmp_path).unlink()
    assert run("channels").exit_code == 0


def test_looking_is_remembering(run, three, tmp_path, store):
    run("promote", "stable", three[0])
    seen_file(tmp_path).unlink()
    run("channels")
    (tmp_path / ".planyard" / "store" / "channels" / "stable").unlink()
    assert run("promote", "stable", three[1]).exit_code == 10


def test_images_by_name(run, three, store, tmp_path):
    run("promote", "stable", three[0])
    for asked in ("stable", three[0], three[0][7:], three[0][7:19], three[0][:19]):
        assert image_named(store, asked, root=tmp_path) == three[0]
    with pytest.raises(LookupMissError):
        image_named(store, "0" * 12, root=tmp_path)
    for asked in ("canary", "Stable", "sha256:stable", "", "x" * 64):
        with pytest.raises(InputError):
            image_named(store, asked, root=tmp_path)
    (tmp_path / ".planyard" / "store" / "channels" / "stable").unlink()
    with pytest.raises(IntegrityError):
        image_named(store, "stable", root=tmp_path)


def test_who_moves():
    github = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTOR": "ann",
        "GITHUB_REPOSITORY": "o/r",
        "GITHUB_RUN_ID": "7",
    }
    assert cli_channels.who(github) == "ann (GitHub Actions, o/r run 7)"
    assert "@" in cli_channels.who({"GITHUB_ACTOR": "ann"})
