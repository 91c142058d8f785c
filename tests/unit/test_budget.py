"""Budgets: a limit that is passed is a finding that names what weighs most."""

from __future__ import annotations

import pytest

from builders.audit.budget import check_budget
from planyard.core.digest import digest_of_bytes
from planyard.core.findings import failures
from planyard.core.matrix import Budget
from planyard.core.results import FileSize, ImageRecord, Layer
from planyard.core.units import ByteSize

MB = 1_000_000


def layer(pull_bytes: int, *, by: str, files: tuple[FileSize, ...] = ()) -> Layer:
    return Layer(
        digest=digest_of_bytes(by.encode()),
        diff_id=digest_of_bytes(b"plain " + by.encode()),
        pull_bytes=pull_bytes,
        unpacked_bytes=3 * pull_bytes,
        created_by=by,
        largest_files=files,
    )


def image(*layers: Layer) -> ImageRecord:
    return ImageRecord(
        name="rtx",
        digest=digest_of_bytes(b"image"),
        recipe=digest_of_bytes(b"recipe"),
        pull_bytes=sum(each.pull_bytes for each in layers),
        unpacked_bytes=sum(each.unpacked_bytes for each in layers),
        layers=layers,
    )


HEAVY = FileSize(path="opt/libcudnn.so.9", size_bytes=90 * MB)
IMAGE = image(
    layer(10 * MB, by="COPY base"),
    layer(30 * MB, by="COPY site", files=(FileSize(path="a", size_bytes=5), HEAVY)),
)


@pytest.mark.parametrize(
    ("limit", "size_bytes"),
    [("pull", 40 * MB), ("unpacked", 120 * MB), ("largest_layer", 30 * MB)],
)
def test_each_limit_is_held_to_the_byte(limit: str, size_bytes: int) -> None:
    assert check_budget(IMAGE, Budget(**{limit: ByteSize(size_bytes)})) == ()
    [finding] = check_budget(IMAGE, Budget(**{limit: ByteSize(size_bytes - 1)}))
    assert (finding.gate, finding.rule, finding.where) == ("budget", f"budget.{limit}", "rtx")
    assert "is 1 B over its budget" in finding.message
    assert failures((finding,))


def test_the_heaviest_layers_and_files_are_named() -> None:
    [finding] = check_budget(IMAGE, Budget(pull=ByteSize(0)))
    assert finding.evidence[0].endswith("COPY site")
    assert finding.evidence[1].endswith("COPY base")
    assert finding.evidence[2] == "file 90.0 MB: opt/libcudnn.so.9"


def test_every_limit_that_is_passed_is_a_finding() -> None:
    budget = Budget(pull=ByteSize(1), unpacked=ByteSize(1), largest_layer=ByteSize(1))
    rules = [finding.rule for finding in check_budget(IMAGE, budget)]
    assert rules == ["budget.pull", "budget.unpacked", "budget.largest_layer"]


def test_no_limit_is_no_finding() -> None:
    assert check_budget(IMAGE, Budget()) == ()


def test_an_image_without_layers_can_be_weighed() -> None:
    assert check_budget(image(), Budget(largest_layer=ByteSize(1))) == ()
