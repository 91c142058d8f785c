"""The large model: both UNet plans of `matrix.sd15.yaml`, 1.74 GB each, compiled without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.header import HEAD_BYTES, PlanHeader, read_header
from engines.index import all_plans
from tests.workspaces import WITHOUT_DOCKER, Site

pytestmark = pytest.mark.docker

NEEDED_BYTES = 10 << 30
PLAN_BYTES = 1_740_000_000
CELLS = {f"rtx/sd15-unet/{profile}/fp16/sm89" for profile in ("512", "1024")}


def memory_bytes() -> int:
    """What this machine could still give to a process."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.skipif(memory_bytes() < NEEDED_BYTES, reason="needs 10 GiB of free memory")
def test_both_unet_plans_compile(site: Site) -> None:
    known = {plan.digest for plan in all_plans(site.store)}
    args = ("build", "--matrix", "matrix.sd15.yaml")
    report = site.planyard(*args, "--json", timeout_seconds=1800).expect(0).document()
    assert set(report["compiled"]) == CELLS
    new = {plan.digest: plan for plan in all_plans(site.store) if plan.digest not in known}
    assert len(new) == 2
    for plan in new.values():
        assert plan.size_bytes == pytest.approx(PLAN_BYTES, rel=0.02)
        start = next(site.store.open_blob(plan.digest))
        head = read_header(start[:HEAD_BYTES], size_bytes=plan.size_bytes)
        assert isinstance(head, PlanHeader)
        assert head.whole is True
        assert head.sm_targets == (89,)
    assert site.leftovers() == []
    again = site.planyard(*args, env=WITHOUT_DOCKER).expect(0)
    assert "nothing to do: 1 images and 2 plans are up to date" in again.stderr
    digest = report["images"][0]["digest"]
    found = site.planyard("lookup", digest, "--json", "--sm", "89", env=WITHOUT_DOCKER).expect(0)
    assert {plan["cell"] for plan in found.document()["plans"]} >= CELLS
