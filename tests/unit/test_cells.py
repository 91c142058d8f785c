"""Expansion, selection, grouping and GitHub's matrix, on small matrices with known answers."""

from __future__ import annotations

import json

import msgspec
import pytest

from planyard.core.cells import (
    Cell,
    compile_groups,
    expand,
    github_matrix,
    plan_cells,
    select,
)
from planyard.core.compat import Compat, load_compat
from planyard.core.errors import NothingSelectedError
from planyard.core.matrix import Gpu, Matrix
from planyard.core.units import ByteSize

NO_FACTS = Compat()


def byte_size(kind: type, value: object) -> object:
    return ByteSize.parse(str(value)) if kind is ByteSize else value


def a_matrix(**changed: object) -> Matrix:
    """Three images, two models, three GPUs; valid but for what is changed."""
    shape = {"min": [1], "opt": [1], "max": [1]}
    model = {
        "source": {"file": "model.onnx"},
        "sha256": "sha256:" + "0" * 64,
        "inputs": {"x": {"dtype": "float32", "shape": ["n"]}},
    }
    given: dict[str, object] = {
        "schema": 1,
        "pins": {
            "driver": "580",
            "cuda": "13.0",
            "cudnn": "9.28.0.42",
            "onnxruntime": {"version": "1.31.1"},
            "tensorrt": "11.2.1.2",
            "tensorrt_rtx": "1.7.1.116",
            "python": "3.11",
        },
        "images": {
            "rtx": {"backend": "tensorrt-rtx", "budget": {"pull": "140 MB"}},
            "ort-cpu": {"backend": "onnxruntime-cpu"},
            "ort-gpu": {"backend": "onnxruntime-cuda"},
        },
        "models": {
            "det": {**model, "profiles": {"640": {"x": shape}, "960": {"x": shape}}},
            "unet": {**model, "profiles": {"512": {"x": shape}}},
        },
        "precisions": ["fp32", "fp16"],
        "gpus": {
            "rtx4090": {"sm": 89, "backends": ["tensorrt-rtx", "onnxruntime-cuda"]},
            "h100": {"sm": 90, "backends": ["tensorrt-rtx", "onnxruntime-cuda"]},
            "cpu": {"backends": ["onnxruntime-cpu"], "runs_on": ["self-hosted", "big"]},
        },
    }
    return msgspec.convert({**given, **changed}, Matrix, dec_hook=byte_size)


def drop(rule: str, cells: str) -> dict[str, str]:
    return {"id": rule, "cells": cells, "reason": f"because of {rule}"}


class TestExpand:
    def test_a_cell_says_everything_its_id_does(self):
        cell = expand(a_matrix(), NO_FACTS).cells[0]
        assert cell == Cell(
            id="rtx/det/640/fp32/rtx4090",
            image="rtx",
            model="det",
            profile="640",
            precision="fp32",
            gpu="rtx4090",
            sm=89,
            backend="tensorrt-rtx",
        )

    def test_the_order_is_the_matrix_s(self):
        ids = [cell.id for cell in expand(a_matrix(), NO_FACTS).cells if cell.image == "ort-cpu"]
        assert ids == [
            "ort-cpu/det/640/fp32/cpu",
            "ort-cpu/det/640/fp16/cpu",
            "ort-cpu/det/960/fp32/cpu",
            "ort-cpu/det/960/fp16/cpu",
            "ort-cpu/unet/512/fp32/cpu",
            "ort-cpu/unet/512/fp16/cpu",
        ]

    def test_every_point_is_a_cell_or_dropped(self):
        expansion = expand(a_matrix(), load_compat())
        assert len(expansion.cells) + len(expansion.dropped) == 3 * (2 + 1) * 2 * 3

    def test_a_gpu_without_the_backend(self):
        dropped = {one.id: one for one in expand(a_matrix(), NO_FACTS).dropped}
        one = dropped["rtx/det/640/fp32/cpu"]
        assert one.rule == "compat.backend"
        assert one.reason == "cpu runs onnxruntime-cpu, not tensorrt-rtx"
        assert one.source == "matrix.yaml, gpus.cpu"

    def test_a_gpu_backend_where_there_is_no_sm(self):
        gpus = {"cpu": {"backends": ["tensorrt-rtx"]}}
        expansion = expand(a_matrix(gpus=gpus), load_compat())
        assert not expansion.cells
        assert {one.rule for one in expansion.dropped} == {"compat.backend"}
        assert any("has no SM" in one.reason for one in expansion.dropped)

    def test_an_sm_that_the_backend_has_no_code_for(self):
        expansion = expand(a_matrix(), load_compat())
        by_sm = {one.id: one for one in expansion.dropped if one.rule == "compat.sm"}
        assert set(by_sm) == {
            f"rtx/{shape}/{precision}/h100"
            for shape in ("det/640", "det/960", "unet/512")
            for precision in ("fp32", "fp16")
        }
        assert all("SM 9.0" in one.reason and "measured" in one.source for one in by_sm.values())
        assert "ort-gpu/det/640/fp32/h100" in {cell.id for cell in expansion.cells}

    def test_a_repeated_precision_gives_no_cell_twice(self):
        expansion = expand(a_matrix(precisions=["fp16", "fp16"]), NO_FACTS)
        ids = [cell.id for cell in expansion.cells]
        assert len(ids) == len(set(ids))


class TestDropRules:
    def test_the_first_rule_that_matches_wins(self):
        rules = [drop("first", "rtx/det/*"), drop("second", "rtx/*/fp16/*")]
        expansion = expand(a_matrix(drop=rules), NO_FACTS)
        dropped = {one.id: one.rule for one in expansion.dropped}
        assert dropped["rtx/det/640/fp16/rtx4090"] == "first"
        assert dropped["rtx/unet/512/fp16/rtx4090"] == "second"
        assert "rtx/unet/512/fp32/rtx4090" not in dropped
        assert expansion.idle_rules == ()

    def test_reason_and_source_come_along(self):
        expansion = expand(a_matrix(drop=[drop("mine", "ort-cpu/*")]), NO_FACTS)
        mine = [one for one in expansion.dropped if one.rule == "mine"]
        assert len(mine) == 6
        assert {(one.reason, one.source) for one in mine} == {("because of mine", "matrix.yaml")}

    def test_the_built_in_rules_come_first(self):
        expansion = expand(a_matrix(drop=[drop("all", "*")]), NO_FACTS)
        dropped = {one.id: one.rule for one in expansion.dropped}
        assert dropped["rtx/det/640/fp32/cpu"] == "compat.backend"
        assert dropped["rtx/det/640/fp32/rtx4090"] == "all"
        assert not expansion.cells

    def test_a_rule_that_matches_no_point_is_idle(self):
        rules = [drop("typo", "rtx/det/641/*"), drop("good", "rtx/det/640/*")]
        assert expand(a_matrix(drop=rules), NO_FACTS).idle_rules == ("typo",)

    def test_a_rule_that_only_matches_dropped_points_is_not_idle(self):
        rules = [drop("hopper", "rtx/*/h100")]
        assert expand(a_matrix(drop=rules), load_compat()).idle_rules == ()

    def test_case_matters_everywhere(self):
        assert expand(a_matrix(drop=[drop("loud", "RTX/*")]), NO_FACTS).idle_rules == ("loud",)

    def test_the_expansion_is_json(self):
        expansion = expand(a_matrix(drop=[drop("typo", "x/*")]), load_compat())
        document = json.loads(msgspec.json.encode(expansion))
        assert set(document["dropped"][0]) == {"id", "rule", "reason", "source"}
        assert document["idle_rules"] == ["typo"]


class TestSelect:
    cells = expand(a_matrix(), load_compat()).cells

    def test_no_pattern_is_everything(self):
        assert select(self.cells, []) == self.cells

    def test_patterns_add_up_in_the_order_of_the_matrix(self):
        chosen = select(self.cells, ["ort-cpu/*/fp16/*", "rtx/unet/*/fp32/*"])
        assert [cell.id for cell in chosen] == [
            "rtx/unet/512/fp32/rtx4090",
            "ort-cpu/det/640/fp16/cpu",
            "ort-cpu/det/960/fp16/cpu",
            "ort-cpu/unet/512/fp16/cpu",
        ]

    def test_nothing_selected_names_the_nearest(self):
        with pytest.raises(NothingSelectedError) as caught:
            select(self.cells, ["rtx/det/641/fp16/rtx4090"])
        assert caught.value.exit_code == 3
        assert "'rtx/det/641/fp16/rtx4090' matches none of 24 cells" in caught.value.message
        assert "the nearest: rtx/det/640/fp16/rtx4090" in caught.value.message

    def test_one_mistyped_pattern_beside_a_good_one(self):
        with pytest.raises(NothingSelectedError, match="rtx/dat/"):
            select(self.cells, ["rtx/det/*", "rtx/dat/*"])

    @pytest.mark.parametrize("pattern", ["", "[", "[!]", "**" * 40 + "x", "$(reboot)", "\n"])
    def test_odd_patterns_match_nothing_and_harm_nothing(self, pattern: str):
        with pytest.raises(NothingSelectedError, match="none of 24 cells"):
            select(self.cells, [pattern])

    def test_no_cells_at_all(self):
        with pytest.raises(NothingSelectedError, match="no cells"):
            select([], ["*"])


class TestGroups:
    cells = expand(a_matrix(), NO_FACTS).cells

    def test_only_plan_backends_need_plans(self):
        assert {cell.image for cell in plan_cells(self.cells)} == {"rtx"}

    def test_profiles_and_gpus_share_a_container(self):
        groups = compile_groups(self.cells)
        assert [(group.image, group.model, group.precision) for group in groups] == [
            ("rtx", "det", "fp32"),
            ("rtx", "det", "fp16"),
            ("rtx", "unet", "fp32"),
            ("rtx", "unet", "fp16"),
        ]
        assert [cell.id for cell in groups[0].cells] == [
            "rtx/det/640/fp32/rtx4090",
            "rtx/det/640/fp32/h100",
            "rtx/det/960/fp32/rtx4090",
            "rtx/det/960/fp32/h100",
        ]
        assert groups[0].backend == "tensorrt-rtx"

    def test_no_cells_no_groups(self):
        assert compile_groups([]) == ()


class TestGithubMatrix:
    matrix = a_matrix()
    cells = expand(matrix, load_compat()).cells

    def test_a_job_has_the_axes_and_its_runner(self):
        (document,) = github_matrix(self.cells, gpus=self.matrix.gpus)
        jobs = {str(job["id"]): job for job in document["include"]}
        assert len(jobs) == len(self.cells)
        assert jobs["ort-cpu/det/640/fp16/cpu"] == {
            "id": "ort-cpu/det/640/fp16/cpu",
            "image": "ort-cpu",
            "model": "det",
            "profile": "640",
            "precision": "fp16",
            "gpu": "cpu",
            "runs_on": ["self-hosted", "big"],
        }

    def test_without_labels_a_hosted_runner(self):
        cell = next(cell for cell in self.cells if cell.gpu == "rtx4090")
        (document,) = github_matrix([cell], gpus=self.matrix.gpus)
        assert document["include"][0]["runs_on"] == ["ubuntu-latest"]

    @pytest.mark.parametrize(("jobs", "sizes"), [(256, [256]), (257, [256, 1]), (0, [])])
    def test_never_more_than_256_jobs(self, jobs: int, sizes: list[int]):
        many = [self.cells[0]] * jobs
        documents = github_matrix(many, gpus={"rtx4090": Gpu(sm=89, backends=("tensorrt-rtx",))})
        assert [len(document["include"]) for document in documents] == sizes

    @pytest.mark.parametrize("per_file", [0, -1, 257])
    def test_a_size_that_github_refuses(self, per_file: int):
        with pytest.raises(ValueError, match="1 to 256"):
            github_matrix(self.cells, gpus=self.matrix.gpus, per_file=per_file)
