"""The facts have sources and agree with what was measured; wrong pins are named with a way out."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from planyard.core import compat as module
from planyard.core.compat import (
    Compat,
    compat_from_toml,
    contradictions,
    dotted,
    load_compat,
    refusal,
    sm_support,
)
from planyard.core.matrix import OnnxRuntimePin, Pins

DATA = Path(module.__file__).with_name("compat.toml")
SOURCE = re.compile(r".*(https://[\w.-]+/\S+|measured, .+ 20\d\d-\d\d-\d\d).*")
ENTRIES = [
    (kind, number, entry)
    for kind, entries in tomllib.loads(DATA.read_text("utf-8")).items()
    for number, entry in enumerate(entries)
]
BACKENDS = ("tensorrt-rtx", "onnxruntime-cpu", "onnxruntime-cuda")


def pins(**changed: object) -> Pins:
    """Pins that agree, but for what is changed."""
    agreeing = {
        "driver": "580",
        "cuda": "13.0",
        "cudnn": "9.28.0.42",
        "onnxruntime": OnnxRuntimePin(version="1.31.1"),
        "tensorrt": "11.2.1.2",
        "tensorrt_rtx": "1.7.1.116",
        "python": "3.11",
    }
    return msgspec.convert({**agreeing, **changed}, Pins, from_attributes=True)


def messages(given: Pins, *, backends: tuple[str, ...] = BACKENDS) -> dict[str, str]:
    found = contradictions(load_compat(), given, backends=backends)
    return {one.key: one.message for one in found}


class TestData:
    @pytest.mark.parametrize(("kind", "number", "entry"), ENTRIES)
    def test_every_fact_has_a_source(self, kind: str, number: int, entry: dict[str, object]):
        assert SOURCE.fullmatch(str(entry.get("source", ""))), f"{kind}[{number}]"

    @pytest.mark.parametrize(("kind", "number", "entry"), ENTRIES)
    def test_every_fact_says_something(self, kind: str, number: int, entry: dict[str, object]):
        about = {"source", "subject", "since", "before"}
        bounded = kind == "gpu" and ("since" in entry or "before" in entry)
        assert entry.keys() - about, f"{kind}[{number}]"
        assert bounded or {"since", "before"} <= entry.keys(), f"{kind}[{number}]"

    @pytest.mark.parametrize("fact", load_compat().facts(), ids=lambda fact: fact.source[:40])
    def test_a_range_begins_before_it_ends(self, fact: module._Fact):
        if fact.since and fact.before:
            assert fact.speaks_of(fact.since)
            assert not fact.speaks_of(fact.before)

    def test_every_entry_is_loaded(self):
        assert len(load_compat().facts()) == len(ENTRIES)

    def test_a_fact_without_a_source_is_refused(self):
        with pytest.raises(msgspec.ValidationError, match="source"):
            compat_from_toml('[[driver]]\nsince = "13.0"\nbefore = "14"\ndriver = 580\n')

    def test_an_unknown_key_is_refused(self):
        with pytest.raises(msgspec.ValidationError, match="drivr"):
            compat_from_toml('[[driver]]\nsource = "x"\ndrivr = 580\n')

    def test_a_version_has_one_answer_for_each_question(self):
        for field in ("cuda", "cudnn", "python"):
            facts = [fact for fact in load_compat().build if getattr(fact, field)]
            for fact in facts:
                same = [other for other in facts if other.subject == fact.subject]
                speaking = [other for other in same if other.speaks_of(fact.since)]
                assert speaking == [fact], field

    def test_the_facts_are_read_once(self):
        assert load_compat() is load_compat()


class TestDocumentation:
    text = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text("utf-8")

    def test_the_table_of_sms_is_the_data(self):
        rows = [f"| {one.subject} | {one.versions} | {one.targets} |" for one in load_compat().sm]
        table = self.text.split("| SMs |\n|---|---|---|\n")[1].split("\n\n")[0]
        assert table.splitlines() == rows

    def test_every_kind_of_fact_and_every_rule_is_explained(self):
        assert all(f"`[[{kind}]]`" in self.text for kind in Compat.__struct_fields__)
        rules = re.findall(r'rule="(compat\.[a-z-]+)"', Path(module.__file__).read_text("utf-8"))
        assert len(rules) >= 4
        assert all(f"| `{rule}` |" in self.text for rule in rules)


class TestVersions:
    @pytest.mark.parametrize(
        ("version", "inside"),
        [
            ("1.9", False),
            ("1.10", True),
            ("1.10.0", True),
            ("1.11.9.9", True),
            ("1.12", False),
            ("1.12.0", False),
            ("2", False),
        ],
    )
    def test_a_range_compares_numbers_not_text(self, version: str, inside: bool):
        fact = module.DriverFact(since="1.10", before="1.12.0", driver=1, source="x")
        assert fact.speaks_of(version) is inside

    def test_sm_120_is_written_as_nvidia_does(self):
        assert [dotted(sm) for sm in (75, 90, 120, 121)] == ["7.5", "9.0", "12.0", "12.1"]


class TestSmSupport:
    @pytest.mark.parametrize(
        ("backend", "version", "has", "lacks"),
        [
            ("tensorrt-rtx", "1.7.1.116", (75, 80, 86, 89, 120, 121), (70, 87, 90, 100)),
            ("tensorrt-rtx", "1.4.0.76", (75, 80, 86, 89, 120), (90, 121)),
            ("tensorrt-rtx", "1.0.0.21", (75, 86, 89, 120), (80, 90)),
            ("tensorrt", "10.1.0", (70, 75, 90), (61, 120)),
            ("tensorrt", "10.7.0", (75, 90), (70, 100, 120)),
            ("tensorrt", "10.8.0", (75, 90, 120), (70,)),
            ("tensorrt", "11.2.1.2", (75, 89, 90, 120), (70,)),
            ("onnxruntime-cuda", "1.26.0", (60, 89, 90, 100, 120), (52,)),
            ("onnxruntime-cuda", "1.27.0", (75, 100, 120, 121), (70, 103)),
            ("onnxruntime-cuda", "1.31.1", (75, 80, 86, 89, 90, 120), (70, 100, 103, 121)),
        ],
    )
    def test_what_was_measured_or_documented(self, backend, version, has, lacks):
        for sm in (*has, *lacks):
            fact = sm_support(load_compat(), backend=backend, version=version, sm=sm)
            assert fact is not None
            assert fact.has(sm) is (sm in has), sm

    @pytest.mark.parametrize(
        ("backend", "version"),
        [("tensorrt-rtx", "1.8.0"), ("onnxruntime-cuda", "1.29.0"), ("onnxruntime-cpu", "1.31.1")],
    )
    def test_nothing_known_is_none(self, backend, version):
        assert sm_support(load_compat(), backend=backend, version=version, sm=52) is None


class TestRefusal:
    @pytest.mark.parametrize("sm", [86, 89, 120])
    @pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt", "onnxruntime-cuda"])
    def test_common_gpus_are_not_refused(self, backend, sm):
        assert refusal(load_compat(), pins(), backend=backend, precision="fp16", sm=sm) is None

    def test_hopper_has_no_tensorrt_rtx(self):
        refused = refusal(load_compat(), pins(), backend="tensorrt-rtx", precision="fp32", sm=90)
        assert refused is not None
        assert refused.rule == "compat.sm"
        assert "tensorrt-rtx 1.7.1.116 has no code for SM 9.0" in refused.reason
        assert "7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in refused.reason
        assert "measured" in refused.source

    @pytest.mark.parametrize(
        ("cuda", "sm", "word"),
        [("12.6", 120, "12.8"), ("12.8", 121, "12.9"), ("11.7", 89, "11.8"), ("13.0", 70, "13")],
    )
    def test_cuda_does_not_know_the_sm(self, cuda: str, sm: int, word: str):
        # No fact speaks of these versions, so that only CUDA against SM is judged.
        given = pins(cuda=cuda, tensorrt="9.0", tensorrt_rtx="9.0", driver="999")
        refused = refusal(load_compat(), given, backend="tensorrt", precision="fp16", sm=sm)
        assert refused is not None
        assert refused.rule == "compat.cuda-sm"
        assert word in refused.reason.split(";")[1]

    def test_the_driver_is_older_than_the_gpu(self):
        given = pins(cuda="12.8", driver="560")
        refused = refusal(load_compat(), given, backend="tensorrt-rtx", precision="fp16", sm=120)
        assert refused is not None
        assert refused.rule == "compat.driver-sm"
        assert "570" in refused.reason

    def test_a_precision_that_the_sm_lacks(self):
        facts = compat_from_toml(
            '[[precision]]\nsubject = "tensorrt"\nsince = "11"\nbefore = "12"\nsms = [75]\n'
            'precisions = ["fp32"]\nsource = "made up for this test"\n'
        )
        given = pins()
        assert refusal(facts, given, backend="tensorrt", precision="fp32", sm=75) is None
        refused = refusal(facts, given, backend="tensorrt", precision="fp16", sm=75)
        assert refused is not None
        assert refused.rule == "compat.precision"
        other = pins(tensorrt="10.9.0")
        assert refusal(facts, other, backend="tensorrt", precision="fp16", sm=75) is None

    def test_without_facts_nothing_is_refused(self):
        assert refusal(Compat(), pins(), backend="tensorrt", precision="fp16", sm=50) is None


class TestContradictions:
    def test_pins_that_agree(self):
        assert messages(pins(), backends=(*BACKENDS, "tensorrt")) == {}

    def test_driver_too_old_for_cuda(self):
        found = messages(pins(driver="550"))
        assert list(found) == ["pins.driver"]
        assert "too old for CUDA 13.0" in found["pins.driver"]
        assert 'write "580"' in found["pins.driver"]
        assert "CUDA 12 release in pins.cuda" in found["pins.driver"]

    def test_an_older_driver_runs_a_newer_minor_of_its_major(self):
        given = pins(driver="525", cuda="12.8")
        assert "pins.driver" not in messages(given)

    def test_cudnn_is_not_built_for_that_cuda(self):
        found = messages(pins(cudnn="9.5.1"))
        assert list(found) == ["pins.cudnn"]
        assert "write a version of 9.12" in found["pins.cudnn"]

    def test_cudnn_8_under_an_onnxruntime_for_9(self):
        given = pins(cudnn="8.9.7", cuda="12.4", onnxruntime=OnnxRuntimePin(version="1.26.0"))
        assert messages(given) == {
            "pins.cudnn": "onnxruntime-cuda 1.26.0 needs cuDNN 9: write a 9.x, not 8.9.7"
        }

    def test_onnxruntime_is_built_for_another_cuda(self):
        found = messages(pins(cuda="12.8"))
        assert list(found) == ["pins.onnxruntime.version"]
        assert 'pins.cuda is "12.8"' in found["pins.onnxruntime.version"]
        assert "1.19 up to but not 1.27" in found["pins.onnxruntime.version"]
        assert "CUDA 13 release in pins.cuda" in found["pins.onnxruntime.version"]

    def test_python_without_a_wheel(self):
        found = messages(pins(python="3.10"))
        assert list(found) == ["pins.python"]
        assert '"3.11", "3.12", "3.13", "3.14"' in found["pins.python"]

    def test_tensorrt_is_built_for_another_cuda(self):
        found = messages(pins(tensorrt="10.9.0"), backends=("tensorrt",))
        assert list(found) == ["pins.tensorrt"]

    def test_a_backend_that_no_image_uses_is_not_judged(self):
        given = pins(tensorrt="10.9.0", python="3.10")
        assert messages(given, backends=("tensorrt-rtx",)) == {}

    def test_every_contradiction_is_reported_with_key_and_source(self):
        given = pins(driver="550", cudnn="9.5.1", python="3.10")
        found = contradictions(load_compat(), given, backends=BACKENDS)
        assert {one.key for one in found} == {"pins.driver", "pins.cudnn", "pins.python"}
        assert all(SOURCE.fullmatch(one.source) for one in found)
        assert str(found[0]).startswith("pins.driver: driver branch 550")
        assert found[0].path == ("pins", "driver")

    def test_what_the_message_says_to_write_mends_it(self):
        assert messages(pins(driver="580")) == {}
        assert messages(pins(cudnn="9.12")) == {}
        older = OnnxRuntimePin(version="1.26.0")
        assert messages(pins(cuda="12.8", onnxruntime=older)) == {}
