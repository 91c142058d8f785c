"""`planyard load` for real: a small model on the CPU in its own image, and what is left of it.

Nothing here is of time: figures have to be possible, and agree with each other.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from engines.loads import loads_of_image
from planyard.core.loads import LoadRecord
from planyard.edge import docker
from tests.conftest import Built
from tests.workspaces import REPOSITORY, Site

pytestmark = pytest.mark.docker

CELL = "ort-cpu/ocr-det/640/fp32/cpu"
GPU_CELL = "ort-gpu/ocr-det/640/fp32/sm89"
WORKLOAD = """
loads:
  pages: {cells: "*/ocr-det/640/fp32/*", steps: 2, requests: 5, warmup: 0, series_seconds: 5}
"""


def checked(document: Any) -> Any:
    """A document of `planyard load --json` that its published schema takes."""
    schema = json.loads((REPOSITORY / "docs/schemas/load.schema.json").read_text())
    Draft202012Validator(schema).validate(document)
    return document


def test_a_small_model_is_measured_on_the_cpu(built: Built, site: Site):
    options = ["--steps", "2", "--batch", "1", "--concurrency", "1", "--concurrency", "2"]
    ran = site.planyard(
        "load", "--cell", CELL, *options, "--requests", "5", "--seed", "3", "--json"
    ).expect(0)
    document = checked(ran.document())
    assert (document["refused"], document["not_run"]) == ([], [])
    [record] = document["records"]
    image = built.image("ort-cpu")["digest"]
    assert (record["workload"], record["cell"], record["image"]) == ("adhoc", CELL, image)
    assert (record["steps"], record["seed"]) == (2, 3)
    assert record["gates"]["logs"] == record["gates"]["providers"] == "passed"
    assert "cores" in record["gpu"]
    series = record["series"]
    assert [(each["batch"], each["concurrency"]) for each in series] == [(1, 1), (1, 2)]
    for each in series:
        assert each["requests"] == 5
        assert 0 < each["p50_ms"] <= each["p95_ms"] <= each["p99_ms"] <= each["seconds"] * 1000 + 50
        assert each["requests_per_second"] == pytest.approx(5 / each["seconds"], rel=0.01)
        assert each["items_per_second"] == pytest.approx(each["requests_per_second"], rel=0.01)
        assert each["gpu_percent"] is each["gpu_memory_bytes"] is each["power_watts"] is None
    [kept] = loads_of_image(site.store, image)
    assert kept == msgspec.convert(record, LoadRecord)
    assert site.leftovers() == []


def test_a_workload_of_the_matrix_runs_where_it_can(built: Built, site: Site):
    site.matrix.write_text(site.matrix.read_text() + WORKLOAD)
    ran = site.planyard("load", "pages", "--json", "--require").expect(7)
    document = checked(ran.document())
    [record] = document["records"]
    assert (record["workload"], record["cell"], record["steps"]) == ("pages", CELL, 2)
    assert [each["cell"] for each in document["not_run"]] == [GPU_CELL]
    options = ["--batch", "2", "--steps", "1"]
    shown = site.planyard("load", "pages", *options, "--cell", CELL).expect(0)
    assert f"pages on {CELL}" in shown.stdout
    assert "a request is 1 run of the model" in shown.stdout
    assert f"✓ load pages on {CELL}" in shown.stderr
    assert len(loads_of_image(site.store, built.image("ort-cpu")["digest"])) == 2


def test_a_gpu_cell_alone_is_not_run_and_says_why(site: Site):
    ran = site.planyard("load", "--cell", GPU_CELL, "--json").expect(7)
    document = checked(ran.document())
    assert (document["records"], document["refused"]) == ([], [])
    [missed] = document["not_run"]
    assert (missed["workload"], missed["cell"]) == ("adhoc", GPU_CELL)
    assert missed["reason"]
    assert missed["reason"] in ran.stderr
    assert list(site.store.keys("loads")) == []


def test_a_batch_that_the_profile_does_not_take_is_an_error(site: Site):
    ran = site.planyard("load", "--cell", CELL, "--batch", "5").expect(2)
    assert "models.ocr-det.profiles.640.x: a batch of 5 is not within 1 to 4" in ran.stderr


def test_an_interruption_leaves_nothing(site: Site, engine: docker.Engine):
    before = len(engine.client.containers.list(all=True))
    options = ["--cell", CELL, "--requests", "10000", "--seconds", "600"]
    with site.running("load", *options) as running:
        running.wait_until(lambda: len(engine.client.containers.list()) > before)
        running.process.send_signal(signal.SIGINT)
        ended = running.ended()
    assert ended.exit_code == 130
    assert len(engine.client.containers.list(all=True)) == before
    assert site.leftovers() == []
    assert list(site.store.keys("loads")) == []
