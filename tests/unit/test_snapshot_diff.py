"""A comparison names consequences: every kind of change, every field, nothing where nothing is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.cli.snapshot_text import show_diff
from builders.schemas import all_schemas
from engines.diffing import changes, plans
from engines.diffing.consequences import consequence_of, load_consequences
from engines.diffing.pins import SUBJECTS, WORKSPACE
from engines.recipe import PlanRecipe
from engines.snapshot import BudgetFigures, Commit, DeviceReport, Snapshot, VersionFound
from engines.snapshot_diff import COMPARED, IGNORED, Change, SnapshotDiff, diff_snapshots
from planyard.core.digest import digest_of_bytes, digest_of_value
from planyard.core.errors import InputError
from planyard.core.findings import Finding
from planyard.core.matrix import Backend, Pins
from planyard.core.results import (
    AttentionFigures,
    LatencyFigures,
    LoadedLibrary,
    NodePlacement,
    PlanRecord,
    SmokeVerdict,
    UtilizationFigures,
)
from planyard.edge.console import Console
from tests.capability_sites import (
    PINS,
    PROFILES,
    a_cpu_image,
    a_plan,
    a_snapshot,
    a_verdict,
    an_ort_gpu,
    nine_plans,
    proved_fully,
    recipe_of,
)

REPOSITORY = Path(__file__).parents[2]
VALIDATOR = jsonschema.Draft202012Validator(all_schemas()["snapshot-diff"])
replace = msgspec.structs.replace


def texts(diff: SnapshotDiff) -> list[str]:
    return [str(each) for each in diff.changes]


def only(diff: SnapshotDiff, kind: str) -> Change:
    [found] = [each for each in diff.changes if each.kind == kind]
    return found


def compare(before: Any, after: Any) -> SnapshotDiff:
    sides = [[each] if isinstance(each, Snapshot) else each for each in (before, after)]
    return diff_snapshots(*sides)


def cell_change(**fields: Any) -> SnapshotDiff:
    """The one measured cell, with other fields of its verdict."""
    snapshot = proved_fully()
    return compare(snapshot, replace(snapshot, smoke=(replace(snapshot.smoke[0], **fields),)))


# The two examples of the issue, to the letter


def test_a_driver_branch_is_plans_to_validate() -> None:
    cells = [a_plan(profile) for profile in (*PROFILES, "1600")]
    before = a_snapshot(cells, pins=PINS | {"driver": "570"})
    diff = compare(before, replace(before, pins=PINS | {"driver": "580"}))
    assert texts(diff) == [
        "driver branch 570 → 580: 4 plans to validate again, none to rebuild",
    ]
    assert diff.validate == tuple(sorted(plan.cell for plan in cells))
    assert (diff.rebuild, diff.seconds, diff.severity) == ((), None, "attention")
    assert len(diff.carried) == 4


@pytest.mark.parametrize("built", [True, False], ids=["built already", "not built yet"])
def test_a_release_of_tensorrt_for_rtx_is_plans_to_rebuild(built: bool) -> None:
    new = {"tensorrt_rtx": "1.8.0.0"}
    after = nine_plans(image="B", pins=new, version="1.8.0.0")
    if not built:
        after = [replace(snapshot, plans=()) for snapshot in after]
    diff = compare(nine_plans(), after)
    assert texts(diff)[0] == (
        "TensorRT for RTX 1.7.1.116 → 1.8.0.0: 9 plans to rebuild, "
        "about 6 minutes by the last build's times"
    )
    assert diff.seconds == 360
    assert len(diff.rebuild) == 9
    assert len(diff.rebuilt) == (9 if built else 0)
    assert diff.carried == ()
    assert "in the release that compiled it" in only(diff, "pin").why


# Pins


def test_both_pins_at_once_are_two_changes_and_one_total() -> None:
    new = {"tensorrt_rtx": "1.8.0.0", "driver": "590"}
    diff = compare(nine_plans(), nine_plans(image="B", pins=new, version="1.8.0.0"))
    branch, release = [each for each in diff.changes if each.kind == "pin"]
    assert branch.consequence == "9 plans to validate again, none to rebuild"
    assert (len(release.rebuild), len(diff.rebuild), diff.validate) == (9, 9, ())


def test_classic_plans_know_their_driver() -> None:
    driven = {"backend": "tensorrt", "version": PINS["tensorrt"]}
    old = a_plan(built_on={"driver": "580", "cuda": "13.0"}, **driven)
    new = a_plan(built_on={"driver": "590", "cuda": "13.0"}, **driven)
    found, not_run = PINS | {"driver": "590"}, a_verdict(verdict="not run")
    for plans_there in ([new], []):
        diff = compare(a_snapshot([old]), a_snapshot(plans_there, pins=found, smoke=(not_run,)))
        change = only(diff, "pin")
        assert change.consequence == "1 plan to rebuild, about 40 seconds by the last build's times"
        assert "3911" in change.source
    assert diff.rebuilt == ()


def test_a_recipe_that_is_the_same_goes_before_the_table() -> None:
    """The table says rebuild; the plan is there, of the same recipe."""
    old = a_plan(backend="tensorrt")
    diff = compare(a_snapshot([old]), a_snapshot([old], pins=PINS | {"cuda": "13.1"}))
    assert only(diff, "pin").consequence == "1 plan to validate again, none to rebuild"


@pytest.mark.parametrize(
    ("pin", "value", "said"),
    [
        ("onnxruntime", "1.32.0", "ONNX Runtime 1.31.1 → 1.32.0: 1 cell to run again"),
        ("cudnn", "9.29.0", "cuDNN 9.28.0.42 → 9.29.0: 1 cell to run again"),
        ("cuda", "13.1", "CUDA 13.0 → 13.1: 1 cell to run again"),
        ("python", "3.12", "Python 3.11 → 3.12: 1 cell to run again"),
        ("tensorrt_rtx", "1.8", "TensorRT for RTX 1.7.1.116 → 1.8: nothing to rebuild or validate"),
        ("hal", "9000", "hal absent → 9000: 1 cell to run again"),
    ],
)
def test_onnxruntime_has_cells_to_run_again(pin: str, value: str, said: str) -> None:
    [before] = an_ort_gpu()
    diff = compare(before, replace(before, pins=PINS | {pin: value}))
    assert said in texts(diff)
    assert only(diff, "pin").why


def test_a_cpu_image_does_not_mind_the_driver() -> None:
    before = a_cpu_image()
    diff = compare(before, replace(before, pins=PINS | {"driver": "590", "cuda": "13.1"}))
    assert diff.severity == "none"
    assert diff.validate == ()


def test_pins_that_contradict_each_other_break() -> None:
    [before] = an_ort_gpu()
    diff = compare(before, replace(before, pins=PINS | {"driver": "570"}))
    assert diff.severity == "breaks"
    assert diff.changes[0].kind == "compatibility"
    assert "driver branch 570 is too old for CUDA 13.0" in diff.changes[0].consequence
    assert "docs.nvidia.com" in diff.changes[0].source


def test_a_release_without_code_for_the_sm_breaks() -> None:
    before = a_snapshot([a_plan(sm=80)], sm=80)
    after = replace(before, pins=PINS | {"tensorrt_rtx": "1.1.0"})
    change = compare(before, after).changes[0]
    assert "1.1.0 has no code for SM 8.0" in change.consequence
    assert compare(after, after).changes == ()


# Every pin and backend has one row, with a source, and the document shows it


PAIRS = [
    (name, backend)
    for name in (*Pins.__struct_fields__, WORKSPACE)
    for backend in get_args(Backend)
]


@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_each_pin_means_one_thing_for_each_backend(name: str, backend: Backend) -> None:
    rows = [row for row in load_consequences() if row.of == name and backend in row.backends]
    assert len(rows) == 1
    assert consequence_of(name, backend) is rows[0]
    assert rows[0].why
    assert re.search(r"https://\S+\.\S+|^measured, .*\d{4}-\d\d-\d\d$|\w+/\w+\.\w+", rows[0].source)


def test_no_row_speaks_of_something_else() -> None:
    assert {(row.of, each) for row in load_consequences() for each in row.backends} == set(PAIRS)
    assert set(SUBJECTS) == {name for name, _ in PAIRS}


def test_the_document_has_the_table() -> None:
    document = (REPOSITORY / "docs/capability.md").read_text()
    cells = {backend: number for number, backend in enumerate(get_args(Backend), start=2)}
    rows = [
        [cell.strip() for cell in line.split("|")]
        for line in document.splitlines()
        if line.startswith("| `") and line.count("|") == len(cells) + 2
    ]
    told = {
        (row[1].strip("`"), backend): row[number]
        for row in rows
        for backend, number in cells.items()
    }
    assert told == {
        (name, backend): consequence_of(name, backend).effect for name, backend in PAIRS
    }


def test_every_field_of_a_recipe_has_a_name() -> None:
    fields = {*PlanRecipe.__struct_fields__, "schema"}
    assert set(plans.SUBJECTS) | {"model", "profile"} == fields


# Recipes and plans


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"model": digest_of_bytes(b"other")}, "model ocr 9372c470eead → d9298a10d1b0: "),
        ({"flags": ["strict"]}, 'builder flags [] → ["strict"]: '),
        ({"workspace_bytes": 4 << 30}, "compiler workspace 2147483648 → 4294967296: "),
        ({"optimization_level": 5}, "optimization level null → 5: "),
        (
            {"profile": {"x": {"min": [1, 3, 640], "max": [8, 3, 640]}}},
            "profile 640 of ocr x.max [4,3,640] → x.max [8,3,640]: ",
        ),
        ({"timing_cache": "none"}, "timing cache absent → none: "),
        ({"brand_new": 1}, "brand new absent → 1: "),
    ],
)
def test_what_differs_in_a_recipe_is_named(recipe: dict[str, Any], said: str) -> None:
    inputs = recipe_of() | recipe
    plan = replace(a_plan(), inputs=inputs, recipe=digest_of_value(inputs))
    diff = compare(a_snapshot([a_plan()]), a_snapshot([plan]))
    assert texts(diff) == [f"{said}1 plan to rebuild, about 40 seconds by the last build's times"]


def test_the_image_of_the_compiler_follows_the_compiler() -> None:
    diff = compare(
        nine_plans(),
        nine_plans(
            pins={"tensorrt_rtx": "1.8"}, version="1.8", builder_image=digest_of_bytes(b"new")
        ),
    )
    followed = only(diff, "recipe")
    assert followed.subject == "compiler image"
    assert followed.consequence == "9 plans to rebuild, for other reasons as well"
    alone = compare(nine_plans(), nine_plans(builder_image=digest_of_bytes(b"new")))
    assert only(alone, "recipe").consequence.startswith("9 plans to rebuild, about 6 minutes")


def test_two_recipes_of_the_same_inputs_differ_all_the_same() -> None:
    plan = a_plan()
    forged = replace(plan, recipe=digest_of_bytes(b"forged"))
    diff = compare(a_snapshot([plan]), a_snapshot([forged]))
    assert only(diff, "recipe").subject == "recipe"
    assert diff.rebuild == (plan.cell,)


def test_the_same_recipe_in_other_bytes_is_validated_again() -> None:
    diff = compare(a_snapshot([a_plan()]), a_snapshot([a_plan(data=b"again")]))
    change = only(diff, "plans")
    assert change.consequence == "1 plan to validate again, none to rebuild"
    assert diff.rebuild == ()
    assert len(diff.carried) == 1


@pytest.mark.parametrize(
    ("size", "said", "severity"),
    [
        (13_000_000, "size of 1 plan 11.0 MB → 13.0 MB: more to pull and to load", "attention"),
        (11_500_000, "size of 1 plan 11.0 MB → 11.5 MB: more to pull and to load", "none"),
        (11_000_001, "size of 1 plan 11000000 B → 11000001 B: more to pull and to load", "none"),
        (9_000_000, "size of 1 plan 11.0 MB → 9.0 MB: less to pull", "none"),
    ],
)
def test_what_plans_weigh(size: int, said: str, severity: str) -> None:
    plan = replace(a_plan(), size_bytes=size)
    diff = compare(a_snapshot([a_plan()]), a_snapshot([plan]))
    assert (texts(diff), diff.severity) == ([said], severity)


def test_another_image_says_what_carries_over() -> None:
    diff = compare(nine_plans(), nine_plans(image="B"))
    assert only(diff, "image").consequence == "9 of 9 plans carry over unchanged"
    assert diff.severity == "none"
    again = [
        replace(each, image_recipe=nine_plans()[0].image_recipe) for each in nine_plans(image="B")
    ]
    assert "the recipe is the same" in only(compare(nine_plans(), again), "image").consequence


def test_a_plan_that_is_missing_breaks() -> None:
    before = a_snapshot([a_plan(), a_plan("960")])
    diff = compare(before, replace(before, plans=before.plans[:1]))
    change = only(diff, "plans")
    assert (change.severity, change.rebuild) == ("breaks", ("rtx/ocr/960/fp16/sm89",))
    assert (
        only(compare(replace(before, plans=before.plans[:1]), before), "plans").severity == "none"
    )


def test_other_backends_share_nothing() -> None:
    before = a_snapshot([a_plan()], smoke=(a_verdict(),))
    [after] = an_ort_gpu()
    after = replace(after, smoke=(a_verdict("ort-gpu/ocr/640/fp16/sm89", "not run"),))
    diff = compare(before, after)
    assert "backend tensorrt-rtx → onnxruntime-cuda: 1 plan nobody needs, 1 cell to run again" in (
        texts(diff)
    )
    assert (diff.rebuild, diff.unneeded) == ((), ("ort-gpu/ocr/640/fp16/sm89",))
    assert {each.what for each in diff.not_compared} >= {"rtx and ort-gpu"}


# GPUs, models, profiles, precisions


def test_an_sm_that_is_gone_leaves_plans_nobody_needs() -> None:
    diff = compare(nine_plans(), nine_plans(sms=(86, 89)))
    assert texts(diff) == [
        "GPU sm120 (SM 12.0) present → absent: 3 plans nobody needs, 3 cells not served any more"
    ]
    assert diff.severity == "breaks"
    assert len(diff.unneeded) == 3


def test_an_sm_that_the_pins_have_no_code_for_says_so() -> None:
    new = {"tensorrt_rtx": "1.1.0"}
    before = nine_plans(sms=(80, 89))
    diff = compare(before, nine_plans(sms=(89,), pins=new, version="1.1.0"))
    gone = next(each for each in diff.changes if each.kind == "cells")
    assert "1.1.0 has no code for SM 8.0" in gone.why
    assert "Support Matrix" in gone.source


def test_why_an_sm_is_gone_is_not_guessed() -> None:
    gone = compare(nine_plans(sms=(80, 89)), nine_plans(sms=(89,)))
    assert only(gone, "cells").why == "not in the matrix any more, or not built yet"
    after = [replace(each, pins={}) for each in nine_plans(sms=(89,))]
    assert any("GPU sm80" in each for each in texts(compare(nine_plans(sms=(80, 89)), after)))
    two = [a_cpu_image(), a_cpu_image(gpu="cpu2", smoke=(a_verdict("ort-cpu/ocr/640/fp32/cpu2"),))]
    assert only(compare(two, two[:1]), "cells").subject == "GPU cpu2"


def test_an_sm_that_is_new_lacks_its_plans() -> None:
    after = nine_plans()
    bare = [after[0], after[1], replace(after[2], plans=())]
    diff = compare(nine_plans(sms=(86, 89)), bare)
    assert texts(diff) == [
        "GPU sm120 (SM 12.0) absent → present: 3 plans missing, "
        "about 2 minutes by the last build's times"
    ]
    assert len(diff.rebuild) == 3
    whole = compare(nine_plans(sms=(86, 89)), after)
    assert texts(whole) == ["GPU sm120 (SM 12.0) absent → present: 3 plans built"]
    assert whole.severity == "none"


def test_a_gpu_without_any_cell_is_gone_all_the_same() -> None:
    bare = a_snapshot(sm=120)
    assert "GPU sm120" in texts(compare([*nine_plans(sms=(89,)), bare], nine_plans(sms=(89,))))[0]


def test_the_same_name_for_another_gpu_breaks() -> None:
    before = a_snapshot([a_plan()])
    diff = compare(before, replace(before, sm=86))
    assert texts(diff)[0].startswith("GPU sm89 SM 8.9 → SM 8.6: 1 plan to validate again")
    assert diff.severity == "breaks"


def test_the_same_name_for_another_gpu_rebuilds_only_its_plans() -> None:
    other, moved = nine_plans(sms=(86, 89))
    for there in (
        [
            replace(plan, recipe=OTHER, inputs=plan.inputs | {"sm_targets": [90]})
            for plan in moved.plans
        ],
        [],
    ):
        after = replace(moved, sm=90, plans=tuple(there), smoke=moved.smoke)
        change = only(compare([other, moved], [other, after]), "cells")
        assert change.rebuild == tuple(sorted(plan.cell for plan in moved.plans))
        assert (change.validate, change.seconds) == ((), 120.0)


@pytest.mark.parametrize(
    ("cell", "subject"),
    [
        ("rtx/other/640/fp16/sm89", "model other"),
        ("rtx/ocr/1600/fp16/sm89", "profile 1600 of ocr"),
        ("rtx/ocr/640/int8/sm89", "precision int8"),
    ],
)
def test_cells_are_named_by_the_axis_that_is_new(cell: str, subject: str) -> None:
    plan = a_plan()
    before = a_snapshot([plan])
    after = replace(before, smoke=(*before.smoke, a_verdict(cell, "not run")))
    assert only(compare(before, after), "cells").subject == subject
    gone = only(compare(after, before), "cells")
    assert (gone.subject, gone.severity) == (subject, "breaks")


def test_a_single_cell_is_named_whole() -> None:
    smoke = [
        a_verdict(f"rtx/ocr/{profile}/{precision}/sm89", "not run")
        for profile in ("640", "960")
        for precision in ("fp16", "fp32")
    ]
    before = a_snapshot(smoke=tuple(smoke))
    diff = compare(before, replace(before, smoke=tuple(smoke[:3])))
    assert only(diff, "cells").subject == "ocr/960/fp32/sm89"


# Verdicts and gates


@pytest.mark.parametrize(
    ("before", "after", "said", "severity"),
    [
        ("passed", "failed", "1 cell failed: logs.provider-lost", "breaks"),
        ("passed", "not run", "1 cell not proved any more: this machine has no GPU", "breaks"),
        ("not run", "failed", "1 cell failed, the first time they were run: ", "breaks"),
        ("failed", "not run", "1 cell not tried again since", "attention"),
        ("failed", "passed", "1 cell mended", "none"),
        ("not run", "passed", "1 cell proved now", "none"),
    ],
)
def test_verdicts(before: str, after: str, said: str, severity: str) -> None:
    sides = [a_snapshot([a_plan()], smoke=(a_verdict(verdict=each),)) for each in (before, after)]
    change = only(compare(*sides), "verdict")
    assert change.consequence.startswith(said)
    assert change.severity == severity


def test_a_verdict_that_is_not_there_any_more_breaks() -> None:
    before = a_snapshot([a_plan()], smoke=(a_verdict(),))
    assert only(compare(before, replace(before, smoke=())), "verdict").severity == "breaks"


@pytest.mark.parametrize(
    ("before", "after", "said", "severity"),
    [
        ((), ("logs",), "gate logs on → off: logs does not judge any more", "breaks"),
        (("logs",), (), "gate logs off → on: logs judges again", "none"),
        (
            (),
            ("latency for rtx/*: noisy machine",),
            "gate latency on → off (rtx/*: noisy machine): latency does not judge any more",
            "breaks",
        ),
        (
            ("latency for rtx/*: noisy machine",),
            ("latency for rtx/*: other words",),
            "gate latency off (rtx/*: noisy machine) → off (rtx/*: other words): "
            "the reason is another",
            "none",
        ),
    ],
)
def test_gates_that_are_off(
    before: tuple[str, ...], after: tuple[str, ...], said: str, severity: str
) -> None:
    """On three GPUs, it is one change."""
    sides = [[replace(each, gates_off=off) for each in nine_plans()] for off in (before, after)]
    diff = compare(*sides)
    assert texts(diff) == [said]
    assert (diff.severity, only(diff, "gate").gpus) == (severity, ("sm120", "sm86", "sm89"))


def test_a_gate_is_off_on_the_gpu_that_says_so() -> None:
    one, *rest = nine_plans()
    diff = compare(nine_plans(), [replace(one, gates_off=("logs",)), *rest])
    assert only(diff, "gate").gpus == ("sm86",)


@pytest.mark.parametrize(
    ("before", "after", "severity"),
    [
        ("passed", "off", "breaks"),
        ("failed", "off", "breaks"),
        ("off", "passed", "none"),
        ("passed", "failed", "breaks"),
        ("failed", "passed", "none"),
        ("passed", "not run", "breaks"),
        ("passed", None, "breaks"),
        (None, "off", "attention"),
        (None, "passed", "none"),
    ],
)
def test_gates_of_a_cell_whose_verdict_stays(before: Any, after: Any, severity: str) -> None:
    sides = [
        a_snapshot([a_plan()], smoke=(a_verdict(gates={"outputs": each} if each else {}),))
        for each in (before, after)
    ]
    change = only(compare(*sides), "gate")
    assert (change.subject, change.severity) == ("gate outputs", severity)
    assert compare(*sides).severity == severity


def test_one_failure_is_told_once() -> None:
    diff = cell_change(
        **{
            name: getattr(a_verdict(verdict="failed"), name)
            for name in ("verdict", "gates", "findings")
        }
    )
    assert [each.kind for each in diff.changes] == ["verdict", "finding"]
    assert "logs.slow-path" in diff.changes[1].subject


def test_warnings_are_told() -> None:
    new = Finding(gate="logs", rule="tactic-skipped", message="x", severity="warn")
    diff = cell_change(findings=(new,))
    assert [(each.subject, each.severity) for each in diff.changes] == [
        ("logs.tactic-skipped", "attention"),
        ("logs.slow-path", "none"),
    ]


# Figures


def with_latency(**fields: Any) -> SnapshotDiff:
    [figures] = proved_fully().smoke[0].latency
    return cell_change(latency=(replace(figures, **fields),))


@pytest.mark.parametrize(
    ("fields", "said", "severity"),
    [
        ({"p50_ms": 2.6}, "2.00 ms → 2.60 ms: 30% slower", "attention"),
        ({"p50_ms": 1.0}, "2.00 ms → 1.00 ms: 50% faster", "none"),
        ({"p50_ms": 3.0, "reference_ms": 1.2}, "2.00 ms → 3.00 ms: 25% slower", "attention"),
        ({"reference_ms": 0.5}, "2.00 ms → 2.00 ms: 100% slower", "attention"),
        ({"batch": 4}, "absent → 2.00 ms: timed now", "attention"),
    ],
)
def test_latency(fields: dict[str, Any], said: str, severity: str) -> None:
    diff = with_latency(**fields)
    assert any(said in each for each in texts(diff))
    assert diff.severity == severity
    assert diff.changes[0].subject.startswith("P50 of ocr/640/fp16/sm89 at batch 1, 1 at once")


@pytest.mark.parametrize(
    "fields", [{"p50_ms": 2.09}, {"p50_ms": 4.0, "reference_ms": 2.0}, {"p99_ms": 90.0}]
)
def test_what_is_noise_or_a_slower_machine_is_no_difference(fields: dict[str, Any]) -> None:
    assert with_latency(**fields).changes == ()


def test_nodes_on_the_cpu_are_named() -> None:
    [conv] = proved_fully().smoke[0].placement
    moved = (
        replace(conv, count=60),
        NodePlacement(provider="CPUExecutionProvider", operator="Conv", count=2),
    )
    change = only(cell_change(placement=moved), "placement")
    assert change.severity == "attention"
    assert change.consequence.startswith("more nodes on the CPU: Conv 0 → 2")
    assert (change.before, change.after) == (
        "62 TensorRT-RTX",
        "2 CPUExecutionProvider, 60 TensorRT-RTX",
    )


def test_nodes_that_stay_on_the_cpu_are_no_loss() -> None:
    shape = NodePlacement(provider="CPUExecutionProvider", operator="Shape", count=3)
    conv = FULL.smoke[0].placement[0]
    sides = [in_verdict("placement")((shape, replace(conv, count=count))) for count in (62, 63)]
    change = only(compare(*sides), "placement")
    assert (change.severity, change.consequence) == ("none", "nodes moved: Conv 62 → 63")


@pytest.mark.parametrize(
    ("fields", "said", "severity"),
    [
        ({"memcpy_nodes": 3}, "copies in ocr/640/fp16/sm89 2 → 3: more copies", "attention"),
        ({"memcpy_nodes": 1}, "2 → 1: fewer", "none"),
        ({"memcpy_nodes": None}, "2 → absent: nobody counted", "attention"),
        (
            {"attention": AttentionFigures(blocks=32, fused=30)},
            "30 of 32 fused: 2 unf",
            "attention",
        ),
        ({"attention": None}, "32 of 32 fused → absent: nobody", "attention"),
        ({"utilization": None}, "sampled → absent: nobody watched", "attention"),
        (
            {
                "utilization": UtilizationFigures(
                    samples=1, gpu_percent=40, peak_memory_bytes=3 << 30
                )
            },
            "GPU use of ocr/640/fp16/sm89 80 % → 40 %",
            "attention",
        ),
        (
            {
                "utilization": UtilizationFigures(
                    samples=1, gpu_percent=80, peak_memory_bytes=4 << 30
                )
            },
            "3.2 GB → 4.3 GB: more device memory",
            "attention",
        ),
        (
            {"loaded": {"tensorrt_rtx": LoadedLibrary(version="1.6", path="/x")}},
            "tensorrt_rtx in memory 1.7.1.116 → 1.6: loaded by 1 cell, and 1.7.1.116 is pinned",
            "breaks",
        ),
        ({"loaded": {}}, "1.7.1.116 → absent: not loaded any more by 1 cell", "attention"),
    ],
)
def test_figures(fields: dict[str, Any], said: str, severity: str) -> None:
    diff = cell_change(**fields)
    assert said in texts(diff)[0]
    assert (len(diff.changes), diff.severity) == (1, severity)


def test_a_cell_that_was_not_run_has_no_figures_to_lose() -> None:
    before = a_snapshot([a_plan()], smoke=(a_verdict(),))
    diff = compare(before, replace(before, smoke=(a_verdict(verdict="not run"),)))
    assert [each.kind for each in diff.changes] == ["verdict"]


# The image and the devices


def found(version: str) -> dict[str, VersionFound]:
    return {"tensorrt_rtx": VersionFound(version=version, how="x")}


def test_a_version_that_is_not_the_pin_breaks() -> None:
    before = a_snapshot([a_plan()], versions_found=found("1.7.1.116"))
    diff = compare(before, replace(before, versions_found=found("1.6.0.1")))
    assert texts(diff) == [
        "tensorrt_rtx in the image 1.7.1.116 → 1.6.0.1: the image holds 1.6.0.1, "
        "and 1.7.1.116 is pinned"
    ]
    assert diff.severity == "breaks"


def test_a_pin_that_moves_away_from_what_is_there_breaks() -> None:
    before = a_snapshot([a_plan()], versions_found=found("1.7.1.116"))
    diff = compare(before, replace(before, pins=PINS | {"tensorrt_rtx": "1.8.0.0"}))
    assert any("the image holds 1.7.1.116, and 1.8.0.0 is pinned" in each for each in texts(diff))


def test_a_version_is_pinned_as_far_as_it_is_written() -> None:
    before = a_snapshot(versions_found={"python": VersionFound(version="3.11.2", how="x")})
    after = replace(before, versions_found={"python": VersionFound(version="3.11.9", how="x")})
    assert compare(before, after).severity == "none"


@pytest.mark.parametrize(
    ("device", "severity"),
    [
        (DeviceReport(count=1, driver="580.95.05", fp16=True, int8=True), "none"),
        (DeviceReport(count=1, driver="570.10.01", fp16=True, int8=True), "breaks"),
        (DeviceReport(count=1, driver="580.65.06", fp16=False, int8=True), "breaks"),
        (DeviceReport(count=2, driver="580.65.06", fp16=True, int8=True), "none"),
        (DeviceReport(count=0), "attention"),
    ],
)
def test_devices(device: DeviceReport, severity: str) -> None:
    before = proved_fully()
    diff = compare(before, replace(before, device=device))
    assert {each.kind for each in diff.changes} == {"device"}
    assert diff.severity == severity


@pytest.mark.parametrize(
    ("fields", "said", "severity"),
    [
        (
            {"pull_bytes": 150_000_000},
            "pull 111.7 MB of 140.0 MB → 150.0 MB of 140.0 MB: over its budget",
            "breaks",
        ),
        ({"pull_bytes": 135_000_000}, "96% of its budget", "attention"),
        ({"pull_bytes": 112_000_000}, "80% of its budget", "none"),
        ({"pull_bytes": 111_700_001}, "111700000 B of 140000000 B → 111700001 B of", "none"),
        ({"pull_limit_bytes": None}, "has no limit any more", "breaks"),
        ({"pull_limit_bytes": 200_000_000}, "the budget was raised", "attention"),
        ({"unpacked_bytes": 300_000_000}, "unpacked 285.5 MB → 300.0 MB: no limit", "none"),
    ],
)
def test_sizes_against_budgets(fields: dict[str, Any], said: str, severity: str) -> None:
    before = nine_plans()
    after = [replace(each, budget=replace(each.budget, **fields)) for each in before]
    diff = compare(before, after)
    assert said in texts(diff)[0]
    assert (len(diff.changes), diff.severity) == (1, severity)


# Sides


def test_the_newest_snapshot_that_names_a_cell_decides() -> None:
    """A build of one cell alone does not hide what was proved of the others."""
    whole = a_snapshot([a_plan(), a_plan("960")], created="2026-11-20T00:00:00Z")
    part = replace(
        whole, plans=whole.plans[:1], smoke=(a_verdict(),), created="2026-11-21T00:00:00Z"
    )
    assert [each.kind for each in compare([whole], [whole, part]).changes] == ["verdict"]
    assert compare([whole, part], [part, whole]).changes == ()


def test_a_gate_that_an_older_snapshot_names_is_still_off() -> None:
    whole = a_snapshot(
        [a_plan(), a_plan("960")], gates_off=("logs",), created="2026-11-20T00:00:00Z"
    )
    part = replace(
        whole,
        plans=whole.plans[:1],
        smoke=whole.smoke[:1],
        gates_off=(),
        created="2026-11-21T00:00:00Z",
    )
    assert compare([whole], [whole, part]).changes == ()


def test_what_an_older_snapshot_said_of_gates_is_over_with_its_last_cell() -> None:
    old = a_snapshot([a_plan()], gates_off=("logs",), created="2026-11-20T00:00:00Z")
    new = replace(old, gates_off=(), created="2026-11-21T00:00:00Z")
    assert compare([new], [old, new]).changes == ()


def test_sides_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="after: there is no snapshot"):
        diff_snapshots(nine_plans(), [])
    with pytest.raises(InputError, match="before: snapshots of several images"):
        diff_snapshots([*nine_plans(), *nine_plans(image="B")], nine_plans())


def test_what_hides_in_another_matrix_is_said() -> None:
    before = a_cpu_image()
    diff = compare(before, replace(before, matrix_digest=digest_of_bytes(b"other")))
    assert diff.changes == ()
    assert [each.what for each in diff.not_compared] == ["the matrices", "the models"]


def test_a_gpu_under_another_name_is_said() -> None:
    before = a_snapshot([a_plan()])
    after = replace(
        before,
        gpu="l4",
        plans=(replace(before.plans[0], cell="rtx/ocr/640/fp16/l4"),),
        smoke=(a_verdict("rtx/ocr/640/fp16/l4", "not run"),),
    )
    diff = compare(before, after)
    assert "sm89 and l4" in [each.what for each in diff.not_compared]
    assert any("1 plan built, 1 of them carried over" in each for each in texts(diff))
    assert diff.carried == ("rtx/ocr/640/fp16/l4",)


# Every field is compared, or named as ignored; and what is said of it holds


FULL = proved_fully()
OTHER = digest_of_bytes(b"other")
_LATENCY: dict[str, Any] = {
    "batch": 2,
    "concurrency": 4,
    "requests": 7,
    "p50_ms": 9.0,
    "p95_ms": 9.0,
    "p99_ms": 9.0,
    "reference_ms": 3.0,
    "baseline_p50_ms": 9.0,
    "baseline_p95_ms": 9.0,
    "baseline_runs": 9,
}
MUTATED: dict[type, dict[str, Any]] = {
    Snapshot: {
        "image": OTHER,
        "image_name": "rtx2",
        "image_recipe": OTHER,
        "gpu": "l4",
        "sm": 86,
        "pins": PINS | {"python": "3.12"},
        "versions_found": {},
        "device": DeviceReport(),
        "workspace_bytes": 4 << 30,
        "plans": (),
        "smoke": (),
        "gates_off": ("logs",),
        "audit": (Finding(gate="image", rule="image.secret", message="a key"),),
        "budget": BudgetFigures(pull_bytes=1, unpacked_bytes=1, largest_layer_bytes=1),
        "commit": None,
        "matrix_digest": OTHER,
        "created": "2026-12-01T00:00:00Z",
        "planyard_version": "9",
    },
    Commit: {"id": "b" * 40, "dirty": True},
    PlanRecord: {
        "cell": "rtx/ocr/960/fp16/sm89",
        "recipe": OTHER,
        "digest": OTHER,
        "size_bytes": 1,
        "inputs": {"schema": 2},
        "backend": "tensorrt",
        "version": "2",
        "sm": 75,
        "model": "other",
        "profile": "960",
        "precision": "int8",
        "compile_seconds": 1.0,
        "inspector": OTHER,
        "timing_cache": OTHER,
    },
    SmokeVerdict: {
        "cell": "rtx/ocr/960/fp16/sm89",
        "verdict": "failed",
        "gates": {},
        "findings": (),
        "latency": (),
        "placement": (),
        "memcpy_nodes": 9,
        "attention": None,
        "utilization": None,
        "loaded": {},
        "reason": "r",
        "seconds": 9.0,
        "latencies_ms": (9.0,),
        "log_digest": OTHER,
    },
    VersionFound: {"version": "1.8", "how": "y"},
    DeviceReport: {"count": 2, "driver": "580.99.1", "fp16": None, "int8": None},
    BudgetFigures: dict.fromkeys(BudgetFigures.__struct_fields__, 99),
    NodePlacement: {"provider": "CPUExecutionProvider", "operator": "Gemm", "count": 9},
    LoadedLibrary: {"version": "1.8", "path": "/y"},
    LatencyFigures: _LATENCY,
    AttentionFigures: {"blocks": 33, "fused": 31, "how": "h"},
    UtilizationFigures: {
        "samples": 1,
        "gpu_percent": 9.0,
        "peak_memory_bytes": 9,
        "throttled_percent": 50.0,
        "throttled_by": ("hw_thermal",),
    },
}


def in_verdict(name: str) -> Callable[[Any], Snapshot]:
    return lambda value: replace(FULL, smoke=(replace(FULL.smoke[0], **{name: value}),))


PLACES: dict[type, tuple[Any, Callable[[Any], Snapshot]]] = {
    Snapshot: (FULL, lambda value: value),
    Commit: (FULL.commit, lambda value: replace(FULL, commit=value)),
    PlanRecord: (FULL.plans[0], lambda value: replace(FULL, plans=(value,))),
    SmokeVerdict: (FULL.smoke[0], lambda value: replace(FULL, smoke=(value,))),
    VersionFound: (
        FULL.versions_found["tensorrt_rtx"],
        lambda value: replace(FULL, versions_found={"tensorrt_rtx": value}),
    ),
    DeviceReport: (FULL.device, lambda value: replace(FULL, device=value)),
    BudgetFigures: (FULL.budget, lambda value: replace(FULL, budget=value)),
    NodePlacement: (
        FULL.smoke[0].placement[0],
        lambda value: in_verdict("placement")((value,)),
    ),
    LoadedLibrary: (
        FULL.smoke[0].loaded["tensorrt_rtx"],
        lambda value: in_verdict("loaded")({"tensorrt_rtx": value}),
    ),
    LatencyFigures: (FULL.smoke[0].latency[0], lambda value: in_verdict("latency")((value,))),
    AttentionFigures: (FULL.smoke[0].attention, in_verdict("attention")),
    UtilizationFigures: (FULL.smoke[0].utilization, in_verdict("utilization")),
}
FIELDS = [(kind, field) for kind, values in MUTATED.items() for field in values]


def mutated(kind: type, field: str) -> Snapshot:
    value, put = PLACES[kind]
    new = {field: MUTATED[kind][field]}
    if (kind, field) == (PlanRecord, "inputs"):  # a recipe is the digest of its inputs
        new["recipe"] = OTHER
    return put(replace(value, **new))


def reachable(kind: Any, found: set[type]) -> set[type]:
    """Every struct below a type."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in found:
        found.add(kind)
        for field in msgspec.structs.fields(kind):
            reachable(field.type, found)
    for part in get_args(kind):
        reachable(part, found)
    return found


def test_no_field_of_a_snapshot_is_forgotten() -> None:
    below = reachable(Snapshot, set()) - {Finding}
    assert below == set(COMPARED) | set(IGNORED) == set(MUTATED) == set(PLACES)
    for kind in below:
        compared, ignored = COMPARED.get(kind, frozenset()), IGNORED.get(kind, {})
        fields = set(kind.__struct_fields__)
        assert compared | set(ignored) == fields, kind
        assert not compared & set(ignored), kind
        assert all(ignored.values()), kind
        assert set(MUTATED[kind]) == fields - {"schema"}, kind


@pytest.mark.parametrize(
    ("kind", "field"), FIELDS, ids=lambda each: getattr(each, "__name__", each)
)
def test_a_field_is_compared_or_ignored_as_said(kind: type, field: str) -> None:
    other = mutated(kind, field)
    is_compared = field in COMPARED.get(kind, frozenset())
    assert bool(compare(FULL, other).changes) is is_compared
    assert bool(compare(other, FULL).changes) is is_compared


def test_gates_and_findings_are_compared_by_their_parts() -> None:
    for findings in ((), (Finding(gate="logs", rule="x", message="m", severity="warn"),)):
        assert cell_change(findings=findings).changes
    [kept] = FULL.smoke[0].findings
    assert not cell_change(findings=(replace(kept, message="n", line=4, evidence=("e",)),)).changes


# Properties


SITES: dict[str, list[Snapshot]] = {
    "nine": nine_plans(),
    "nine of B": nine_plans(image="B"),
    "full": [FULL],
    "ort": an_ort_gpu(),
    "cpu": [a_cpu_image()],
} | {f"{kind.__name__}.{field}": [mutated(kind, field)] for kind, field in FIELDS}
NAMES = st.sampled_from(sorted(SITES))


@settings(deadline=None)
@given(NAMES)
def test_a_side_does_not_differ_from_itself(name: str) -> None:
    site = SITES[name]
    diff = diff_snapshots(site, site[::-1])
    assert diff.changes == diff.rebuild == diff.validate == diff.unneeded == diff.not_compared == ()
    assert diff.severity == "none"
    assert len(diff.carried) == sum(len(snapshot.plans) for snapshot in site)


@settings(max_examples=60, deadline=None)
@given(NAMES, NAMES)
def test_any_two_sides_can_be_compared(one: str, other: str) -> None:
    before, after = SITES[one], SITES[other]
    diff = diff_snapshots(before, after)
    assert bool(diff.changes) == bool(diff_snapshots(after, before).changes)
    assert not set(diff.rebuild) & set(diff.validate)
    assert set(diff.rebuilt) <= set(diff.rebuild)
    assert not set(diff.rebuild) & set(diff.carried) or before[0].sm != after[0].sm
    assert all(each.before != each.after or "P50" in each.subject for each in diff.changes)
    assert not any("  " in text or text.endswith(": ") for text in texts(diff))
    document = json.loads(msgspec.json.encode(diff))
    VALIDATOR.validate(document)


# Words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "about a second"),
        (40, "about 40 seconds"),
        (90, "about 2 minutes"),
        (360, "about 6 minutes"),
        (5399, "about 90 minutes"),
        (9000, "about 2.5 hours"),
    ],
)
def test_times_are_rounded(seconds: float, said: str) -> None:
    assert changes.about(seconds) == said


def test_a_report_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    new = {"tensorrt_rtx": "1.8.0.0", "driver": "590"}
    after = nine_plans(image="B", sms=(86, 89), pins=new, version="1.8.0.0")
    after = [replace(each, gates_off=("logs",)) for each in after]
    show_diff(compare(nine_plans(), after), Console(result=True))
    assert capsys.readouterr().out.splitlines() == GOLDEN.splitlines()


GOLDEN = """\
before  rtx sha256:bd85b149e5e3 (sm120, sm86, sm89), 2026-11-21T15:00:00Z, planyard 0.1.0, commit aaaaaaaaaaaa, matrix 6e00cd562cc2
after   rtx sha256:77c97e0d9948 (sm86, sm89), 2026-11-21T15:00:00Z, planyard 0.1.0, commit aaaaaaaaaaaa, matrix 6e00cd562cc2

BREAKS: it held before, and does not hold or is not proved now (2)
  ! GPU sm120 (SM 12.0) present → absent: 3 plans nobody needs, 3 cells not served any more
      rtx/ocr/1280/fp16/sm120, rtx/ocr/640/fp16/sm120, rtx/ocr/960/fp16/sm120
      not in the matrix any more, or not built yet
  ! gate logs on → off: logs does not judge any more
      rtx/ocr/1280/fp16/sm86, rtx/ocr/1280/fp16/sm89, rtx/ocr/640/fp16/sm86 and 3 more

work to do, or worth a look (2)
  - driver branch 580 → 590: 6 plans to validate again, none to rebuild
      rtx/ocr/1280/fp16/sm86, rtx/ocr/1280/fp16/sm89, rtx/ocr/640/fp16/sm86 and 3 more
      plans are compiled without a driver, and their kernels on the device at run time: what was proved was proved under the other branch
  - TensorRT for RTX 1.7.1.116 → 1.8.0.0: 6 plans to rebuild, about 4 minutes by the last build's times
      rtx/ocr/1280/fp16/sm86, rtx/ocr/1280/fp16/sm89, rtx/ocr/640/fp16/sm86 and 3 more
      a plan loads only in the release that compiled it

for the record (1)
  - image rtx bd85b149e5e3 → rtx 77c97e0d9948: 0 of 6 plans carry over unchanged

in all
  6 plans to rebuild, about 4 minutes of compiling; 6 of them are built already
  6 cells to validate; 0 of them have passed already
  3 plans nobody needs
"""  # noqa: E501
