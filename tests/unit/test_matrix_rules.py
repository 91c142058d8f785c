from pathlib import Path

import pytest
from msgspec.structs import replace

from planyard.core.cells import Cell
from planyard.core.located import Part, path_text
from planyard.core.matrix import (
    Base,
    Calibration,
    DebianBase,
    Drop,
    Gpu,
    Image,
    Promotion,
    ShapeRange,
    Source,
    TensorSpec,
    Tolerance,
)
from planyard.core.matrix_rules import (
    RULED_TYPES,
    broken_cell_rules,
    broken_rules,
    parts_of,
)
from planyard.core.matrix_runtime import SessionSpec, TensorRtBuild
from planyard.core.reader import read_matrix, read_value
from planyard.core.yaml_tree import parse_tree

VALID = (Path(__file__).parents[1] / "data/matrix/valid.yaml").read_bytes()
MATRIX = read_matrix(VALID)
UNET = MATRIX.models["unet"]
DEBIAN = DebianBase(release="bookworm", packages=("libc6",))


def broken(value):
    """What breaks in one part, as text; the part's own path is left out."""
    found = broken_rules([Part(("parts", "it"), type(value), value)])
    return [f"{path_text(rule.path[2:])}: {rule.message}" for rule in found]


def unet(**profile):
    """The UNet with another profile."""
    return replace(UNET, profiles={"p": profile})


def spans(batch, *, rest=(4, 64, 64)):
    low, best, high = batch
    return ShapeRange(min=(low, *rest), opt=(best, *rest), max=(high, *rest))


STATES = spans((1, 2, 8), rest=(77, 768))


def test_the_valid_matrix_breaks_no_rule():
    assert broken_rules(parts_of(MATRIX)) == []


def test_the_parts_of_a_value_are_those_that_reading_keeps():
    _matrix, problems, kept = read_value(parse_tree(VALID).root, type(MATRIX), kept=RULED_TYPES)
    assert problems == []
    assert sorted(map(repr, kept)) == sorted(map(repr, parts_of(MATRIX)))
    assert {part.kind for part in kept} == RULED_TYPES


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Base(), "(top level): nothing is chosen here: write exactly one of debian, registry"),
        (Base(debian=DEBIAN, registry="r@sha256:0"), "registry: debian is given already: keep exa"),
        (Source(), "(top level): nothing is chosen here: write exactly one of file, wheel, https,"),
        (Source(file="a", s3="s3://bucket/b"), "s3: file is given already: keep exactly one"),
        (
            Image(backend="tensorrt-rtx"),
            "(top level): the backend tensorrt-rtx compiles plans: add",
        ),
        (Image(backend="tensorrt"), "(top level): the backend tensorrt compiles plans: add compi"),
        (
            Image(backend="onnxruntime-cpu", compiler_lock="l"),
            "compiler_lock: there is no compiler to lock: remove this key",
        ),
        (Gpu(backends=("tensorrt-rtx",)), "(top level): tensorrt-rtx runs on a GPU: add sm: with"),
        (
            Gpu(backends=("onnxruntime-cpu", "onnxruntime-cuda")),
            "(top level): onnxruntime-cuda runs",
        ),
        (Promotion(key="cosign.pub"), "key: nothing has to be signed: write signed: true"),
        (Promotion(signed=True, identity="a"), "(top level): an identity is only its issuer's"),
        (Promotion(signed=True, issuer="a"), "(top level): an identity is only its issuer's"),
        (
            Promotion(signed=True, key="cosign.pub", identity="a", issuer="b"),
            "identity: key is given already",
        ),
        (Gpu(backends=("onnxruntime-cpu",), sm=89), "sm: no backend here runs on a GPU: remove sm"),
    ],
)
def test_one_broken_rule_is_one_message(value, expected):
    (found,) = broken(value)
    assert found.startswith(expected)


@pytest.mark.parametrize(
    "value",
    [
        Base(debian=DEBIAN),
        Source(s3="s3://bucket/b"),
        Image(backend="tensorrt-rtx", compiler="c", compiler_lock="l"),
        Image(backend="onnxruntime-cpu"),
        Image(backend="onnxruntime-cuda", compiler="c", compiler_lock="l"),
        Promotion(signed=True),
        Promotion(signed=True, key="cosign.pub"),
        Promotion(signed=True, identity="a", issuer="b"),
        Gpu(backends=("onnxruntime-cpu",)),
        Gpu(backends=("onnxruntime-cpu", "onnxruntime-cuda"), sm=89),
    ],
)
def test_what_keeps_the_rules_is_left_alone(value):
    assert broken(value) == []


@pytest.mark.parametrize(
    "cells", ["a/b/c/d/e", "*", "rtx/*", "a/b/c/d/[ef]", "*[!]]", "a/?/c/d/e", "a/b*/c/d/e"]
)
def test_a_pattern_that_can_match_a_cell_is_kept(cells):
    assert broken(Drop(id="d", cells=cells, reason="for a reason")) == []


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("rtx", 'cells: "rtx" can match no cell: write image/model/profile/precision/gpu'),
        ("a/b/c/d", 'cells: "a/b/c/d" can match no cell'),
        ("a/*/b/c/d/e", 'cells: "a/*/b/c/d/e" can match no cell'),
        ("*/[ab", 'cells: "*/[ab" opens a set with [ and does not close it'),
        ("*/[]", 'cells: "*/[]" opens a set'),
        ("*/[!]", 'cells: "*/[!]" opens a set'),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(cells, expected):
    (found,) = broken(Drop(id="d", cells=cells, reason="for a reason"))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (spans((2, 2, 1)), "min[0]: min 2 is greater than max 1: write min <= opt <= max"),
        (spans((2, 1, 3)), "opt[0]: opt 1 is outside of min 2 and max 3: write one between them"),
        (spans((2, 4, 3)), "opt[0]: opt 4 is outside of min 2 and max 3: write one between them"),
        (
            ShapeRange(min=(1,), opt=(1, 2), max=(1, 2)),
            "(top level): min has 1 dimensions, opt 2 and max 2: write one number for each",
        ),
    ],
)
def test_a_range_is_ordered(shapes, expected):
    assert broken(shapes) == [expected]


def test_every_wrong_dimension_of_a_range_is_named():
    shapes = ShapeRange(min=(3, 1, 9), opt=(3, 5, 9), max=(2, 4, 9))
    assert [found.split(":")[0] for found in broken(shapes)] == ["min[0]", "opt[1]"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (unet(sample=spans((1, 2, 8)), states=STATES), []),
        (
            unet(
                sample=spans((1, 2, 8)), states=STATES, timestep=ShapeRange(min=(), opt=(), max=())
            ),
            [],
        ),
        (
            unet(sample=spans((1, 2, 8))),
            [
                "profiles.p: the input states varies in batch and has no range here: "
                "add states: with min, opt and max"
            ],
        ),
        (
            unet(sample=spans((1, 2, 8)), states=STATES, sampel=STATES),
            ['profiles.p.sampel: the model has no input "sampel": did you mean "sample"?'],
        ),
        (
            unet(sample=spans((1, 2, 8), rest=(4, 64)), states=STATES),
            [
                f"profiles.p.sample.{side}: 3 dimensions, but the input has 4: write 4 numbers"
                for side in ("min", "opt", "max")
            ],
        ),
        (
            unet(sample=spans((1, 2, 8), rest=(4, 64, 65)), states=STATES),
            [
                f"profiles.p.sample.{side}[3]: the input has 64 here, not 65: "
                "write 64, or name the dimension"
                for side in ("min", "opt", "max")
            ],
        ),
        (
            unet(sample=spans((1, 2, 4)), states=STATES),
            [
                "profiles.p.states: batch is 1/2/8 here and 1/2/4 in sample: "
                "write the same min, opt and max, or give it another name"
            ],
        ),
    ],
)
def test_profiles_fit_the_inputs(model, expected):
    assert broken(model) == expected


def test_a_name_twice_in_one_input_has_one_range():
    model = replace(
        UNET,
        inputs={"x": TensorSpec(dtype="float32", shape=("s", "s"))},
        profiles={"p": {"x": ShapeRange(min=(1, 1), opt=(2, 2), max=(3, 4))}},
    )
    (found,) = broken(model)
    assert found.startswith("profiles.p.x: s is 1/2/4 here and 1/2/3 in x")


def test_an_image_starts_from_a_base_of_the_matrix():
    image = Part(("images", "i"), Image, Image(backend="onnxruntime-cpu", base="bookwurm"))
    bases = [Part(("bases", name), Base, None) for name in ("bookworm", "other")]
    (found,) = broken_rules([*bases, image])
    assert found.path == ("images", "i", "base")
    assert found.message == (
        'there is no base "bookwurm": write one of bookworm, other; did you mean "bookworm"?'
    )
    (found,) = broken_rules([image])
    assert found.message == 'there is no base "bookwurm": add it under bases'


def test_the_id_of_a_drop_rule_is_its_own():
    rules = [Drop(id=name, cells="*", reason="for a reason") for name in ("a", "b", "a", "a")]
    found = broken_rules([Part(("drop", index), Drop, rule) for index, rule in enumerate(rules)])
    assert [path_text(rule.path) for rule in found] == ["drop[2].id", "drop[3].id"]
    assert found[0].message == "drop[0] has the id a already: write another id"


# INT8, and models that are converted

SAMPLES = Calibration(file="samples.npz", sha256="sha256:" + "5" * 64)
ACCURACY = {"int8": Tolerance(max_abs=0.1, mean_abs=0.01)}
INT8_NET = replace(
    UNET,
    inputs={"x": TensorSpec(dtype="float32", shape=("n", 4))},
    profiles={"p": {"x": ShapeRange(min=(1, 4), opt=(1, 4), max=(2, 4))}},
    calibration=SAMPLES,
    tolerance=ACCURACY,
)


def cell_of(image, precision, *, model="net", backend="tensorrt-rtx"):
    return Cell(
        id=f"{image}/{model}/p/{precision}/g",
        image=image,
        model=model,
        profile="p",
        precision=precision,
        gpu="g",
        sm=89,
        backend=backend,
    )


def broken_cells(*cells, model=INT8_NET, **images):
    """What breaks when these cells are left of a matrix with one model."""
    images = images or {"rtx": Image(backend="tensorrt-rtx", compiler="c")}
    matrix = replace(MATRIX, models={"net": model}, images=images)
    return [f"{path_text(path)}: {text}" for path, text in broken_cell_rules(matrix, cells)]


def test_calibration_without_an_accuracy_is_half_of_int8():
    (found,) = broken(replace(INT8_NET, tolerance={}))
    assert found.startswith("calibration: calibration is for int8: the matrix names the accuracy")
    assert broken(INT8_NET) == []
    assert broken(replace(INT8_NET, calibration=None)) == []


def test_cells_in_int8_need_an_accuracy_and_samples():
    cells = [cell_of("rtx", "int8"), cell_of("rtx", "int8")]
    (accuracy, samples) = broken_cells(
        *cells, model=replace(INT8_NET, tolerance={}, calibration=None)
    )
    assert accuracy == (
        "models.net: rtx/net/p/int8/g and 1 more are cells, and the matrix names the accuracy it "
        "must keep: add tolerance: with int8: {max_abs: …, mean_abs: …, cosine: …}"
    )
    assert samples == (
        "models.net: rtx/net/p/int8/g and 1 more are cells, and there are no samples to measure "
        "on: add calibration: {file: samples.npz, sha256: …}, or drop them"
    )
    assert broken_cells(*cells) == []


def test_a_model_without_int8_cells_needs_nothing_of_it():
    bare = replace(INT8_NET, tolerance={}, calibration=None)
    assert broken_cells(cell_of("rtx", "fp16"), cell_of("rtx", "fp32"), model=bare) == []


@pytest.mark.parametrize(("first", "sound"), [(4, False), (1, True), ("n", True)])
def test_a_batch_of_one_can_be_fed(first, sound):
    model = replace(INT8_NET, inputs={"x": TensorSpec(dtype="float32", shape=(first, 4))})
    found = broken_cells(cell_of("rtx", "int8"), model=model)
    assert (found == []) == sound
    if not sound:
        assert found[0].startswith("models.net.inputs.x.shape[0]: int8 is calibrated with a batch")


def test_a_scalar_input_has_no_batch():
    inputs = {**INT8_NET.inputs, "t": TensorSpec(dtype="float32", shape=())}
    assert broken_cells(cell_of("rtx", "int8"), model=replace(INT8_NET, inputs=inputs)) == []


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "onnxruntime-cuda"])
def test_onnx_runtime_needs_a_converter_for_another_precision(precision, backend):
    cell = cell_of("ort", precision, backend=backend)
    (found,) = broken_cells(cell, ort=Image(backend=backend))
    assert found == (
        f"images.ort: ort/net/p/{precision}/g is a cell of this image, and nothing converts the "
        "model: add compiler: with a stage that has the converter, or drop them"
    )
    assert broken_cells(cell, ort=Image(backend=backend, compiler="c")) == []


def test_a_converter_that_nothing_needs_is_told():
    cell = cell_of("ort", "fp32", backend="onnxruntime-cpu")
    (found,) = broken_cells(cell, ort=Image(backend="onnxruntime-cpu", compiler="c"))
    assert found == (
        "images.ort.compiler: every cell of this image serves the model as published: "
        "remove this key"
    )


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"])
def test_only_classic_tensorrt_is_told_how_to_build(backend):
    image = Image(backend=backend, compiler="c", tensorrt=TensorRtBuild(version_compatible=True))
    assert broken(image) == [
        f"tensorrt: {backend} builds no plans with classic TensorRT: remove this key"
    ]


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (TensorRtBuild(), []),
        (TensorRtBuild(version_compatible=True, runtime="lean"), []),
        (TensorRtBuild(refit_identical=True), []),
        (
            TensorRtBuild(runtime="lean"),
            [
                "tensorrt.runtime: the lean runtime runs version-compatible plans only: "
                "add version_compatible: true, or write full"
            ],
        ),
        (
            TensorRtBuild(runtime="lean", version_compatible=True, refit_identical=True),
            [
                "tensorrt.refit_identical: weights are put back by the full library, and this "
                "image has the lean runtime: write false, or runtime: full"
            ],
        ),
    ],
)
def test_the_lean_runtime_runs_what_it_can(build, found):
    assert broken(Image(backend="tensorrt", compiler="c", tensorrt=build)) == found


def test_the_rules_of_sessions_are_asked():
    """They are in session_rules.py; here it only counts that an image is held against them."""
    image = Image(
        backend="tensorrt", compiler="c", session=SessionSpec(providers=("CPUExecutionProvider",))
    )
    assert [each.partition(":")[0] for each in broken(image)] == ["session"]
