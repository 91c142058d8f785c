"""Attention that ONNX Runtime fuses passes in the real `ort-cpu` image; what it cannot fuse fails.

One build of one model in each form: two blocks of BERT, and the same with the second block in a
form the optimizer does not know. All of them answer every request, rightly and without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from planyard.core.digest import digest_of_bytes
from tests.attention_forms import one
from tests.attention_models import LENGTH, ODD, WIDTH, bert
from tests.workspaces import Ran, Site, lay_out

pytestmark = pytest.mark.docker

BLOCKS = 2
MODEL = f"""
  NAME:
    source: {{file: models/NAME.onnx}}
    sha256: DIGEST
    inputs:
      x: {{dtype: float32, shape: [n, {LENGTH}, {WIDTH}]}}MASK
    profiles:
      "8":
        x: {{min: [1, {LENGTH}, {WIDTH}], opt: [2, {LENGTH}, {WIDTH}], max: [4, {LENGTH}, {WIDTH}]}}
    tolerance:
      fp32: {{max_abs: 0.001, mean_abs: 0.0001}}
"""
MASK = f"\n      mask: {{dtype: int64, shape: [n, {LENGTH}]}}"
MASKS = f"        mask: {{min: [1, {LENGTH}], opt: [2, {LENGTH}], max: [4, {LENGTH}]}}\n"
REST = """
precisions: [fp32]

gpus:
  cpu: {backends: [onnxruntime-cpu]}
"""
BUDGET = """
gates:
  cells:
    - {cells: "*/softcap/*", reason: the cap is worth more than the kernel, unfused_attention: 1}
"""
FUSED = "fused"
LONE = "lone"
"""A block without the layer normalization around it that the optimizer looks for."""


def use_models(site: Site) -> Site:
    """The `ort-cpu` image of the default matrix, and these models instead of its own."""
    models = {FUSED: bert(BLOCKS), LONE: one()}
    models |= {form: bert(BLOCKS, odd=[form]) for form in ODD}
    section = "\nmodels:"
    for name, model in models.items():
        data = model.SerializeToString()
        site.write(f"models/{name}.onnx", data)
        text = MODEL.replace("NAME", name).replace("DIGEST", digest_of_bytes(data))
        if name != LONE:
            text = text.replace("    tolerance:", f"{MASKS}    tolerance:")
        section += text.replace("MASK", "" if name == LONE else MASK)
    text = site.matrix.read_text()
    begin, image = text.index("\nimages:\n"), text.index("\n  ort-cpu:\n")
    end = text.index("\n  ort-gpu:\n")
    site.matrix.write_text(f"{text[:begin]}\nimages:{text[image:end]}\n{section}{REST}")
    return site


@pytest.fixture(scope="module")
def attention_site(
    tmp_path_factory: pytest.TempPathFactory, environment: Mapping[str, str]
) -> Site:
    return use_models(lay_out(tmp_path_factory.mktemp("attention"), environment=environment))


@pytest.fixture(scope="module")
def ran(attention_site: Site) -> Ran:
    return attention_site.planyard("build", "--json")


@pytest.fixture(scope="module")
def report(ran: Ran) -> Any:
    return ran.expect(4).document()


def verdict_of(report: Any, model: str) -> Any:
    [found] = [each for each in report["verdicts"] if each["cell"] == cell_of(model)]
    return found


def failing(verdict: Any) -> list[Any]:
    """What fails it; that there is no baseline yet is told, and fails nothing."""
    return [each for each in verdict["findings"] if each.get("severity", "fail") == "fail"]


def cell_of(model: str) -> str:
    return f"ort-cpu/{model}/8/fp32/cpu"


def test_what_the_optimizer_fuses_passes_by_what_ran(report: Any) -> None:
    verdict = verdict_of(report, FUSED)
    assert failing(verdict) == []
    assert verdict["verdict"] == verdict["gates"]["attention"] == "passed"
    assert verdict["attention"]["blocks"] == verdict["attention"]["fused"] == BLOCKS
    assert verdict["attention"]["how"] == "executed nodes of a profiled request"


@pytest.mark.parametrize(
    ("model", "blocks", "fused"), [*((form, BLOCKS, BLOCKS - 1) for form in ODD), (LONE, 1, 0)]
)
def test_what_it_cannot_fuse_fails_and_by_nothing_else(
    report: Any, model: str, blocks: int, fused: int
) -> None:
    verdict = verdict_of(report, model)
    assert verdict["verdict"] == "failed"
    [finding] = failing(verdict)
    assert finding["rule"] == "attention.unfused"
    assert f"1 of {blocks} attention blocks did not run fused" in finding["message"]
    assert verdict["attention"]["blocks"] == blocks
    assert verdict["attention"]["fused"] == fused
    others = {name: word for name, word in verdict["gates"].items() if name != "attention"}
    assert "failed" not in others.values()


def test_a_budget_lets_it_pass_and_only_there(attention_site: Site, report: Any) -> None:
    site = attention_site
    assert verdict_of(report, "softcap")["verdict"] == "failed"
    site.matrix.write_text(site.matrix.read_text() + BUDGET)
    select = [part for name in ("softcap", "position-bias") for part in ("--select", cell_of(name))]
    again = site.planyard("build", "--json", *select).expect(4).document()
    assert verdict_of(again, "softcap")["gates"]["attention"] == "passed"
    assert verdict_of(again, "position-bias")["gates"]["attention"] == "failed"
