"""What `accept` takes away: single paths, by pattern; and entries that take nothing."""

from __future__ import annotations

import pytest

from builders.audit.owners import Ownership
from builders.audit.rules import Asked, check_contents
from builders.audit.rules.catalogue import RULES
from planyard.core.findings import Finding, failures
from planyard.core.matrix import Accepted
from tests.images_by_hand import a_file, a_layer, an_image

LABELS = {"io.planyard.recipe": "x", "org.opencontainers.image.title": "x"}


def check(*entries: tuple[str, str], user: str = "1") -> tuple[Finding, ...]:
    files = [
        a_file("/usr/include/a.h", b"x" * 3000),
        a_file("/usr/include/sys/b.h", b"x" * 2000),
        a_file("/opt/c.h", b"x" * 1000),
        a_file("/opt/lib/d.a", b"x" * 500),
    ]
    image = an_image(a_layer(*files), config={"config": {"User": user, "Labels": LABELS}})
    accept = tuple(Accepted(rule=rule, path=path, reason="because") for rule, path in entries)
    return check_contents(image, Ownership(), asked=Asked(image="app", accept=accept))


def headers(findings: tuple[Finding, ...]) -> str:
    [finding] = [each for each in findings if each.rule == "image.header-file"]
    return finding.message.partition(":")[0]


def test_the_weight_is_that_of_what_is_left() -> None:
    assert headers(check()) == "header files, 3 files of 6.0 kB"
    assert headers(check(("header-file", "/usr/include/*"))) == "header files, 1 file of 1.0 kB"
    assert headers(check(("header-file", "/opt/*"))) == "header files, 2 files of 5.0 kB"


def test_a_pattern_reaches_into_folders_and_may_leave_out_the_first_slash() -> None:
    assert headers(check(("header-file", "usr/include/*"))) == "header files, 1 file of 1.0 kB"
    assert headers(check(("header-file", "*.h/*"))) == "header files, 3 files of 6.0 kB"
    assert headers(check(("header-file", "/OPT/*"))) == "header files, 3 files of 6.0 kB"


def test_entries_add_up() -> None:
    rules = [each.rule for each in check(("header-file", "/usr/*"), ("header-file", "/opt/*"))]
    assert rules == ["image.static-archive"]


def test_an_entry_means_its_own_rule_only() -> None:
    rules = [each.rule for each in check(("static-archive", "*"))]
    assert rules == ["image.header-file"]


def test_an_entry_that_takes_nothing_is_a_warning_with_its_reason() -> None:
    idle = [each for each in check(("setuid", "/usr/bin/su")) if "accept" in each.rule]
    [finding] = idle
    assert finding.rule == "image.accept-idle"
    assert finding.message.startswith(
        "accept setuid at /usr/bin/su means nothing that is in the image: "
    )
    assert "because" in finding.evidence[0]
    assert not failures(tuple(idle))


def test_two_entries_for_the_same_paths_are_both_of_use() -> None:
    findings = check(("header-file", "*"), ("header-file", "/opt/*"))
    assert [each.rule for each in findings] == ["image.static-archive"]


def test_an_unknown_rule_names_the_known_ones() -> None:
    [finding] = [each for each in check(("headers", "*")) if "accept" in each.rule]
    assert all(rule.id in finding.message for rule in RULES)


@pytest.mark.parametrize(("path", "left"), [("*", 0), ("User", 0), ("/usr/*", 1)])
def test_what_has_no_path_is_accepted_by_its_name(path, left) -> None:
    findings = check(("root-user", path), user="root")
    assert len([each for each in findings if each.rule == "image.root-user"]) == left
