"""GPU code in an image against the SMs of its cells."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from builders.audit.owners import Ownership
from builders.audit.rules import Asked, check_contents
from planyard.core.contents import ElfFacts, GpuCode
from planyard.core.findings import Finding
from planyard.core.matrix import Accepted
from tests.images_by_hand import a_file, a_layer, an_image
from tests.rule_images import code

MB = 1_000_000
ORT = code({"sm_75": 13 * MB, "sm_80": 37 * MB, "sm_90a": 78 * MB, "sm_120a": 36 * MB})
CUBLAS = code({"sm_75": 6 * MB, "sm_80": 8 * MB, "sm_120": 29 * MB, "compute_120": 26 * MB})
CONFIG = {
    "config": {
        "User": "1",
        "Labels": {"io.planyard.recipe": "x", "org.opencontainers.image.title": "x"},
    }
}


def check(libraries: Mapping[str, GpuCode], *sms: int, accept: str = "") -> tuple[Finding, ...]:
    elf = {path: ElfFacts(gpu=gpu) for path, gpu in libraries.items()}
    image = an_image(a_layer(*(a_file(path, b"x") for path in elf), elf=elf), config=CONFIG)
    entries = (Accepted(rule=accept, reason="r"),) if accept else ()
    asked = Asked(image="ort-gpu", sms=frozenset(sms), accept=entries)
    return check_contents(image, Ownership(), asked=asked)


def rules(findings: tuple[Finding, ...]) -> dict[str, str]:
    return {each.rule.removeprefix("image."): each.severity for each in findings}


def test_what_runs_on_no_sm_that_is_asked_for_is_counted() -> None:
    [finding] = check({"/ort.so": ORT, "/cublas.so": CUBLAS}, 86, 89)
    assert finding.rule == "image.gpu-code-unused"
    assert finding.severity == "warn"
    assert finding.message.startswith(
        "188.0 MB of GPU code for sm_75, sm_90a, sm_120, sm_120a, compute_120 in 2 files that no "
        "cell asks for (they ask for SM 86, 89); counted from all headers: "
    )
    assert finding.evidence == (
        "/ort.so 127.0 MB (sm_75, sm_90a, sm_120a, of 164.0 MB)",
        "/cublas.so 61.0 MB (sm_75, sm_120, compute_120, of 69.0 MB)",
    )


def test_it_says_when_not_all_could_be_read() -> None:
    part = code({"sm_75": 5 * MB, "sm_80": 1}, sure=False)
    [finding] = check({"/ort.so": ORT, "/part.so": part}, 86)
    assert "at least: some headers could not be read" in finding.message
    [finding] = check({"/ort.so": ORT}, 86)
    assert "counted from all headers" in finding.message


def test_less_than_a_megabyte_is_not_worth_saying() -> None:
    assert check({"/a.so": code({"sm_80": MB, "sm_75": MB - 1})}, 86) == ()
    assert check({"/a.so": code({"sm_80": MB, "sm_75": MB})}, 86) != ()


def test_an_image_for_the_cpu_has_no_use_for_any() -> None:
    [finding] = check({"/ort.so": ORT})
    assert "164.0 MB of GPU code" in finding.message
    assert "no cell of it has a GPU" in finding.message


def test_an_image_that_no_matrix_knows_is_asked_nothing() -> None:
    elf = {"/ort.so": ElfFacts(gpu=ORT)}
    image = an_image(a_layer(a_file("/ort.so", b"x"), elf=elf), config=CONFIG)
    assert check_contents(image, Ownership(), asked=Asked(image="x", sms=None)) == ()


def test_an_image_without_gpu_code_is_asked_nothing() -> None:
    assert check({}, 89) == ()


def test_code_for_one_sm_only_does_not_run_on_the_next() -> None:
    """onnxruntime-gpu 1.31.1 has sm_120a and no PTX: nothing for SM 121."""
    findings = check({"/ort.so": ORT, "/cublas.so": CUBLAS}, 121)
    assert rules(findings) == {"gpu-code-missing": "fail", "gpu-code-unused": "warn"}
    assert findings[0].message.startswith(
        "no GPU code that runs on SM 121 in 1 file with code for others: "
    )
    assert findings[0].evidence == ("/ort.so 164.0 MB (has sm_75, sm_80, sm_90a, sm_120a)",)


def test_what_is_not_sure_warns_and_does_not_fail() -> None:
    part = code({"sm_75": 1}, sure=False)
    findings = check({"/part.so": part}, 89)
    assert rules(findings) == {"gpu-code-missing": "warn"}
    assert "not all of it could be read" in findings[0].message


def test_a_library_of_which_nothing_could_be_read_only_warns() -> None:
    findings = check({"/part.so": code({}, sure=False)}, 89)
    assert rules(findings) == {"gpu-code-missing": "warn"}
    assert findings[0].evidence == ("/part.so (has none read)",)


def test_only_ptx_is_said_for_each_sm() -> None:
    findings = check({"/a.so": code({"sm_75": 1, "compute_75": 2})}, 75, 89, 120)
    assert [each.message.partition(":")[0] for each in findings] == [
        "only PTX for SM 89, which the driver has to compile, in 1 file",
        "only PTX for SM 120, which the driver has to compile, in 1 file",
    ]
    assert {each.severity for each in findings} == {"warn"}


@pytest.mark.parametrize("sm", [80, 86, 89])
def test_an_earlier_minor_of_the_same_major_is_enough(sm) -> None:
    assert check({"/a.so": code({"sm_80": 5})}, sm) == ()


def test_accept_takes_single_libraries_away() -> None:
    libraries = {"/ort.so": ORT, "/cublas.so": CUBLAS}
    elf = {path: ElfFacts(gpu=gpu) for path, gpu in libraries.items()}
    image = an_image(a_layer(*(a_file(path, b"x") for path in elf), elf=elf), config=CONFIG)
    entry = Accepted(rule="gpu-code-unused", path="*cublas*", reason="NVIDIA's own")
    asked = Asked(image="x", sms=frozenset({89}), accept=(entry,))
    [finding] = check_contents(image, Ownership(), asked=asked)
    assert finding.message.startswith("127.0 MB")
    assert "in 1 file" in finding.message
    assert len(finding.evidence) == 1


def test_accepting_all_of_it_leaves_nothing() -> None:
    assert check({"/ort.so": ORT}, 89, accept="gpu-code-unused") == ()
