"""How commands are found in a page and compared with it, on pages made for this."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docs_commands import Shell, commands_of, pattern_of

PAGE = """\
Words.

```
$ planyard cells   # ends with 3
one
$ echo a \\
  b
a b
```

```yaml
planyard: no command
```

```console
# a comment
planyard channels stable      its history
planyard sign   sha256:0123456789ab --key \\
    cosign.key
```

```
planyards are not commands
```
"""


def test_commands_are_found_in_their_order():
    found = [(each.text, each.line, each.exit_code, each.shown) for each in commands_of(PAGE)]
    assert found == [
        ("planyard cells   # ends with 3", 4, 3, ("one",)),
        ("echo a \\\n  b", 6, 0, ("a b",)),
        ("planyard channels stable", 17, 0, ()),
        ("planyard sign   sha256:0123456789ab --key \\\n    cosign.key", 18, 0, ()),
    ]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(folder=tmp_path, environment=dict(os.environ))


def test_exports_and_folders_hold(shell: Shell):
    assert shell.run("mkdir in && cd in && export HERE=yes") == 0
    assert shell.run("echo $HERE $(basename $PWD)") == 0
    assert shell.said == "yes in\n"
    assert shell.run("false | cat") == 1
    assert shell.run("exit 7") == 7


def test_output_is_held_to_what_is_shown(shell: Shell):
    shell.run("printf 'a 12 x\\n\\nb  1 m 02 s\\nc ann@desk 2026-11-21T20:36:33Z\\n'")
    assert shell.missing(["a 3.5 x", "b 43 s", "c root@vm 2025-01-01T00:00:00Z"]) == ""
    assert shell.missing(["b 43 s", "a 3 x"]) == "a 3 x"
    assert shell.missing(["a 3 y"]) == "a 3 y"
    assert shell.missing(["…", "c … …"]) == ""


def test_a_digest_stands_for_the_real_one(shell: Shell):
    shown, real = "sha256:" + "0a" * 32, "sha256:" + "1b" * 32
    shell.run(f"echo {real[:19]}; echo next {real}")
    assert shell.missing([shown[:19], f"next {shown}"]) == ""
    assert shell.meant(f"lookup {shown[:19]} {shown} other") == f"lookup {real[:19]} {real} other"


def test_words_mean_what_the_test_says(shell: Shell):
    shell.means = {"s3://plans/team": "/far"}
    assert shell.meant("x s3://plans/team") == "x /far"


def test_a_pattern_takes_nothing_else():
    import re

    assert not re.fullmatch(pattern_of("12 passed"), "no passed")
    assert not re.fullmatch(pattern_of("a.b"), "axb")
