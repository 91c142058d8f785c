"""Whatever the matrix: nothing is lost, nothing is twice, and the first matching rule has it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import product

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from planyard.core.cells import compile_groups, expand, github_matrix, plan_cells, select
from planyard.core.compat import load_compat
from planyard.core.errors import NothingSelectedError
from planyard.core.matrix import (
    Drop,
    Gpu,
    Image,
    Matrix,
    Model,
    OnnxRuntimePin,
    Pins,
    ShapeRange,
    Source,
    TensorSpec,
)

BACKENDS = ["tensorrt-rtx", "tensorrt", "onnxruntime-cpu", "onnxruntime-cuda"]
PINS = Pins(
    driver="580",
    cuda="13.0",
    cudnn="9.28",
    onnxruntime=OnnxRuntimePin(version="1.31.1"),
    tensorrt="11.2.1.2",
    tensorrt_rtx="1.7.1.116",
    python="3.11",
)
SHAPE = {"x": ShapeRange(min=(1,), opt=(1,), max=(1,))}

names = st.text("ab1.-_", min_size=1, max_size=3).filter(lambda name: name[0] not in ".-_")
patterns = st.text("ab1*?/[]!-fp36", min_size=1, max_size=12) | st.just("*")
images = st.builds(Image, backend=st.sampled_from(BACKENDS))
gpus = st.builds(
    Gpu,
    sm=st.none() | st.sampled_from([70, 75, 86, 90, 100, 120, 121]),
    backends=st.lists(st.sampled_from(BACKENDS), min_size=1, unique=True).map(tuple),
)


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    """A matrix of up to 3 images, 3 models of 3 profiles, 2 precisions, 3 GPUs and 3 rules."""
    profiles = st.lists(names, min_size=1, max_size=3, unique=True)
    models = draw(st.dictionaries(names, profiles, min_size=1, max_size=3))
    rules = draw(st.lists(patterns, max_size=3))
    return Matrix(
        schema=1,
        pins=PINS,
        images=draw(st.dictionaries(names, images, min_size=1, max_size=3)),
        models={
            name: Model(
                source=Source(file="model.onnx"),
                sha256="sha256:" + "0" * 64,
                inputs={"x": TensorSpec(dtype="float32", shape=("n",))},
                profiles=dict.fromkeys(keys, SHAPE),
            )
            for name, keys in models.items()
        },
        precisions=tuple(draw(st.permutations(["fp32", "fp16"]))),
        gpus=draw(st.dictionaries(names, gpus, min_size=1, max_size=3)),
        drop=tuple(
            Drop(id=f"rule-{index}", cells=cells, reason="a reason")
            for index, cells in enumerate(rules)
        ),
    )


def every_id(matrix: Matrix) -> list[str]:
    return [
        f"{image}/{model}/{profile}/{precision}/{gpu}"
        for image, model in product(matrix.images, matrix.models)
        for profile, precision, gpu in product(
            matrix.models[model].profiles, matrix.precisions, matrix.gpus
        )
    ]


@given(matrices())
def test_every_point_is_there_once_and_in_order(matrix: Matrix):
    expansion = expand(matrix, load_compat())
    cells = [cell.id for cell in expansion.cells]
    dropped = [one.id for one in expansion.dropped]
    points = every_id(matrix)
    assert sorted(cells + dropped) == sorted(points)
    assert cells == [point for point in points if point in set(cells)]
    assert dropped == [point for point in points if point in set(dropped)]


@given(matrices())
def test_a_cell_agrees_with_its_id_and_its_gpu(matrix: Matrix):
    for cell in expand(matrix, load_compat()).cells:
        axes = (cell.image, cell.model, cell.profile, cell.precision, cell.gpu)
        gpu = matrix.gpus[cell.gpu]
        assert cell.id == "/".join(axes)
        assert cell.sm == gpu.sm
        assert cell.backend == matrix.images[cell.image].backend
        assert cell.backend in gpu.backends


@given(matrices())
def test_drop_rules_are_fnmatch_in_order(matrix: Matrix):
    expansion = expand(matrix, load_compat())
    plain = expand(msgspec.structs.replace(matrix, drop=()), load_compat())
    builtin = {one.id: one.rule for one in plain.dropped}
    expected = {
        point: builtin.get(point)
        or next((rule.id for rule in matrix.drop if fnmatchcase(point, rule.cells)), None)
        for point in every_id(matrix)
    }
    rules = {one.id: one.rule for one in expansion.dropped}
    assert {point: rules.get(point) for point in expected} == expected
    assert set(expansion.idle_rules) == {
        rule.id
        for rule in matrix.drop
        if not any(fnmatchcase(point, rule.cells) for point in expected)
    }


@given(matrices(), st.lists(patterns, min_size=1, max_size=3))
def test_select_is_fnmatch_and_every_pattern_counts(matrix: Matrix, chosen: list[str]):
    cells = expand(matrix, load_compat()).cells
    matched = [{cell.id for cell in cells if fnmatchcase(cell.id, pattern)} for pattern in chosen]
    try:
        selected = select(cells, chosen)
    except NothingSelectedError:
        assert not all(matched)
        return
    assert all(matched)
    assert selected == tuple(cell for cell in cells if cell.id in set().union(*matched))


@given(matrices())
def test_groups_share_out_the_cells_that_need_plans(matrix: Matrix):
    cells = expand(matrix, load_compat()).cells
    groups = compile_groups(cells)
    grouped = [cell for group in groups for cell in group.cells]
    assert sorted(cell.id for cell in grouped) == sorted(cell.id for cell in plan_cells(cells))
    for group in groups:
        keys = {(cell.image, cell.model, cell.precision, cell.backend) for cell in group.cells}
        assert keys == {(group.image, group.model, group.precision, group.backend)}
    assert len({(group.image, group.model, group.precision) for group in groups}) == len(groups)


@given(matrices(), st.integers(1, 256))
def test_github_gets_every_cell_once(matrix: Matrix, per_file: int):
    cells = expand(matrix, load_compat()).cells
    documents = github_matrix(cells, gpus=matrix.gpus, per_file=per_file)
    jobs = [job["id"] for document in documents for job in document["include"]]
    assert jobs == [cell.id for cell in cells]
    assert all(1 <= len(document["include"]) <= per_file for document in documents)
