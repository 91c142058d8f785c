"""Node labels: Kubernetes takes the affinity, and it chooses only nodes that an image fits."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from builders.cli.snapshot_text import labels_to_yaml
from builders.schemas import all_schemas
from engines.node_labels import NodeLabels, node_labels
from engines.snapshot import Snapshot, VersionFound
from planyard.core.errors import InputError
from planyard.core.results import UtilizationFigures
from tests.capability_sites import (
    PINS,
    a_cpu_image,
    a_plan,
    a_snapshot,
    a_verdict,
    an_ort_gpu,
    nine_plans,
)

replace = msgspec.structs.replace


# Nodes as GPU feature discovery labels them: docs/gpu-feature-discovery/README.md and the tests of
# https://github.com/NVIDIA/k8s-device-plugin; memory as nvidia-smi shows it, in MiB.


def gfd(
    product: str,
    sm: int,
    memory: int,
    *,
    driver: str = "580.65.06",
    cuda: str = "13.0",
    **more: str,
) -> dict[str, str]:
    """What feature discovery 0.17 puts on a node."""
    branch, minor, revision = driver.split(".")
    major, _, cuda_minor = cuda.partition(".")
    return {
        "kubernetes.io/arch": "amd64",
        "nvidia.com/cuda.driver.major": branch,
        "nvidia.com/cuda.driver.minor": minor,
        "nvidia.com/cuda.driver.rev": revision,
        "nvidia.com/cuda.driver-version.major": branch,
        "nvidia.com/cuda.driver-version.minor": minor,
        "nvidia.com/cuda.driver-version.revision": revision,
        "nvidia.com/cuda.driver-version.full": driver,
        "nvidia.com/cuda.runtime.major": major,
        "nvidia.com/cuda.runtime.minor": cuda_minor,
        "nvidia.com/cuda.runtime-version.major": major,
        "nvidia.com/cuda.runtime-version.minor": cuda_minor,
        "nvidia.com/cuda.runtime-version.full": cuda,
        "nvidia.com/gfd.timestamp": "1763758800",
        "nvidia.com/gpu.compute.major": str(sm // 10),
        "nvidia.com/gpu.compute.minor": str(sm % 10),
        "nvidia.com/gpu.count": "1",
        "nvidia.com/gpu.memory": str(memory),
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/mig.capable": str(sm == 90).lower(),
        "nvidia.com/mps.capable": "false",
    } | more


OLD = re.compile(r"nvidia\.com/cuda\.(driver|runtime)-version\.")
"""What feature discovery before 0.15 did not write."""
L4 = gfd("NVIDIA-L4", 89, 23034)
NODES: dict[str, dict[str, str]] = {
    "no GPU": {"kubernetes.io/arch": "amd64"},
    "T4": gfd("Tesla-T4", 75, 15360),
    "A10": gfd("NVIDIA-A10", 86, 23028),
    "A10, driver 570": gfd("NVIDIA-A10", 86, 23028, driver="570.172.08", cuda="12.8"),
    "L4": L4,
    "L4, driver 570": gfd("NVIDIA-L4", 89, 23034, driver="570.172.08", cuda="12.8"),
    "L4, driver 590": gfd("NVIDIA-L4", 89, 23034, driver="590.44.01", cuda="13.1"),
    "L4, driver 1000": gfd("NVIDIA-L4", 89, 23034, driver="1000.1.1", cuda="14.0"),
    "L4, old names": {key: value for key, value in L4.items() if not OLD.match(key)},
    "RTX 4090": gfd("NVIDIA-GeForce-RTX-4090", 89, 24564),
    "RTX 4060": gfd("NVIDIA-GeForce-RTX-4060", 89, 8188),
    "H100": gfd("NVIDIA-H100-80GB-HBM3", 90, 81559),
    "H100, single slices": gfd(
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb",
        90,
        9984,
        **{
            "nvidia.com/mig.strategy": "single",
            "nvidia.com/gpu.count": "7",
            "nvidia.com/gpu.slices.gi": "1",
            "nvidia.com/gpu.multiprocessors": "16",
        },
    ),
    "H100, invalid slices": gfd(
        "NVIDIA-H100-80GB-HBM3-MIG-INVALID",
        90,
        0,
        **{"nvidia.com/mig.strategy": "single", "nvidia.com/gpu.count": "0"},
    ),
    "H100, mixed slices": gfd(
        "NVIDIA-H100-80GB-HBM3",
        90,
        81559,
        **{
            "nvidia.com/mig.strategy": "mixed",
            "nvidia.com/mig-1g.10gb.count": "7",
            "nvidia.com/mig-1g.10gb.memory": "9984",
        },
    ),
    "RTX 5090": gfd("NVIDIA-GeForce-RTX-5090", 120, 32607),
    "unreadable": L4 | {"nvidia.com/cuda.driver-version.major": "N/A"},
}
"""Those with SM 8.9 and a driver of 580 or newer that everybody can read: FITS_89."""
FITS_89 = {"L4", "L4, driver 590", "L4, driver 1000", "RTX 4090", "RTX 4060"}


# What Kubernetes does with it: k8s.io/component-helpers, scheduling/corev1/nodeaffinity, and
# https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/


def holds(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression["values"]
    if expression["operator"] == "In":
        return value in values
    assert expression["operator"] == "Gt"
    return value is not None and bool(re.fullmatch(r"-?\d+", value)) and int(value) > int(values[0])


def terms_of(affinity: dict[str, Any]) -> list[dict[str, Any]]:
    required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return required["nodeSelectorTerms"]


def chosen(affinity: dict[str, Any]) -> set[str]:
    """The nodes that a pod with this affinity may be placed on."""
    if not affinity:
        return set(NODES)
    return {
        name
        for name, labels in NODES.items()
        if any(
            all(holds(each, labels) for each in term["matchExpressions"])
            for term in terms_of(affinity)
        )
    }


VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
KUBERNETES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "nodeAffinity": {
            "type": "object",
            "additionalProperties": False,
            "required": ["requiredDuringSchedulingIgnoredDuringExecution"],
            "properties": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["nodeSelectorTerms"],
                    "properties": {
                        "nodeSelectorTerms": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["matchExpressions"],
                                "properties": {
                                    "matchExpressions": {
                                        "type": "array",
                                        "minItems": 1,
                                        "items": {"$ref": "#/$defs/expression"},
                                    }
                                },
                            },
                        }
                    },
                }
            },
        }
    },
    "$defs": {
        "expression": {
            "type": "object",
            "additionalProperties": False,
            "required": ["key", "operator", "values"],
            "properties": {
                "key": {"type": "string", "pattern": r"^[a-z0-9.]{1,253}/[A-Za-z0-9._-]{1,63}$"},
                "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]},
                "values": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string", "maxLength": 63, "pattern": f"^{VALUE}$"},
                },
            },
            "if": {"properties": {"operator": {"enum": ["Gt", "Lt"]}}},
            "then": {
                "properties": {"values": {"maxItems": 1, "items": {"pattern": r"^-?[0-9]{1,18}$"}}}
            },
        }
    },
}
"""What Kubernetes takes: its OpenAPI, and the rules it validates beyond it, as a strict schema."""


def affinity_of(found: NodeLabels) -> dict[str, Any]:
    """The affinity as a user pastes it: out of the YAML; the same as in the document."""
    pasted = yaml.safe_load(labels_to_yaml(found))
    assert set(pasted) == {"affinity"}
    document = json.loads(msgspec.json.encode(found))
    jsonschema.Draft202012Validator(all_schemas()["labels"]).validate(document)
    assert document["affinity"] == pasted["affinity"]
    jsonschema.Draft202012Validator(KUBERNETES).validate(pasted["affinity"])
    return pasted["affinity"]


def nodes(snapshots: Sequence[Snapshot], **options: Any) -> set[str]:
    return chosen(affinity_of(node_labels(snapshots, **options)))


# Which nodes are chosen


def test_plans_for_three_sms_are_three_terms() -> None:
    affinity = affinity_of(node_labels(nine_plans()))
    assert len(terms_of(affinity)) == 3
    assert chosen(affinity) == FITS_89 | {"A10", "RTX 5090"}


def test_plans_for_one_sm_run_nowhere_else() -> None:
    assert nodes(nine_plans(sms=(89,))) == FITS_89
    assert nodes(nine_plans(sms=(86,))) == {"A10"}


def test_onnxruntime_runs_on_the_sms_of_the_matrix() -> None:
    assert nodes(an_ort_gpu(sms=(75, 90))) == {
        *("T4", "H100", "H100, single slices", "H100, invalid slices", "H100, mixed slices"),
    }


def test_an_older_branch_takes_older_drivers() -> None:
    pins = {"driver": "570", "cuda": "12.8"}
    assert nodes(nine_plans(sms=(89,), pins=pins)) == FITS_89 | {"L4, driver 570"}


def test_classic_plans_want_exactly_their_branch() -> None:
    plan = a_plan(backend="tensorrt", version=PINS["tensorrt"])
    assert nodes([a_snapshot([plan])]) == {"L4", "RTX 4090", "RTX 4060"}


@pytest.mark.parametrize(
    ("cuda", "fits"),
    [
        ("13.1", {"L4, driver 590", "L4, driver 1000"}),
        ("13.2", {"L4, driver 1000"}),
        ("12.9", FITS_89),
    ],
)
def test_the_driver_has_to_run_the_pinned_cuda(cuda: str, fits: set[str]) -> None:
    """As admission asks at start: a newer major counts whatever its minor."""
    assert nodes(nine_plans(sms=(89,), pins={"cuda": cuda})) == fits


def test_old_names_are_for_old_feature_discovery() -> None:
    assert nodes(nine_plans(sms=(89,)), old_names=True) == FITS_89 | {"L4, old names", "unreadable"}


def with_peak(peak: int | None, **fields: Any) -> Any:
    return a_verdict(
        utilization=UtilizationFigures(samples=3, gpu_percent=80.0, peak_memory_bytes=peak),
        **fields,
    )


def test_the_peak_of_the_smoke_runs_is_the_least_memory() -> None:
    ran = a_snapshot(
        [a_plan(), a_plan("960")],
        smoke=(
            with_peak(20 << 30),
            with_peak(1 << 30, cell="rtx/ocr/960/fp16/sm89"),
        ),
    )
    assert nodes([ran]) == FITS_89 - {"RTX 4060"}
    [fit] = node_labels([ran]).gpus
    assert (fit.memory_bytes, fit.proved) == (20 << 30, "passed")


def test_memory_may_be_asked_for() -> None:
    assert nodes(nine_plans(sms=(89,)), memory_bytes=24 << 30) == set()
    assert nodes(nine_plans(sms=(89,)), memory_bytes=23034 << 20) == FITS_89 - {"RTX 4060"}
    assert nodes(nine_plans(sms=(89,)), memory_bytes=(23034 << 20) + 1) == {"RTX 4090"}
    h100 = {"H100", "H100, mixed slices"}
    assert nodes(an_ort_gpu(sms=(90,)), memory_bytes=16 << 30) == h100
    assert nodes(an_ort_gpu(sms=(90,)), memory_bytes=1) == h100 | {"H100, single slices"}


def test_what_is_asked_for_goes_before_what_was_measured() -> None:
    ran = a_snapshot([a_plan()], smoke=(with_peak(20 << 30),))
    assert nodes([ran], memory_bytes=8000 << 20) == FITS_89


def test_a_cpu_image_runs_anywhere() -> None:
    found = node_labels([a_cpu_image()])
    assert not found.needs_gpu
    assert affinity_of(found) == {}
    assert "# It needs no GPU" in labels_to_yaml(found)


# What is left out


def test_a_gpu_on_which_a_cell_failed_is_left_out() -> None:
    good, bad = nine_plans(sms=(86, 89))
    failed = replace(bad, smoke=(*bad.smoke[1:], a_verdict(bad.smoke[0].cell, "failed")))
    found = node_labels([good, failed])
    assert chosen(affinity_of(found)) == {"A10"}
    assert [(each.gpu, each.chosen, each.proved) for each in found.gpus] == [
        ("sm86", True, "not run"),
        ("sm89", False, "failed"),
    ]
    assert "rtx/ocr/640/fp16/sm89 failed on it" in found.gpus[1].why
    assert "# left out: sm89: " in labels_to_yaml(found)


def test_what_nobody_ran_is_not_proved() -> None:
    two = [a_plan(), a_plan("960")]
    for verdict, proved in (("failed", "failed"), ("passed", "not run"), ("not run", "not run")):
        [fit] = node_labels([a_snapshot(two, smoke=(a_verdict(verdict=verdict),))]).gpus
        assert (fit.proved, fit.chosen) == (proved, verdict != "failed")
    assert node_labels([a_snapshot([a_plan()], smoke=(a_verdict(),))]).gpus[0].proved == "passed"


def test_an_older_failure_is_not_hidden_by_a_newer_snapshot_of_another_cell() -> None:
    whole = a_snapshot(
        [a_plan(), a_plan("960")],
        created="2026-11-20T00:00:00Z",
        smoke=(a_verdict(verdict="failed"), a_verdict("rtx/ocr/960/fp16/sm89")),
    )
    part = replace(
        whole, created="2026-11-21T00:00:00Z", plans=whole.plans[1:], smoke=whole.smoke[1:]
    )
    assert not node_labels([whole, part]).gpus[0].chosen


def test_an_sm_without_a_plan_is_left_out() -> None:
    one, other = nine_plans(sms=(86, 89))
    found = node_labels([one, replace(other, plans=())])
    assert chosen(affinity_of(found)) == {"A10"}
    assert found.gpus[1].why == "there is no plan for SM 8.9"


def test_without_any_gpu_there_is_no_affinity() -> None:
    """Kubernetes refuses an empty list of terms, and an empty affinity fits any node."""
    libraries = {"tensorrt": VersionFound(version="11.2.1.2", how="x")}
    found = node_labels([a_snapshot(versions_found=libraries)])
    assert (found.backend, found.needs_gpu) == ("tensorrt", True)
    assert found.affinity.node_affinity is None


def test_two_gpus_of_one_sm_are_one_term() -> None:
    one = a_snapshot([a_plan()], smoke=(with_peak(6 << 30),))
    plan = replace(a_plan(), cell="rtx/ocr/640/fp16/l4")
    other = a_snapshot([plan], gpu="l4", smoke=(with_peak(10 << 30, cell=plan.cell),))
    affinity = affinity_of(node_labels([one, other]))
    assert len(terms_of(affinity)) == 1
    assert chosen(affinity) == FITS_89 - {"RTX 4060"}


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(InputError, match="no snapshot tells what serves in it") as raised:
        node_labels([a_snapshot()])
    assert raised.value.mend
    with pytest.raises(InputError, match="pins no driver"):
        node_labels([a_snapshot([a_plan()], pins={"cuda": "13.0"})])
    with pytest.raises(InputError, match="there is no snapshot"):
        node_labels([])


# The text


def test_the_yaml_can_be_pasted() -> None:
    found = node_labels(nine_plans(sms=(89,)))
    assert labels_to_yaml(found) == (
        f"# rtx {found.image}, tensorrt-rtx\n"
        "# sm89: SM 8.9, smoke not run\n"
        "affinity:\n"
        "  nodeAffinity:\n"
        "    requiredDuringSchedulingIgnoredDuringExecution:\n"
        "      nodeSelectorTerms:\n"
        "      - matchExpressions:\n"
        "        - key: nvidia.com/gpu.compute.major\n"
        "          operator: In\n"
        "          values:\n"
        "          - '8'\n"
        "        - key: nvidia.com/gpu.compute.minor\n"
        "          operator: In\n"
        "          values:\n"
        "          - '9'\n"
        "        - key: nvidia.com/cuda.driver-version.major\n"
        "          operator: Gt\n"
        "          values:\n"
        "          - '579'\n"
        "        - key: nvidia.com/cuda.runtime-version.major\n"
        "          operator: Gt\n"
        "          values:\n"
        "          - '12'\n"
    )


@pytest.mark.parametrize(
    ("key", "operator", "values"),
    [
        ("nvidia.com/gpu.memory", "Gte", ["1"]),
        ("nvidia.com/gpu.memory", "Gt", ["8 GB"]),
        ("nvidia.com/gpu.memory", "Gt", ["1", "2"]),
        ("nvidia.com/gpu.memory", "In", []),
        ("nvidia.com/gpu.memory", "In", [8]),
        ("nvidia.com/gpu/memory", "In", ["8"]),
        ("nvidia.com/gpu.product", "In", ["NVIDIA L4"]),
    ],
)
def test_what_kubernetes_refuses_would_be_seen(key: str, operator: str, values: list[Any]) -> None:
    found = msgspec.to_builtins(node_labels(nine_plans(sms=(89,))).affinity)
    affinity = json.loads(json.dumps(found))
    validator = jsonschema.Draft202012Validator(KUBERNETES)
    assert validator.is_valid(affinity)
    terms_of(affinity)[0]["matchExpressions"][0] = {
        "key": key,
        "operator": operator,
        "values": values,
    }
    assert not validator.is_valid(affinity)
    terms_of(affinity).clear()
    assert not validator.is_valid(affinity)


def test_every_label_asked_for_is_one_that_feature_discovery_writes() -> None:
    for old in (False, True):
        found = node_labels(nine_plans(pins={"cuda": "13.1"}), memory_bytes=1 << 30, old_names=old)
        keys = {e["key"] for t in terms_of(affinity_of(found)) for e in t["matchExpressions"]}
        assert keys <= set(L4)
        assert len(keys) == 6
        assert any(OLD.match(key) for key in keys) is not old
