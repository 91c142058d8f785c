"""`planyard snapshot show`, `snapshot diff` and `labels`: sides, documents, exit codes, errors."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import typer
import yaml
from typer.testing import CliRunner

from builders.cli import look as cli_look
from builders.cli import snapshot as cli_snapshot
from builders.cli.verbs import open_store
from builders.schemas import all_schemas
from engines import index
from engines.channels.moves import Mover, promote
from engines.snapshot import Snapshot, to_json
from planyard.core.digest import canonical_json, digest_of_bytes
from tests.capability_sites import a_cpu_image, a_verdict, nine_plans, stored
from tests.channel_sites import images

NEW = {"tensorrt_rtx": "1.8.0.0"}
LINE = "TensorRT for RTX 1.7.1.116 → 1.8.0.0: 9 plans to rebuild, about 6 minutes by the last"
replace = msgspec.structs.replace
Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The verbs in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("PLANYARD_STORE", "GITHUB_ACTIONS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    app = typer.Typer()
    for module in (cli_look, cli_snapshot):
        module.add_to(app)
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *args: CliRunner().invoke(app, [str(each) for each in args])
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def store(run: Run, tmp_path: Path) -> Any:
    return open_store(None, root=tmp_path)


@pytest.fixture
def both(store: Any) -> tuple[list[Snapshot], list[Snapshot]]:
    """An image, and the one after it with another TensorRT for RTX."""
    after = nine_plans(image="B", pins=NEW, version="1.8.0.0")
    return stored(store, nine_plans()), stored(store, after)


def saved(path: Path, document: Any) -> Path:
    path.write_bytes(canonical_json(document))
    return path


# What A and B may be


def test_images_by_their_digests(run: Run, both: Any) -> None:
    before, after = (side[0].image for side in both)
    result = run("snapshot", "diff", before, after[7:19])
    assert result.exit_code == 0, result.stderr
    assert LINE in result.stdout
    assert result.stderr == ""
    assert "9 plans to rebuild, about 6 minutes of compiling; 9 of them are built already" in (
        result.stdout
    )


def test_snapshots_by_their_digests(run: Run, both: Any) -> None:
    digests = [digest_of_bytes(to_json(side[1])) for side in both]
    result = run("snapshot", "diff", digests[0], digests[1][:25], "--json")
    document = json.loads(result.stdout)
    assert document["before"]["snapshots"] == {"sm89": digests[0]}
    assert len(document["rebuild"]) == 3


def test_channels_as_lookup_takes_them(run: Run, store: Any) -> None:
    mover = Mover(by="ann@desk", now="2026-11-21T18:00:00Z")
    first, second = images(store, 2)
    for channel, image in (("stable", first), ("canary", second)):
        assert promote(store, channel, image, mover=mover).moved
    result = run("snapshot", "diff", "stable", "canary")
    assert result.exit_code == 0, result.stderr
    assert "rtx0" in result.stdout
    assert "rtx1" in result.stdout
    assert run("snapshot", "diff", "stable", "stable").stdout.splitlines()[-1] == "no difference"


def test_files_saved_by_show_lookup_or_by_hand(run: Run, both: Any, tmp_path: Path) -> None:
    image = both[0][0].image
    (tmp_path / "shown.json").write_text(run("snapshot", "show", image, "--json").stdout)
    (tmp_path / "found.json").write_text(run("lookup", image, "--json").stdout)
    for name in ("shown.json", "found.json", str(tmp_path / "shown.json")):
        result = run("snapshot", "diff", name, image)
        assert result.stdout.splitlines()[-1] == "no difference", result.stderr
    saved(tmp_path / "one.json", msgspec.to_builtins(both[0][1]))
    result = run("snapshot", "diff", "one.json", image, "--gpu", "sm89")
    assert result.stdout.splitlines()[-1] == "no difference"


def test_files_need_no_store(run: Run, tmp_path: Path) -> None:
    for name, snapshots in (("a", nine_plans()), ("b", nine_plans(image="B"))):
        saved(tmp_path / f"{name}.json", {"snapshots": [msgspec.to_builtins(s) for s in snapshots]})
    result = run("snapshot", "diff", "a.json", "./b.json", "--store", "s3://nowhere/at-all")
    assert result.exit_code == 0, result.stderr
    assert "9 of 9 plans carry over unchanged" in result.stdout
    assert not (tmp_path / ".planyard").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "cannot be read"),
        (b"{", "no JSON of snapshots"),
        (b"[1]", "no JSON of snapshots"),
        (b'{"snapshots": 5}', "no JSON of snapshots"),
        (b'{"snapshots": [{"schema": 7}]}', "schema 7"),
        (b'{"snapshots": []}', "x.json: there is no snapshot in it"),
        (b'{"schema": 1, "image": "x"}', "not a snapshot"),
        (b'{"snapshots": ' + b"[" * 100_000, "no JSON of snapshots"),
    ],
)
def test_a_file_that_is_none_is_named(run: Run, tmp_path: Path, data: Any, said: str) -> None:
    if data is not None:
        (tmp_path / "x.json").write_bytes(data)
    saved(tmp_path / "a.json", {"snapshots": [msgspec.to_builtins(a_cpu_image())]})
    result = run("snapshot", "diff", "x.json", "a.json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "x.json" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ("sha256:" + "0" * 64, 9, "none of its 2 images is near"),
        ("0123456789ab", 9, "has no image sha256:0123456789ab"),
        ("nightly", 2, "nor a channel of"),
        ("folder/none", 2, "folder/none: cannot be read"),
    ],
)
def test_what_nobody_knows(run: Run, both: Any, asked: str, code: int, said: str) -> None:
    result = run("snapshot", "diff", both[0][0].image, asked)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert "mend:" in result.stderr


def test_the_start_of_several_is_refused(run: Run, store: Any) -> None:
    for end in ("0", "1"):
        store.put_entry(index.SNAPSHOTS, "sha256:" + "a" * 63 + end, b"{}")
    result = run("snapshot", "diff", "a" * 12, "a" * 12)
    assert result.exit_code == 2
    assert "is the start of several" in result.stderr


def test_only_one_gpu(run: Run, both: Any) -> None:
    before, after = (side[0].image for side in both)
    assert "3 plans to rebuild" in run("snapshot", "diff", before, after, "--gpu", "sm89").stdout
    result = run("snapshot", "diff", before, after, "--gpu", "sm90")
    assert result.exit_code == 2
    assert "sm120, sm86, sm89" in result.stderr


# Documents and exit codes


def test_the_document_fits_its_schema(run: Run, both: Any) -> None:
    result = run("snapshot", "diff", *(side[0].image for side in both), "--json")
    document = json.loads(result.stdout)
    jsonschema.Draft202012Validator(all_schemas()["snapshot-diff"]).validate(document)
    assert (document["schema"], document["severity"], result.stderr) == (1, "attention", "")
    assert document["changes"][0]["rebuild"] == document["rebuild"]
    assert document["seconds"] == 360.0


def test_what_breaks_ends_with_4_only_when_asked(run: Run, both: Any, store: Any) -> None:
    before, after = both
    failed = [
        replace(
            each,
            created="2026-11-22T00:00:00Z",
            smoke=tuple(a_verdict(v.cell, "failed") for v in each.smoke),
        )
        for each in after
    ]
    for args, code in (((before, after), 0), ((before, before), 0)):
        result = run("snapshot", "diff", *(side[0].image for side in args), "--exit-code")
        assert result.exit_code == code, result.stdout
    for snapshot in failed:
        smoke = tuple(replace(each, log_digest="") for each in snapshot.smoke)
        index.put_snapshot(store, replace(snapshot, smoke=smoke))
    sides = [side[0].image for side in both]
    assert run("snapshot", "diff", *sides).exit_code == 0
    assert run("snapshot", "diff", *sides, "--exit-code").exit_code == 4
    assert run("snapshot", "diff", *sides, "--exit-code", "--json").exit_code == 4
    assert run("snapshot", "diff", *sides[::-1], "--exit-code").exit_code == 0
    assert "BREAKS" in run("snapshot", "diff", *sides).stdout


def test_show_is_one_document(run: Run, both: Any) -> None:
    result = run("snapshot", "show", both[0][0].image, "--gpu", "sm89")
    document = json.loads(result.stdout)
    jsonschema.Draft202012Validator(all_schemas()["snapshot"]).validate(document)
    assert [each["gpu"] for each in document["snapshots"]] == ["sm89"]
    assert run("snapshot", "show", both[0][0].image, "--gpu", "x").exit_code == 2


# Labels


def test_labels_are_yaml_on_stdout(run: Run, both: Any) -> None:
    result = run("labels", both[0][0].image)
    assert result.exit_code == 0
    affinity = yaml.safe_load(result.stdout)["affinity"]
    required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert len(required["nodeSelectorTerms"]) == 3
    assert result.stderr.count("NOT PROVED") == 3


def test_labels_as_a_document(run: Run, both: Any) -> None:
    result = run("labels", both[0][0].image[:20], "--json", "--memory", "8 GB", "--old-names")
    document = json.loads(result.stdout)
    jsonschema.Draft202012Validator(all_schemas()["labels"]).validate(document)
    assert {each["memory_bytes"] for each in document["gpus"]} == {8_000_000_000}
    assert "nvidia.com/cuda.driver.major" in result.stdout


def test_labels_of_an_image_for_the_cpu(run: Run, store: Any) -> None:
    [snapshot] = stored(store, [a_cpu_image()])
    result = run("labels", snapshot.image)
    assert "It needs no GPU" in result.stdout
    assert yaml.safe_load(result.stdout) == {"affinity": {}}
    assert (result.exit_code, result.stderr) == (0, "")


def test_an_image_that_fits_nothing_has_no_labels(run: Run, store: Any) -> None:
    [snapshot] = nine_plans(sms=(89,))
    smoke = tuple(a_verdict(each.cell, "failed") for each in snapshot.smoke)
    [kept] = stored(store, [replace(snapshot, smoke=smoke)])
    result = run("labels", kept.image)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "left out: sm89" in result.stderr
    assert "fits no GPU" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["0" * 64], 9, "has no image"),
        (["nightly"], 2, "nor a channel"),
        (["IMAGE", "--memory", "8"], 2, "--memory: '8' is not a size"),
    ],
)
def test_labels_that_cannot_be_made(
    run: Run, both: Any, args: list[str], code: int, said: str
) -> None:
    result = run("labels", *[both[0][0].image if each == "IMAGE" else each for each in args])
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr


# A store that may only be read


def test_nothing_is_written_into_the_store(run: Run, both: Any, store: Any, tmp_path: Path) -> None:
    root = tmp_path / ".planyard" / "store"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    sides = [side[0].image for side in both]
    read_only = ("--store", f"file://{root}?read-only=yes")
    assert run("snapshot", "diff", *sides, *read_only).exit_code == 0
    assert run("snapshot", "show", sides[0], *read_only).exit_code == 0
    assert run("labels", sides[0], *read_only).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("words", ["snapshot diff", "snapshot show", "labels"])
def test_help_shows_an_example(run: Run, words: str) -> None:
    assert "Example" in run(*words.split(), "--help").stdout
