"""The rules file: sound by itself, and right about the labelled lines."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from planyard.core.errors import InputError
from smoke.gates.logs import scan_text
from smoke.rules import RULES_FILE, expand, load_rules, problems_of, read_rules

DATA = Path(__file__).parents[1] / "data"
DOCUMENT = Path(__file__).parents[2] / "docs" / "log-gate.md"
FROZEN = "32b4f47fe5f838fe1a5a64f45b2a11ecdae354f4847f0cb75737cc0fcc4bcf96"

# Where a line comes from, by a word of its source; the first that fits.
LIBRARIES = {
    "ONNX Runtime": ("onnxruntime", "openpilot", "71468013139", "x-fallback"),
    "PyTorch": ("pytorch/pytorch", "torch/", "PyTorch inductor"),
    "Torch-TensorRT": ("pytorch/TensorRT",),
    "TensorRT": ("TensorRT", "tensorrtx", "nvinfer", "Polygraphy"),
    "TensorFlow": ("TensorFlow", "tensorflow"),
    "JAX": ("jax",),
    "llama.cpp and ollama": ("llama", "ollama", "ggml"),
    "vLLM and SGLang": ("vllm", "sglang"),
    "Hugging Face": ("huggingface", "sentence-transformers", "UKPLab"),
    "attention libraries": ("xformers", "flash-attention", "ComfyUI", "bitsandbytes"),
    "speech": ("whisper", "CTranslate2"),
    "OpenCV and OpenVINO": ("OpenCV", "openvino"),
    "Triton and NGC": ("triton", "NGC", "nvidia-container"),
}


def lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def library_of(entry: dict[str, str]) -> str:
    for library, words in LIBRARIES.items():
        if any(word in entry["source"] for word in words):
            return library
    return "other"


def verdict_of(text: str) -> str:
    """`fail`, `warn` or `none`: the gravest finding in a line."""
    severities = {hit.severity for hit in scan_text(text, load_rules())}
    return "fail" if "fail" in severities else "warn" if "warn" in severities else "none"


def table_of(entries: list[dict[str, str]]) -> dict[str, dict[str, int]]:
    """Counts by library: losses, found, and harmless lines, false alarms."""
    table: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for entry in entries:
        for row in (library_of(entry), "all"):
            verdict = verdict_of(entry["text"])
            if entry["cls"] == "FAIL":
                table[row]["losses"] += 1
                table[row]["found"] += verdict == "fail"
            elif entry["cls"] == "BENIGN":
                table[row]["harmless"] += 1
                table[row]["alarms"] += verdict != "none"
    return table


def figures_of(entries: list[dict[str, str]], title: str) -> tuple[float, float]:
    """Print recall and precision by library; return those of all."""
    print(f"\n{title:<24}{'recall':>14}{'precision':>14}")
    recall = precision = 0.0
    for library, row in sorted(table_of(entries).items(), key=lambda item: item[0] == "all"):
        found, alarms, losses = row["found"], row["alarms"], row["losses"]
        recall = found / losses if losses else 1.0
        precision = found / (found + alarms) if found + alarms else 1.0
        counts = f"{found}/{losses}", f"{found}/{found + alarms}"
        print(f"{library:<24}{counts[0]:>7}{recall:>7.0%}{counts[1]:>7}{precision:>7.0%}")
    return recall, precision


def rows_of(entries: list[dict[str, str]], title: str) -> list[str]:
    """The rows of the table in docs/log-gate.md, one for each library."""
    rows = []
    for library, row in sorted(table_of(entries).items(), key=lambda item: item[0] == "all"):
        found, alarms, losses = row["found"], row["alarms"], row["losses"]
        counts = f"{found}/{losses} | {found}/{found + alarms} | {row['harmless']}"
        rows.append(f"| {title} | {library} | {counts} |")
    return rows


def test_recall_and_precision_on_the_corpus() -> None:
    assert figures_of(lines("fallback_lines.jsonl"), "corpus") == (1.0, 1.0)


def test_recall_and_precision_on_lines_held_out() -> None:
    """A floor, not a proof: the rules were improved after each set was first measured."""
    recall, precision = figures_of(lines("heldout_lines.jsonl"), "held out")
    assert recall >= 0.97
    assert precision >= 0.98


def test_recall_and_precision_on_lines_no_rule_was_written_from() -> None:
    """Measured once. Improve rules from other lines; a miss in here stays a miss."""
    recall, precision = figures_of(lines("heldout_lines_2.jsonl"), "held out, frozen")
    assert recall >= 14 / 17
    assert precision == 1.0


def test_the_frozen_lines_are_those_that_were_measured() -> None:
    data = (DATA / "heldout_lines_2.jsonl").read_bytes()
    assert hashlib.sha256(data).hexdigest() == FROZEN


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("fallback_lines.jsonl", "corpus"),
        ("heldout_lines.jsonl", "held out"),
        ("heldout_lines_2.jsonl", "held out, frozen"),
    ],
)
def test_the_table_in_the_documentation_is_fresh(name: str, title: str) -> None:
    document = DOCUMENT.read_text("utf-8")
    missing = [row for row in rows_of(lines(name), title) if row not in document]
    assert missing == [], "put these rows into docs/log-gate.md"


@pytest.mark.parametrize(("cls", "allowed"), [("WARN", {"warn"}), ("AMBIGUOUS", {"warn", "none"})])
def test_small_losses_never_fail_a_build(cls: str, allowed: set[str]) -> None:
    entries = [entry for entry in lines("fallback_lines.jsonl") if entry["cls"] == cls]
    assert entries
    assert {entry["text"]: verdict_of(entry["text"]) for entry in entries} == {
        entry["text"]: verdict
        for entry in entries
        if (verdict := verdict_of(entry["text"])) in allowed
    }


def test_every_rule_finds_its_example_and_every_allow_entry_takes_its_own() -> None:
    assert problems_of(load_rules()) == []


def test_every_entry_is_explained() -> None:
    rules = load_rules()
    for rule in rules.rules:
        assert all((rule.why, rule.seen, rule.source)), rule.id
    for entry in rules.allow:
        assert all((entry.reason, entry.scope.stage, entry.scope.process)), entry.id


def test_failing_rules_come_first() -> None:
    severities = [rule.severity for rule in load_rules().rules]
    assert severities == sorted(severities)


RULE = """
schema = 1
anchors = ['x']
first_pass = ['x']
[words]
a = ['x<b>']
b = ['{b}']
[[rule]]
id = "one"
severity = "fail"
patterns = ['{pattern}']
why = "w"
seen = ["s"]
example = "{example}"
source = "s"
"""


def rule_file(*, pattern: str = "<a>", b: str = "y", example: str = "xy", more: str = "") -> str:
    return RULE.format(pattern=pattern, b=b, example=example) + more


def test_words_are_filled_in_and_blanks_stand_for_any_number() -> None:
    assert expand("<a> z", {"a": ("x<b>",), "b": ("[y ]", "z")}) == (
        r"(?:x(?:[y \x1d]|z))(?:[ \x1d]+)z"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rule_file(pattern="<c>"), "no word <c>"),
        (rule_file(b="<a>"), "contain each other"),
        (rule_file().replace('"fail"', '"fatal"'), "Invalid enum value"),
        (rule_file().replace("why", "because"), "because"),
        (rule_file(more=rule_file().partition("y']\n")[2]), "used twice"),
        ("schema = ", "Invalid value"),
    ],
)
def test_a_bad_rules_file_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_rules(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rule_file(pattern="x(?=y)"), "RE2 refuses"),
        (rule_file(example="zz"), "does not find its own example"),
        (rule_file(pattern="y", example="y"), "first_pass does not find"),
    ],
)
def test_a_bad_pattern_is_named(text: str, words: str) -> None:
    (problem,) = problems_of(read_rules(text))
    assert words in problem


def test_an_allow_entry_holds_only_in_its_scope() -> None:
    entry = """
[[allow]]
id = "two"
patterns = ['xy']
reason = "r"
scope = { stage = ["build"], process = "pip*" }
example = "xy"
"""
    rules = read_rules(rule_file(more=entry))
    found = {
        (stage, process): bool(scan_text("xy", rules.for_scope(stage=stage, process=process)))
        for stage in ("build", "smoke")
        for process in ("pip install", "serve")
    }
    assert found == {
        ("build", "pip install"): False,
        ("build", "serve"): True,
        ("smoke", "pip install"): True,
        ("smoke", "serve"): True,
    }


def test_an_allow_entry_takes_only_its_own_words() -> None:
    harmless = "Force fallback to CPU execution for node: a"
    assert verdict_of(harmless) == "none"
    assert verdict_of(f"{harmless}; Failed to create CUDAExecutionProvider.") == "fail"


def test_loading_rules_compiles_nothing() -> None:
    code = (
        "import sys, smoke.gates.logs, smoke.rules; smoke.rules.load_rules();"
        "print('re2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_patterns_keep_to_what_joined_lines_allow() -> None:
    """No anchors, which joining moves; no `.`, which reaches over the border of two messages."""
    file = tomllib.loads(RULES_FILE.read_text("utf-8"))
    texts = [text for word in file["words"].values() for text in word] + file["first_pass"]
    texts += [text for entry in file["rule"] + file["allow"] for text in entry["patterns"]]
    assert len(texts) > 100
    bare = [re.sub(r"\\.|\[(?:\\.|[^\]])*\]", "", text) for text in texts]
    assert [text for text in bare if set(text) & set(".^$")] == []
