"""Every input of a plan changes its recipe's digest; the order it was written in does not."""

import msgspec
import pytest

from engines.recipe import (
    Conversion,
    GpuBuild,
    PlanRecipe,
    recipe_digest,
    recipe_from_inputs,
    recipe_inputs,
)
from planyard.core.digest import digest_of_value
from planyard.core.matrix import ShapeRange


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def square(side: int, *, batch: int = 1) -> ShapeRange:
    shape = (batch, 3, side, side)
    return ShapeRange(min=(1, 3, side, side), opt=shape, max=shape)


RECIPE = PlanRecipe(
    model=digest("a"),
    backend="tensorrt",
    version="11.2.1.2",
    builder_image=digest("b"),
    script=digest("c"),
    sm_targets=(86, 89),
    profile={"x": square(640), "y": square(960)},
    precision="fp16",
    workspace_bytes=1 << 30,
    optimization_level=3,
    flags=("STRICT_NANS", "TF32"),
    tactic_sources=("JIT_CONVOLUTIONS",),
    conversion=Conversion(script=digest("d"), packages={"onnx": "1.23.2", "numpy": "2.4.6"}),
    plugins={"a.so": digest("e"), "b.so": digest("f")},
    timing_cache=digest("0"),
    built_on=GpuBuild(driver="580", cuda="13.0"),
)

OTHERS = {
    "other weights (microsoft/onnxruntime#6455)": {"model": digest("1")},
    "another static shape (microsoft/onnxruntime#32254)": {
        "profile": {"x": square(1280), "y": square(960)}
    },
    "builder flags (huggingface/optimum-neuron#457)": {"flags": ("TF32",)},
    "another TensorRT version": {"version": "11.2.1.3"},
    "another SM": {"sm_targets": (89,)},
    "one SM more": {"sm_targets": (86, 89, 120)},
    "another backend": {"backend": "tensorrt-rtx"},
    "another builder image": {"builder_image": digest("1")},
    "another compile script": {"script": digest("1")},
    "another optimum": {
        "profile": {"x": msgspec.structs.replace(square(640), opt=(1, 3, 64, 64)), "y": square(960)}
    },
    "another largest batch": {"profile": {"x": square(640, batch=4), "y": square(960)}},
    "shapes of two inputs exchanged": {"profile": {"x": square(960), "y": square(640)}},
    "another precision": {"precision": "fp32"},
    "another workspace": {"workspace_bytes": 2 << 30},
    "another optimization level": {"optimization_level": 5},
    "the default optimization level": {"optimization_level": None},
    "other tactics": {"tactic_sources": ("EDGE_MASK_CONVOLUTIONS",)},
    "no tactics": {"tactic_sources": ()},
    "the default tactics": {"tactic_sources": None},
    "no conversion": {"conversion": None},
    "another conversion script": {
        "conversion": Conversion(script=digest("1"), packages={"onnx": "1.23.2", "numpy": "2.4.6"})
    },
    "another converter": {
        "conversion": Conversion(script=digest("d"), packages={"onnx": "1.23.1", "numpy": "2.4.6"})
    },
    "other calibration data": {
        "conversion": Conversion(
            script=digest("d"),
            packages={"onnx": "1.23.2", "numpy": "2.4.6"},
            calibration=digest("1"),
        )
    },
    "still other calibration data": {
        "conversion": Conversion(
            script=digest("d"),
            packages={"onnx": "1.23.2", "numpy": "2.4.6"},
            calibration=digest("2"),
        )
    },
    "another plugin": {"plugins": {"a.so": digest("1"), "b.so": digest("f")}},
    "plugins exchanged": {"plugins": {"a.so": digest("f"), "b.so": digest("e")}},
    "another timing cache": {"timing_cache": digest("1")},
    "no timing cache": {"timing_cache": None},
    "another driver": {"built_on": GpuBuild(driver="575", cuda="13.0")},
    "another CUDA": {"built_on": GpuBuild(driver="580", cuda="13.1")},
    "no GPU": {"built_on": None},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_another_input_is_another_recipe(change: dict[str, object]) -> None:
    assert recipe_digest(msgspec.structs.replace(RECIPE, **change)) != recipe_digest(RECIPE)


def test_no_two_of_the_changes_collide() -> None:
    changed = {recipe_digest(msgspec.structs.replace(RECIPE, **one)) for one in OTHERS.values()}
    assert len(changed) == len(OTHERS)


def test_every_field_is_changed_above() -> None:
    assert {name for change in OTHERS.values() for name in change} == set(
        PlanRecipe.__struct_fields__
    )


def test_order_carries_no_meaning() -> None:
    assert RECIPE.conversion is not None
    other = msgspec.structs.replace(
        RECIPE,
        sm_targets=(89, 86),
        flags=("TF32", "STRICT_NANS"),
        profile=dict(reversed(RECIPE.profile.items())),
        plugins=dict(reversed(RECIPE.plugins.items())),
        conversion=Conversion(
            script=RECIPE.conversion.script,
            packages=dict(reversed(RECIPE.conversion.packages.items())),
        ),
    )
    assert recipe_digest(other) == recipe_digest(RECIPE)


def test_the_digest_is_of_the_inputs_a_plan_record_carries() -> None:
    assert recipe_digest(RECIPE) == digest_of_value(recipe_inputs(RECIPE))


def test_the_digest_does_not_drift_between_releases() -> None:
    expected = "sha256:d642dd1aab49797499f9a0eef3d9ea2399966558e88e2a56a2d9eab61ea1827b"
    assert recipe_digest(RECIPE) == expected, "a new schema number is needed, and this value"


def test_what_only_int8_has_is_no_input_of_other_recipes() -> None:
    """Recipes of plans that are stored already: a new key would lose them all."""
    assert recipe_inputs(RECIPE)["conversion"].keys() == {"script", "packages"}


def test_int8_reads_back_with_its_calibration() -> None:
    assert RECIPE.conversion is not None
    conversion = msgspec.structs.replace(RECIPE.conversion, calibration=digest("9"))
    int8 = msgspec.structs.replace(RECIPE, conversion=conversion, precision="int8")
    assert recipe_inputs(int8)["conversion"]["calibration"] == digest("9")
    assert recipe_from_inputs(recipe_inputs(int8)) == int8


def test_inputs_read_back() -> None:
    assert recipe_from_inputs(recipe_inputs(RECIPE)) == RECIPE
    with pytest.raises(ValueError, match="schema 2"):
        recipe_from_inputs({**recipe_inputs(RECIPE), "schema": 2})


@pytest.mark.parametrize(
    "change",
    [
        {"model": "a" * 64},
        {"builder_image": "latest"},
        {"script": ""},
        {"plugins": {"a.so": "1"}},
        {"timing_cache": "x"},
        {"conversion": Conversion(script="x", packages={})},
        {"conversion": Conversion(script=digest("1"), packages={}, calibration="samples.npz")},
    ],
)
def test_what_should_be_a_digest_is_one(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        msgspec.convert({**recipe_fields(), **msgspec.to_builtins(change)}, PlanRecipe)


def test_a_plan_has_a_target() -> None:
    with pytest.raises(ValueError, match="at least one SM"):
        msgspec.convert({**recipe_fields(), "sm_targets": []}, PlanRecipe)


def recipe_fields() -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(RECIPE)
    return fields
