"""`planyard store fsck` and `planyard store gc`: exit codes, documents, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from builders.cli import store as cli_store
from builders.cli.store import parts_of_share, seconds_of_duration
from engines.store import objects as names
from engines.store.local_store import LocalStore
from planyard.core.errors import InputError
from tests.kept_store import (
    Release,
    everything_visible_is_whole,
    old_releases,
    overwrite,
    put_release,
)


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    cli_store.add_to(made)
    return made


@pytest.fixture
def run(app):
    def invoke(*args: object):
        return CliRunner().invoke(app, ["store", *map(str, args)])

    return invoke


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def damage(store: LocalStore, release: Release) -> str:
    name = names.blob_name(release.image.digest)
    overwrite(store.root / name, b"damaged")
    return name


def test_a_sound_store_ends_with_0_and_a_damaged_one_with_10(run, store):
    release = put_release(store, 0)
    sound = run("fsck", "--store", store.root)
    assert sound.exit_code == 0, sound.output
    assert "sound: " in sound.stdout
    name = damage(store, release)
    damaged = run("fsck", "--store", store.root)
    assert damaged.exit_code == 10
    assert f"{name}: " in damaged.stderr
    assert "breaks image rtx" in damaged.stdout
    assert (store.root / name).read_bytes() == b"damaged"  # nothing is changed unasked


def test_the_document_of_a_check(run, store):
    name = damage(store, put_release(store, 0))
    result = run("fsck", "--store", store.root, "--json", "--share", "50%", "--seed", "1")
    document = json.loads(result.stdout)
    assert (document["schema"], document["part"], document["parts"]) == (1, 2, 2)
    results = [
        run("fsck", "--store", store.root, "--json", "--share", "50%", "--seed", n) for n in (0, 1)
    ]
    found = [json.loads(each.stdout)["problems"] for each in results]
    assert sorted(map(len, found)) == [0, 1]
    (problem,) = next(each for each in found if each)
    assert (problem["object"], problem["severity"]) == (name, "damage")
    assert problem["breaks"]


def test_repair_and_removal(run, store, tmp_path):
    release = put_release(store, 0)
    backup = LocalStore(tmp_path / "backup")
    put_release(backup, 0)
    damage(store, release)
    mended = run("fsck", "--store", store.root, "--repair-from", f"file://{backup.root}")
    assert mended.exit_code == 0, mended.output
    assert everything_visible_is_whole(store) == 5
    name = damage(store, release)
    removed = run("fsck", "--store", store.root, "--remove-damaged", "--json")
    assert removed.exit_code == 0
    assert json.loads(removed.stdout)["problems"][0]["repair"] == "removed"
    assert not (store.root / name).exists()
    missing = run("fsck", "--store", store.root)
    assert missing.exit_code == 10


def test_collecting(run, store):
    old_releases(store, 3)
    before = sorted(store.root.rglob("*"))
    said = json.loads(run("gc", "--store", store.root, "--keep", 1, "--dry-run", "--json").stdout)
    assert sorted(store.root.rglob("*")) == before
    assert (said["schema"], said["dry_run"]) == (1, True)
    result = run("gc", "--store", store.root, "--keep", 1)
    assert result.exit_code == 0, result.output
    assert "freed" in result.stdout
    assert everything_visible_is_whole(store) == 5
    again = json.loads(run("gc", "--store", store.root, "--keep", 1, "--json").stdout)
    assert (said["freed_bytes"] > 0, again["freed_bytes"]) == (True, 0)


def test_a_short_grace_period_needs_a_promise(run, store):
    put_release(store, 0)
    put_release(store, 1)
    refused = run("gc", "--store", store.root, "--keep", 1, "--grace", "59m")
    assert refused.exit_code == 2
    assert "--alone" in refused.stderr
    assert everything_visible_is_whole(store) == 10
    done = run("gc", "--store", store.root, "--keep", 1, "--grace", "0", "--alone")
    assert done.exit_code == 0, done.output
    assert everything_visible_is_whole(store) == 5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800), ("2w", 1_209_600), ("0", 0)],
)
def test_durations(text, seconds):
    assert seconds_of_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "-1d", "1.5h", "7 d", "d", "9999999d", "1y"])
def test_what_is_no_duration(text):
    with pytest.raises(InputError):
        seconds_of_duration(text)


@pytest.mark.parametrize(
    ("text", "parts"), [("100%", 1), ("50%", 2), ("33%", 3), ("10%", 10), ("0.1%", 1000)]
)
def test_shares(text, parts):
    assert parts_of_share(text) == parts


@pytest.mark.parametrize("text", ["", "10", "0%", "101%", "-5%", "0.01%", "ten%"])
def test_what_is_no_share(text):
    with pytest.raises(InputError):
        parts_of_share(text)
