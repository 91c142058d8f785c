"""The recipe of a plan: everything its bytes are made from. Its digest decides about compiling.

Pure. What is left out here is served wrongly from a cache; public keys have missed other weights
(microsoft/onnxruntime#6455), another static shape (microsoft/onnxruntime#32254), builder flags
(huggingface/optimum-neuron#457), and the TensorRT version and SM. Rebuilding a recipe gives other
bytes, so one recipe may have several plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from planyard.core.digest import digest_of_value, is_digest
from planyard.core.matrix import Precision, ShapeRange

RECIPE_SCHEMA = 1


class Conversion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model was brought to another precision: the script's digest, each library's version.

    What only int8 has is left out of other recipes, so that their digests stay what they were.
    """

    script: str
    packages: dict[str, str]
    calibration: str | None = None
    """The digest of the samples that int8 ranges were measured on."""


class GpuBuild(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of a plan that was built on a GPU: driver branch ("580") and CUDA ("13.0")."""

    driver: str
    cuda: str


class PlanRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """All inputs of a plan. Digests are `sha256:…`; sizes are bytes; an SM is 86 for 8.6.

    The order of `sm_targets`, `flags` and `tactic_sources`, and of every dict, carries no meaning.
    None means the compiler's default, or that the plan was made without one.
    """

    model: str
    """The model with its external weights."""
    backend: Literal["tensorrt-rtx", "tensorrt"]
    version: str
    """All parts, as the compiler in the image says: "1.7.1.116"."""
    builder_image: str
    """The OCI manifest digest of the image it is compiled in."""
    script: str
    """The script inside that image which sets the builder up."""
    sm_targets: tuple[int, ...]
    profile: dict[str, ShapeRange]
    precision: Precision
    workspace_bytes: int
    optimization_level: int | None = None
    flags: tuple[str, ...] = ()
    tactic_sources: tuple[str, ...] | None = None
    conversion: Conversion | None = None
    plugins: dict[str, str] = {}
    """Digest of each plugin library by its name."""
    timing_cache: str | None = None
    built_on: GpuBuild | None = None

    def __post_init__(self) -> None:
        wrong = [name for name, value in _digests(self) if not is_digest(value)]
        if wrong:
            raise ValueError(f"not a digest: {', '.join(wrong)}")
        if not self.sm_targets:
            raise ValueError("a plan is compiled for at least one SM")


def recipe_inputs(recipe: PlanRecipe) -> dict[str, Any]:
    """The recipe as a JSON value, sets in order: what `recipe_digest` is the digest of."""
    inputs: dict[str, Any] = msgspec.to_builtins(recipe)
    for name in ("sm_targets", "flags", "tactic_sources"):
        if inputs[name] is not None:
            inputs[name] = sorted(set(inputs[name]))
    return {"schema": RECIPE_SCHEMA, **inputs}


def recipe_digest(recipe: PlanRecipe) -> str:
    """The digest of a recipe: equal for equal inputs in any order, other for any other input."""
    return digest_of_value(recipe_inputs(recipe))


def recipe_from_inputs(inputs: dict[str, Any]) -> PlanRecipe:
    """The recipe that `recipe_inputs` wrote; raises ValueError for another schema or shape."""
    if inputs.get("schema") != RECIPE_SCHEMA:
        raise ValueError(f"a recipe of schema {inputs.get('schema')}, not {RECIPE_SCHEMA}")
    fields = {name: value for name, value in inputs.items() if name != "schema"}
    return msgspec.convert(fields, PlanRecipe)


def _digests(recipe: PlanRecipe) -> Iterator[tuple[str, str]]:
    yield "model", recipe.model
    yield "builder_image", recipe.builder_image
    yield "script", recipe.script
    for name, value in recipe.plugins.items():
        yield f"plugins.{name}", value
    if recipe.conversion:
        yield "conversion.script", recipe.conversion.script
        if recipe.conversion.calibration is not None:
            yield "conversion.calibration", recipe.conversion.calibration
    if recipe.timing_cache is not None:
        yield "timing_cache", recipe.timing_cache
