import contextlib
import json
import re
import string
from pathlib import Path

import msgspec
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planyard.core.errors import InputError
from planyard.core.matrix import (
    Base,
    Budget,
    Compile,
    DebianBase,
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
    Tolerance,
    WheelSource,
)
from planyard.core.matrix_rules import broken_rules, parts_of
from planyard.core.matrix_smoke import Gates
from planyard.core.reader import examine_matrix, read_matrix
from planyard.core.units import ByteSize
from planyard.core.yaml_scalars import reads_as
from planyard.core.yaml_tree import parse_tree

VALID = (Path(__file__).parents[1] / "data/matrix/valid.yaml").read_bytes()

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True)
dimensions = st.integers(1, 1 << 20)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
sizes = st.integers(0, 10**12).map(ByteSize)
texts = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=("C", "Z"))
)
shell = st.text(string.ascii_letters + string.punctuation + " \n\t", max_size=30)
paths = st.from_regex(r"[a-z][a-z0-9 $;`'-]{0,8}(/[a-z][a-z.]{0,5}){0,2}", fullmatch=True)


def dicts(keys, values, *, min_size=0):
    return st.dictionaries(keys, values, min_size=min_size, max_size=3)


def tuples(values, *, min_size=0):
    return st.lists(values, min_size=min_size, max_size=3).map(tuple)


sources = st.one_of(
    st.builds(Source, file=paths),
    st.builds(Source, https=st.just("https://models.example/a?b=$(id)&c='d'")),
    st.builds(
        Source,
        wheel=st.builds(WheelSource, package=st.just("rapidocr==3.10.0"), member=paths),
    ),
)
images = st.one_of(
    st.builds(
        Image,
        backend=st.sampled_from(["onnxruntime-cpu", "onnxruntime-cuda"]),
        build_args=dicts(st.from_regex("[A-Z_]{1,5}", fullmatch=True), shell),
        lazy_libraries=tuples(texts),
        budget=st.builds(Budget, pull=st.none() | sizes, unpacked=sizes),
        lock=st.none() | paths,
    ),
    st.builds(
        Image,
        backend=st.just("tensorrt-rtx"),
        compiler=st.just("c"),
        base=st.just("base"),
        network=st.sampled_from(["none", "host"]),
    ),
)


@st.composite
def models(draw):
    fixed = draw(st.lists(dimensions, max_size=3))
    low, best, high = sorted(draw(st.tuples(dimensions, dimensions, dimensions)))
    ranges = ShapeRange(min=(low, *fixed), opt=(best, *fixed), max=(high, *fixed))
    tensors = draw(st.lists(texts, min_size=1, max_size=2, unique=True))
    spec = TensorSpec(dtype=draw(st.sampled_from(["float32", "bool"])), shape=("n", *fixed))
    profiles = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    floats = st.floats(0, 1e6)
    return Model(
        source=draw(sources),
        sha256=draw(digests),
        external_data=draw(dicts(paths, digests)),
        inputs=dict.fromkeys(tensors, spec),
        profiles={profile: dict.fromkeys(tensors, ranges) for profile in profiles},
        tolerance=draw(
            dicts(
                st.sampled_from(["fp16", "fp32"]),
                st.builds(Tolerance, max_abs=floats, mean_abs=floats),
            )
        ),
    )


pins = Pins(
    driver="580",
    cuda="13.0",
    cudnn="9.10",
    onnxruntime=OnnxRuntimePin(version="1.31.1"),
    tensorrt="11.2",
    tensorrt_rtx="1.7.1.116",
    python="3.11",
)
gpus = st.one_of(
    st.builds(Gpu, backends=st.just(("onnxruntime-cpu",)), runs_on=tuples(texts)),
    st.builds(Gpu, backends=st.just(("tensorrt-rtx",)), sm=st.integers(50, 200)),
)
matrices = st.builds(
    Matrix,
    schema=st.just(1),
    pins=st.just(pins),
    bases=st.just({"base": Base(debian=DebianBase(release="sid", packages=("libc6",)))}),
    images=dicts(names, images, min_size=1),
    models=dicts(names, models(), min_size=1),
    precisions=tuples(st.sampled_from(["fp16", "fp32"]), min_size=1),
    gpus=dicts(names, gpus, min_size=1),
    drop=st.just(()) | st.just((Drop(id="on", cells="*/8.10/*", reason="it's; $(no) `use`"),)),
    compile=st.builds(Compile, memory=sizes, optimization_level=st.none() | st.integers(0, 5)),
    gates=st.builds(Gates, logs=st.booleans(), cpu_operators=tuples(texts)),
)


@settings(deadline=None, max_examples=40)
@given(matrices)
def test_a_matrix_written_as_json_or_yaml_reads_back_equal(matrix):
    assert broken_rules(parts_of(matrix)) == []
    value = msgspec.to_builtins(matrix, enc_hook=lambda size: f"{int(size)} B")
    assert read_matrix(json.dumps(value, ensure_ascii=False).encode()) == matrix
    text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    assert read_matrix(_quoted(text).encode()) == matrix


def _quoted(text):
    """PyYAML quotes what it would read otherwise itself; the traps of other loaders are left."""
    loaded = yaml.safe_load(text)
    return yaml.dump(loaded, Dumper=_EveryTextQuoted, allow_unicode=True, sort_keys=False)


class _EveryTextQuoted(yaml.SafeDumper):
    pass


_EveryTextQuoted.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if "\n" in text or reads_as(text) else None
    ),
)
_EveryTextQuoted.add_representer(
    float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))
)
_EveryTextQuoted.ignore_aliases = lambda _self, _data: True


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
@example(b"a: &a [*a]")
@example(b"? [a]: b")
@example(b"\xef\xbb\xbf")
@example(b'"\\udc00": "\\U0010ffff"')
@example(b"%YAML 3.0\n---\n")
def test_arbitrary_bytes_raise_nothing_but_input_errors(data):
    with contextlib.suppress(InputError):
        read_matrix(data)
    for problem in parse_tree(data, loader=yaml.SafeLoader).problems:
        assert problem.line >= 1


WORDS = (
    "schema pins images models [ ] { } : , - & * ! !! | > ' \" # % @ ` ? << ~ 1 0x1 8.10 on a b "
    "- --- ... &a *a !!str !!python/x é \\ 12:30"
)
PIECES = [*re.findall(r"\S+", WORDS), "", "\n", "\n ", "\n  :", "\t"]
yaml_like = st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join)


@settings(deadline=None, max_examples=300)
@given(yaml_like)
def test_yaml_pieces_raise_nothing_but_input_errors(text):
    with contextlib.suppress(InputError):
        read_matrix(text.encode())
    tree = parse_tree(text.encode(), loader=yaml.SafeLoader)
    assert tree.root is not None or tree.problems


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, len(VALID)),
    st.integers(0, 12),
    st.text(st.sampled_from(":-[]{}&*!|>'\"#%@`?<~ \n\t0189.axyé,\\/"), max_size=6),
)
def test_a_damaged_matrix_is_read_or_refused_with_places_that_exist(start, length, text):
    data = VALID[:start] + text.encode() + VALID[start + length :]
    lines = data.decode(errors="replace").count("\n") + 1
    loaded, problems = examine_matrix(data)
    assert (loaded is None) == bool(problems)
    for problem in problems:
        assert 1 <= problem.line <= lines
        assert problem.column >= 1
        assert "\n" not in problem.text("m.yaml")


@given(st.text(max_size=12))
def test_what_pyyaml_reads_as_something_else_is_a_trap(text):
    with contextlib.suppress(yaml.YAMLError, ValueError):
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if plain and not node.tag.endswith((":str", ":value", ":merge")):
            assert reads_as(node.value) is not None
