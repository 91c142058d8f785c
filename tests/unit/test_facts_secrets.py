"""Secrets in text: every rule finds its own, placeholders and public certificates are none."""

from __future__ import annotations

import fnmatch

import pytest

from builders.audit.facts.secret_rules import (
    SecretRule,
    SecretWatch,
    compile_pattern,
    find_in_setting,
    secret_rules,
)
from builders.audit.facts.watching import watch
from planyard.core.contents import SecretHit

RULES = secret_rules()
BY_ID = {rule.id: rule for rule in RULES}
LETTERS = "0a1b2c3d4e5f6g7h8i9jKLMNOPQRSTUVWXYZ" * 4


def hits(text: str | bytes, *, path: str = "/app/x.txt", piece: int = 1 << 20) -> list[SecretHit]:
    data = text.encode() if isinstance(text, str) else text
    watched = watch(path, size_bytes=len(data), head=data[:4096])
    if watched is None:
        return []
    for at in range(0, len(data), piece):
        watched.feed(data[at : at + piece])
    return list(watched.finish().secrets)


def rules_in(text: str | bytes, *, path: str = "/app/x.txt") -> set[str]:
    return {hit.rule for hit in hits(text, path=path)}


def path_of(rule: SecretRule) -> str:
    """A path that the rule looks into."""
    path = rule.paths[0].replace("*", "/srv/me", 1) if rule.paths else "/app/config.txt"
    return path.replace("*", "x")


def example(rule: SecretRule) -> str:
    return "".join(rule.example)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_finds_its_example_and_nobody_else_does(rule) -> None:
    assert rules_in(example(rule), path=path_of(rule)) == {rule.id}
    assert rule.why
    assert rule.source


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_line_is_the_secrets(rule) -> None:
    text = f"first\n\n  \n{example(rule)}\nlast\n"
    [hit] = hits(text, path=path_of(rule))
    lead = example(rule).splitlines()
    first = next(n for n in range(len(lead)) if hits("\n".join(lead[: n + 1]), path=path_of(rule)))
    assert 4 <= hit.line <= 4 + first


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_secret_cut_by_a_border_between_pieces_is_found(rule) -> None:
    text = "x\n" * 20 + example(rule) + "\ny"
    for piece in (1, 13, 1000):
        assert hits(text, path=path_of(rule), piece=piece) == hits(text, path=path_of(rule))


def test_ids_are_unique_and_examples_stand_in_parts() -> None:
    assert len(BY_ID) == len(RULES) > 20
    whole = compile_pattern("|".join(f"(?:{rule.pattern})" for rule in RULES if not rule.paths))
    for rule in RULES:
        assert len(rule.example) > 1, rule.id
        if not rule.paths:
            assert not any(whole.search(part.encode()) for part in rule.example), rule.id


def test_rules_with_paths_look_nowhere_else() -> None:
    for rule in RULES:
        if rule.paths:
            assert rules_in(example(rule), path="/app/x.txt") == set(), rule.id
            assert all(fnmatch.translate(each) for each in rule.paths)


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/root/.netrc", "netrc-password"),
        ("/root/.docker/config.json", "docker-login"),
        ("/root/.config/containers/auth.json", "docker-login"),
        ("/root/.npmrc", "npm-login"),
        ("/etc/pip.conf", "password-in-address"),
        ("/root/.config/pip/pip.conf", "password-in-address"),
        ("/root/.git-credentials", "password-in-address"),
        ("/etc/apt/sources.list.d/own.list", "password-in-address"),
        ("/app/.env", "password-setting"),
        ("/app/prod.env", "password-setting"),
        ("/app/.env.local", "password-setting"),
        ("/etc/shadow", "password-hash"),
        ("/root/.kube/config", "kubernetes-login"),
        ("/root/.pypirc", "pypi-login"),
    ],
)
def test_the_files_people_forget(path, rule) -> None:
    assert rule in rules_in(example(BY_ID[rule]), path=path)


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN CERTIFICATE-----\n" + LETTERS[:64] + "\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\n" + LETTERS[:64],
        '_PEM = "-----BEGIN PRIVATE KEY-----"\n',
        "# Put your key below -----BEGIN RSA PRIVATE KEY-----\n" + LETTERS[:64],
        "-----BEGIN RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----\n",
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "xAKIA" + "QX5TBNDGK3UOWPZR",
        "AKIA" + "QX5TBNDGK3UOWPZRS",
        "hf_" + "transfer_is_enabled_in_this_build_of",
        "def ghp_" + "x" * 20,
        "sk-learn-" + "a" * 60,
        "npm_config_registry=https://registry.example.org",
    ],
)
def test_what_is_no_secret(text) -> None:
    assert rules_in(text) == set()


@pytest.mark.parametrize(
    "line",
    [
        "DB_PASSWORD=",
        "DB_PASSWORD=${DB_PASSWORD}",
        "DB_PASSWORD=$OTHER_PASS",
        "DB_PASSWORD=<the password>",
        "DB_PASSWORD=changeme",
        "DB_PASSWORD=your-password-here",
        'API_KEY="xxxxxxxxxxxx"',
        "PASSWORD=/run/secrets/password",
        "MAX_TOKEN=1048576",
        "DB_PASSWORD_FILE=somewhere-else",
        "TOKENIZERS_PARALLELISM=falsefalse",
        "# no settings here",
    ],
)
def test_settings_that_hold_no_password(line) -> None:
    assert rules_in(line + "\n", path="/app/.env") == set()
    assert find_in_setting(line) == ()


@pytest.mark.parametrize(
    "text",
    [
        "index-url = https://pypi.example.org/simple",
        "index-url = https://${USER}:${PASS}@pypi.example.org/simple",
        "index-url = https://me@pypi.example.org/simple",
    ],
)
def test_addresses_without_a_password(text) -> None:
    assert rules_in(text, path="/etc/pip.conf") == set()


def test_locked_accounts_have_no_hash() -> None:
    shadow = "root:*:19000:0:99999:7:::\ndaemon:!:19000::::::\nme:!!:1::::::\n"
    assert rules_in(shadow, path="/etc/shadow") == set()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("HF_TOKEN=hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH", "huggingface-token"),
        ("DB_PASSWORD=correct-horse", "password-setting"),
        ("|2 MODE=fast PIP_TOKEN=correct-horse /bin/sh -c pip install", "password-setting"),
        ("ENV API_KEY=correct-horse", "password-setting"),
    ],
)
def test_settings_of_an_image_are_searched_too(text, rule) -> None:
    assert rule in find_in_setting(text)


def test_binary_files_are_not_searched() -> None:
    text = example(BY_ID["github-token"])
    assert rules_in(text) == {"github-token"}
    assert rules_in(b"\0" + text.encode()) == set()


KEY = "AKIA" + "QX5TBNDGK3UOWPZR"


@pytest.mark.parametrize("before", [65_536, 70_000])
def test_the_end_of_a_piece_is_no_end_of_a_word(before) -> None:
    text = "x" * (before - 1) + " " + KEY + "Z" + "y" * 70_000
    assert hits(text, piece=before + len(KEY)) == []
    assert hits(text.replace(KEY + "Z", KEY + " "), piece=before + len(KEY)) != []


@pytest.mark.parametrize("piece", [65_536, 70_000])
def test_where_the_search_goes_on_is_no_start_of_a_word(piece) -> None:
    before = piece - 2048
    text = "x" * before + KEY + " " + "y" * 70_000
    assert hits(text, piece=piece) == []
    assert hits(text.replace("x" + KEY, " " + KEY), piece=piece) != []


def test_a_line_without_an_end_is_not_kept() -> None:
    watched = SecretWatch("/app/x.json")
    for _ in range(20):
        watched.feed(b"x" * 100_000)
        assert sum(map(len, watched._waiting)) <= 4096


def test_lines_are_right_far_into_a_long_file() -> None:
    text = "some line of text\n" * 50_000 + example(BY_ID["github-token"]) + "\n" + "more\n" * 9000
    for piece in (1000, 65_536, 1 << 22):
        assert hits(text, piece=piece) == [SecretHit(rule="github-token", line=50_001)]


def test_a_file_full_of_secrets_ends_at_a_limit() -> None:
    text = (example(BY_ID["github-token"]) + "\n") * 5000
    found = hits(text, piece=4096)
    assert len(found) == 100
    assert found[0].line == 1
    two_kinds = example(BY_ID["github-token"]) + " " + example(BY_ID["gitlab-token"]) + "\n"
    assert len(hits(two_kinds * 200)) == 100


def test_nothing_of_the_secret_is_kept() -> None:
    for rule in RULES:
        for hit in hits(example(rule), path=path_of(rule)):
            assert set(hit.__struct_fields__) == {"rule", "line"}
