import json
from pathlib import Path

import msgspec
import pytest
import yaml

from planyard.core.errors import InputError
from planyard.core.located import MAX_PROBLEMS, path_text
from planyard.core.matrix import DebianBase, Matrix, ShapeRange
from planyard.core.matrix_smoke import Gates, SmokeLimits
from planyard.core.reader import (
    examine_matrix,
    load_matrix,
    read_matrix,
    read_value,
    reader_of,
)
from planyard.core.units import ByteSize
from planyard.core.yaml_scalars import reads_as
from planyard.core.yaml_tree import parse_tree

VALID = (Path(__file__).parents[1] / "data/matrix/valid.yaml").read_text()


def changed(old, new):
    """The problems of the valid matrix with one place changed, without the name of the file."""
    assert VALID.count(old) >= 1, f"the valid matrix has no {old!r}"
    with pytest.raises(InputError) as caught:
        read_matrix(VALID.replace(old, new, 1).encode(), name="m.yaml")
    return [problem.removeprefix("m.yaml:") for problem in caught.value.problems]


def line_of(text):
    return VALID[: VALID.index(text)].count("\n") + 1


def test_the_valid_matrix_is_read():
    matrix = read_matrix(VALID.encode())
    assert matrix.pins.cuda == "13.0"
    assert matrix.bases["bookworm"].debian == DebianBase(
        release="bookworm",
        packages=("libc6", "libstdc++6", "libgcc-s1", "python3.11-minimal"),
        remove=("usr/share/man/*", "usr/share/doc/*"),
    )
    assert matrix.images["rtx"].budget.pull == ByteSize(140_000_000)
    assert isinstance(matrix.images["rtx"].budget.pull, ByteSize)
    assert matrix.models["ocr-det"].inputs["x"].shape == ("n", 3, "h", "w")
    assert matrix.models["ocr-det"].profiles["any"]["x"] == ShapeRange(
        min=(1, 3, 32, 32), opt=(1, 3, 640, 640), max=(1, 3, 1280, 1280)
    )
    assert matrix.models["ocr-det"].tolerance["fp16"].mean_abs == 0.001
    assert matrix.models["unet"].inputs["timestep"].shape == ()
    assert list(matrix.gpus) == ["cpu", "ada"]
    assert matrix.gpus["cpu"].sm is None
    assert matrix.compile.memory == ByteSize(8 << 30)
    assert matrix.compile.workspace == ByteSize(2 << 30)
    assert matrix.smoke == SmokeLimits()
    assert matrix.gates == Gates(cpu_operators=("Shape", "Gather"))


def test_shell_characters_stay_text():
    arguments = read_matrix(VALID.encode()).images["ort-cpu"].build_args
    assert arguments == {"GREETING": 'a; rm -rf "$HOME" `id` $(id) && echo'}


def test_places_are_kept():
    loaded = load_matrix(VALID.encode(), name="m.yaml")
    line = line_of("pull: 140 MB")
    assert loaded.where(("images", "rtx", "budget", "pull")) == (line, 7)
    assert loaded.where(("images", "rtx", "smoke")) == (line_of("  rtx:"), 3)
    assert loaded.where(("gpus", "ada", "runs_on", 1)) == (line_of("gpu-ada]"), 28)
    assert loaded.where(("drop", 0)) == (line_of("- id: cpu"), 5)
    assert loaded.where(()) == (2, 1)


# One changed place: what the file says then, and the whole problem from the line on.
SIZE = "write a number and a unit (B, kB, MB, GB, KiB, MiB, GiB)"
WHOLE = "is not a whole number in plain digits"
BACKENDS = "write one of onnxruntime-cpu, onnxruntime-cuda, tensorrt, tensorrt-rtx"
PATH = "write a relative path, with / between its parts and no '..' among them"
ONE = [
    # unquoted versions and the other traps of YAML 1.1
    ('cudnn: "9.14.0"', "cudnn: 9.10", '3 pins.cudnn: write "9.10": unquoted, YAML reads it as 9'),
    ('cuda: "13.0"', "cuda: 13.0", '3 pins.cuda: write "13.0": unquoted, YAML reads it as 13'),
    ('driver: "580"', "driver: 580", '3 pins.driver: write "580": unquoted, YAML reads it as the '),
    ('"640":', "640:", '7 models.ocr-det.profiles.640: write "640": unquoted, YAML reads it as'),
    ("any:", "on:", '7 models.ocr-det.profiles.on: write "on": unquoted, YAML reads it as true'),
    ("GREETING: 'a; rm", "X: 12:30:45 # 'a", 'build_args.X: write "12:30:45": unquoted, YAML rea'),
    ("gpu-ada]", "yes]", '28 gpus.ada.runs_on[1]: write "yes": unquoted, YAML reads it as true'),
    ("gpu-ada]", "~]", '28 gpus.ada.runs_on[1]: write "~": unquoted, YAML reads it as null'),
    ("gpu-ada]", "2026-11-21]", 'write "2026-11-21": unquoted, YAML reads it as a date'),
    ("sm: 89", "sm: 089", f'5 gpus.ada.sm: "089" {WHOLE}: write an SM without its dot, like 89 '),
    ("sm: 89", "sm: 0x59", f'"0x59" {WHOLE}'),
    ("sm: 89", "sm: 8_9", f'"8_9" {WHOLE}'),
    ("sm: 89", "sm: 89.0", f'"89.0" {WHOLE}'),
    ("sm: 89", "sm: " + "9" * 30, WHOLE),
    ("sm: 89", 'sm: "89"', '"89" stands here: write an SM without its dot, like 89 for SM 8.9, wi'),
    ("sm: 89", "sm: 890", "890 is out of range: write an SM without its dot"),
    ("gates:", "gates:\n  logs: yes", 'gates.logs: "yes" stands here: write true or false, '),
    ("gates:", 'gates:\n  logs: "true"', 'gates.logs: "true" stands here: write true or false'),
    ("gates:", "gates:\n  logs: True", 'gates.logs: "True" stands here: write true or false'),
    ("max_abs: 0.02", "max_abs: .inf", '".inf" is not a number: write a number, at least 0'),
    ("max_abs: 0.02", "max_abs: 1e999", '"1e999" is out of range'),
    ("max_abs: 0.02", "max_abs: -1", '"-1" is out of range'),
    ("max_abs: 0.02", 'max_abs: "1"', "write a number, at least 0, without quotes"),
    ("schema: 1", "schema: 2", '1 schema: "2" is not known here: write 1'),
    ("schema: 1", 'schema: "1"', '1 schema: "1" stands here: write 1, without quotes'),
    # keys
    ("pull: 140 MB", "pul: 140 MB", '7 images.rtx.budget.pul: there is no key "pul" here: did you'),
    ("schema: 1", "schema: 1\nzzz: 2", '1 zzz: there is no key "zzz" here: write one of schema, '),
    ("    backend: tensorrt-rtx\n", "", f"backend is missing: add backend: with {BACKENDS[6:]}"),
    ("    sha256: sha256:3", "    sha265: sha256:3", 'there is no key "sha265" here: did you me'),
    ("schema: 1\n", "", "1 (top level): the key schema is missing: add schema: with 1"),
    ("  cpu:\n", "  CPU:\n", '3 gpus.CPU: "CPU" does not fit: write lower-case letters, digits'),
    # values
    ("pull: 140 MB", "pull: 140 mb", f'7 images.rtx.budget.pull: "140 mb" is not a size: {SIZE}'),
    ("pull: 140 MB", "pull: 140", f'7 images.rtx.budget.pull: "140" is not a size: {SIZE}'),
    ("pull: 140 MB", "pull: 140 MB ; id", '"140 MB ; id" is not a size'),
    ("pull: 140 MB", 'pull: "140 MB\\n"', '"140 MB\\n" has blanks around it'),
    ("pull: 140 MB", f"pull: {'9' * 400} MB", "is out of range: write a number and a unit"),
    ("pull: 140 MB", "pull:", "nothing stands here: write a number and a unit, like 140 MB"),
    ("pull: 140 MB", "pull: [140 MB]", "a list stands here: write a number and a unit"),
    ("backend: tensorrt-rtx", "backend: tensort", f'"tensort" is not known here: {BACKENDS}; did'),
    ("sha256: sha256:3333", "sha256: sha256:333", "does not fit: write sha256: and 64 lower-case"),
    ("sha256: sha256:3333", "sha256: sha256:333G", "does not fit: write sha256: and 64 lower-case"),
    ("sha256: sha256:3333", "sha256: md5:3333", "does not fit: write sha256: and 64 lower-case"),
    ("images/locks/rtx.txt", "../rtx.txt", f'5 images.rtx.lock: "../rtx.txt" does not fit: {PATH}'),
    ("images/locks/rtx.txt", "images/../../x", "does not fit"),
    ("images/locks/rtx.txt", "images/..", "does not fit"),
    ("images/locks/rtx.txt", "/etc/passwd", "does not fit"),
    ("images/locks/rtx.txt", "a\\b", "does not fit"),
    ("unet.weights", "../unet.weights", 'external_data."../unet.weights": "../unet.weights" does'),
    ("[n, 3, h, w]", "[-1, 3, h, w]", "-1 is out of range: write a whole number from 1 to 104857"),
    ("[n, 3, h, w]", '["640", 3, h, w]', '"640" does not fit: write a whole number from 1 to'),
    ("[n, 3, h, w]", "[[n], 3, h, w]", "shape[0]: a list stands here: write a whole number"),
    ("[n, 3, h, w]", "[a,a,a,a,a,a,a,a,a]", "the list has 9 items: write a list of at most 8"),
    ("[n, 3, h, w]", "NCHW", 'inputs.x.shape: "NCHW" stands here: write a list of at most 8 dim'),
    ("cells: \"ort-cpu/*/fp16/*\"", 'cells: ""', '"" is too short: write text (a pattern over im'),
    ("the golden source runs in fp32 alone", "short", "at least 8 characters (a reason in words"),
    ("precisions: [fp32, fp16]", "precisions: []", "the list has 0 items: write a list of at leas"),
    ("    budget: {", "    budget: {}\n    build_arg: {", 'there is no key "build_arg" here: did'),
    ("    budget: {pull: 80 MB, unpacked: 260 MB}", "    budget: 80 MB", "write a mapping with t"),
    ("rapidocr==3.10.0", "rapidocr>=3.10.0", "write name==version, like rapidocr==3.10.0"),
    ("registry.example:5000/python@sha256:2", "python:3@sha256:", "a reference pinned by digest"),
    ("rtx-compiler\n", "--network=host\n", "write a stage of the Dockerfile"),
    ("GREETING:", "GREE-TING:", "write the name of a build argument"),
    ("release: bookworm", "release: bookworm\n      release: sid", "already, in line "),
    ("  cpu:\n", "  <<: {a: {}}\n  cpu:\n", '3 gpus."<<": merge keys (<<) are not read'),
    ("release: bookworm", "release: !!python/name:os.system x", 'the tag "!!python/name:os.'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), ONE, ids=[new[:30] for _, new, _ in ONE])
def test_one_problem_says_where_and_what_to_write(old, new, expected):
    (problem,) = changed(old, new)
    assert expected in problem
    assert "\n" not in problem


def test_all_problems_come_in_one_go_in_the_order_of_the_file():
    text = (
        VALID.replace('cudnn: "9.14.0"', "cudnn: 9.10")
        .replace("pull: 140 MB", "pull: 140 mb")
        .replace("base: bookworm", "base: bookwurm", 1)
        .replace("min: [1, 3, 32, 32]", "min: [1, 3, 2000, 32]")
        .replace("backends: [onnxruntime-cpu]", "backends: [onnxruntime-cpu]\n    backend: x")
        .replace("    sm: 89\n", "")
        .replace("  memory: 8 GiB", "  memory: 8 GiB\n  memory: 9 GiB")
    )
    with pytest.raises(InputError) as caught:
        read_matrix(text.encode(), name="m.yaml")
    found = [problem.split(" ")[1].rstrip(":") for problem in caught.value.problems]
    assert found == [
        "pins.cudnn",
        "images.rtx.budget.pull",
        "models.ocr-det.profiles.any.x.min[2]",
        "gpus.cpu.backend",
        "gpus.ada",
        "compile.memory",
    ]
    assert caught.value.exit_code == 2


def test_a_rule_is_checked_where_its_struct_could_be_read():
    text = VALID.replace("base: bookworm\n    build", "base: sid\n    build").replace(
        "cuda: ", "cudda: "
    )
    _loaded, problems = examine_matrix(text.encode())
    assert [path_text(problem.path) for problem in problems] == [
        "pins.cudda",
        "images.ort-cpu.base",
    ]


def test_a_base_that_cannot_be_read_is_still_a_base():
    _loaded, problems = examine_matrix(VALID.replace("release: bookworm", "release: 8").encode())
    assert [path_text(problem.path) for problem in problems] == ["bases.bookworm.debian.release"]


def test_null_stands_for_what_is_left_out():
    text = VALID.replace("    lock: images/locks/rtx.txt", "    lock: null")
    assert read_matrix(text.encode()).images["rtx"].lock is None
    assert "nothing stands here" in changed("    lock: images/locks/rtx.txt", "    lock:")[0]


def test_an_aliased_value_is_wrong_where_it_is_used():
    text = VALID.replace("pull: 140 MB", "pull: &size 140").replace("pull: 80 MB", "pull: *size")
    _loaded, problems = examine_matrix(text.encode())
    assert [(problem.line, problem.column) for problem in problems] == [
        (line_of("pull: 140 MB"), 7),
        (line_of("pull: 80 MB"), 14),
    ]


def test_too_many_problems_are_cut_with_a_word():
    text = VALID + "".join(f"k{index}: 1\n" for index in range(MAX_PROBLEMS + 50))
    _loaded, problems = examine_matrix(text.encode())
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1].message.startswith("there are more than 500 problems")


@pytest.mark.parametrize("data", [b"", b"[]", b"text", b"a: [", b"\xff", b"- a"])
def test_what_is_no_matrix_at_all_is_one_problem(data):
    with pytest.raises(InputError) as caught:
        read_matrix(data, name="m.yaml")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("m.yaml:1:")


def test_json_is_read_too():
    matrix = read_matrix(VALID.encode())
    value = msgspec.to_builtins(matrix, enc_hook=lambda size: f"{int(size)} B")
    assert read_matrix(json.dumps(value).encode()) == matrix


def test_a_type_without_a_reader_is_a_bug():
    class Odd(msgspec.Struct):
        value: set[int]

    with pytest.raises(TypeError, match="no reader is written"):
        reader_of(Odd)


def test_other_structs_are_read_the_same_way():
    class Pair(msgspec.Struct):
        left: int
        right: str | None = None

    value, problems, _parts = read_value(parse_tree(b"left: 1").root, Pair)
    assert (value, problems) == (Pair(left=1), [])
    _value, problems, _parts = read_value(parse_tree(b"lefft: 1").root, Pair)
    assert [problem.message for problem in problems] == [
        'there is no key "lefft" here: did you mean "left"?'
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.10", "8.1"),
        ("580", "the number 580"),
        ("010", "8"),
        ("0o10", "8"),
        ("0x1F", "31"),
        ("0b101", "5"),
        ("1_000", "1000"),
        ("+1", "1"),
        ("1e3", "1000"),
        ("1.", "1"),
        (".5", "0.5"),
        ("12:30:45", "45045"),
        ("1:30.5", "90.5"),
        (".inf", "a number"),
        ("9" * 5000, "a number"),
        ("yes", "true"),
        ("Off", "false"),
        ("NULL", "null"),
        ("2026-11-21", "a date"),
        ("2026-11-21T10:00:00Z", "a date"),
    ],
)
def test_what_yaml_would_read(text, expected):
    assert reads_as(text) == expected


@pytest.mark.parametrize(
    "text",
    ["1.7.1.116", "onnx", "n", "y", "3.11-slim", "1e", "12:99", "0xg", "-", "+", ".", "nano", "-x"],
)
def test_what_stays_text(text):
    assert reads_as(text) is None


def test_the_traps_are_those_of_pyyaml():
    words = [
        "8.10",
        "1:20",
        "0x1F",
        "010",
        "on",
        "No",
        "~",
        "2001-12-14",
        "1e5",
        "a:b",
        "v1",
        "1_0",
    ]
    for word in words:
        if not isinstance(yaml.safe_load(word), str):
            assert reads_as(word) is not None, word


def test_key_paths_are_readable():
    assert path_text(("models", "sd-1.5", "inputs", 3)) == 'models."sd-1.5".inputs[3]'
    assert path_text(("a\nb\x1b",)) == '"a\\nb\\u001b"'
    assert path_text(()) == "(top level)"


def test_every_part_of_the_matrix_has_a_reader():
    assert "schema" in reader_of(Matrix).wants
