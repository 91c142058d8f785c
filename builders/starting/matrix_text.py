"""The text of a starting `matrix.yaml`: ours where every matrix is alike, the model's where not.

Comments say what a person has to look at. Whatever comes from the model's file is written as YAML
that reads back as the same text: plain words as they are, everything else in double quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from builders.starting.model import StartingModel
from builders.starting.ours import image_entry, section, template
from builders.starting.shapes import OpenInputs, OpenShape, Range
from planyard.core.units import format_bytes

Choice = Literal["cpu", "gpu", "rtx"]
IMAGES: Mapping[Choice, str] = {"rtx": "rtx", "cpu": "ort-cpu", "gpu": "ort-gpu"}
"""The image, and the Dockerfile stage, of each choice, in the order of our own matrix."""
_BACKENDS: Mapping[Choice, str] = {"rtx": "tensorrt-rtx", "gpu": "onnxruntime-cuda"}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_LARGE_BYTES = 1 << 30

_GPUS = """\
gpus:
  cpu:
    backends: [onnxruntime-cpu]
    runs_on: [ubuntu-latest]
"""
_GPU = """\
  # SM 8.9 is an L4, L40 or RTX 40; 8.6 an A10 or RTX 30; 12.0 an RTX 50. Name yours.
  sm89:
    sm: 89
    backends: [{backends}]
    runs_on: [self-hosted, gpu, sm89]
"""
_ATTENTION = """\
  cells:
    # On the CPU the model is the reference for outputs. Lower the number to what it reaches there.
    - cells: ort-cpu/*
      unfused_attention: {blocks}
      reason: the CPU image is the reference for outputs and not what is served
"""


def matrix_text(model: StartingModel, *, choices: Sequence[Choice]) -> str:
    """The whole file. `choices` have no repeats; the CPU image is among them as the reference."""
    parts = {
        "PINS": section("pins"),
        "BASES": section("bases"),
        "IMAGES": "images:\n" + "\n".join(image_entry(IMAGES[each]) for each in choices),
        "MODELS": models_text(model),
        "GPUS": _gpus(choices),
        "GATES": _gates(model, choices) + _smoke(model),
    }
    # In one pass: a model may be called @PINS@.
    text = re.sub(r"@([A-Z]+)@\n", lambda found: parts[found[1]] + "\n", template("matrix.yaml"))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def models_text(model: StartingModel) -> str:
    """The block `models:`."""
    lines = ["models:", f"  {scalar(model.name)}:"]
    lines += [f"    source: {{file: {scalar(model.path)}}}", f"    sha256: {model.sha256}"]
    if model.external:
        lines.append("    external_data:")
        lines += [f"      {scalar(file)}: {digest}" for file, digest in model.external.items()]
    lines += ["    # Read from the file: numbers are fixed, names vary.", "    inputs:"]
    for each in model.inputs.inputs:
        shape = ", ".join(
            str(size) if isinstance(size, int) else scalar(size) for size in each.shape
        )
        lines.append(f"      {scalar(each.name)}: {{dtype: {each.dtype}, shape: [{shape}]}}")
    lines += _profiles(model.inputs)
    lines += [
        "    # How far an output may be from the one of the fp32 model on the CPU.",
        "    tolerance:",
        "      fp32: {max_abs: 0.001, mean_abs: 0.0001}",
    ]
    return "\n".join(lines) + "\n"


def _profiles(inputs: OpenInputs) -> list[str]:
    if not inputs.ranges:
        return ["    # No dimension of this model varies.", "    profiles:", "      default: {}"]
    lines = [
        "    # LOOK HERE: the file does not say between which sizes a name varies. Guessed:",
        *(f"    #   {name} {size_text(size)}" for name, size in inputs.ranges.items()),
        "    # Smoke runs ask for opt; a plan takes all from min to max, and is made for opt.",
        "    profiles:",
        "      default:",
    ]
    for each in inputs.inputs:
        if any(isinstance(size, str) for size in each.shape):
            sides = ", ".join(
                f"{side}: {_sizes(each, inputs.ranges, side)}" for side in ("min", "opt", "max")
            )
            lines.append(f"        {scalar(each.name)}: {{{sides}}}")
    return lines


def size_text(size: Range) -> str:
    """`1 to 4, opt 1 (a batch)`."""
    return f"{size.min} to {size.max}, opt {size.opt} ({size.meaning})"


def _sizes(each: OpenShape, ranges: Mapping[str, Range], side: str) -> list[int]:
    return [
        size if isinstance(size, int) else int(getattr(ranges[size], side)) for size in each.shape
    ]


def _gpus(choices: Sequence[Choice]) -> str:
    backends = ", ".join(_BACKENDS[each] for each in choices if each in _BACKENDS)
    return _GPUS + (_GPU.format(backends=backends) if backends else "")


def _gates(model: StartingModel, choices: Sequence[Choice]) -> str:
    text = section("gates").removeprefix("gates:\n") if "gpu" in choices else ""
    if model.attention_blocks:
        text += _ATTENTION.format(blocks=model.attention_blocks)
    return f"\ngates:\n{text}" if text else ""


def _smoke(model: StartingModel) -> str:
    """Room for a large model: its weights are in memory about twice while it is loaded."""
    if model.size_bytes <= _LARGE_BYTES:
        return ""
    gib = -(-3 * model.size_bytes // (1 << 30)) + 2
    size = format_bytes(model.size_bytes)
    return f"\n# The model has {size}.\nsmoke:\n  memory: {gib} GiB\n"


def scalar(text: str) -> str:
    """`text` as YAML reads it back: plain where that is safe, else in double quotes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
