"""The workflows and the action: what they may do, what they pin, and that no value is ever code.

The scripts in them are run here as they stand in the files, with values that mean harm.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import go_programs
from tests.workspaces import REPOSITORY

GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTION = REPOSITORY / "action.yml"
PINS = {
    "actions/checkout": ("3d3c42e5aac5ba805825da76410c181273ba90b1", "v7.0.1"),
    "actions/upload-artifact": ("bbbca2ddaa5d8feaa63e36b76fdaad77386f024f", "v7.0.0"),
    "actions/download-artifact": ("3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c", "v8.0.1"),
    "actions/cache": ("27d5ce7f107fe9357f9df03efb73ab90386fccae", "v5.0.5"),
    "actions/upload-pages-artifact": ("fc324d3547104276b827a68afc52ff2a11cc49c9", "v5.0.0"),
    "actions/deploy-pages": ("cd2ce8fcbc39b97be8ca5fce6e763baed58fa128", "v5.0.0"),
}
"""Each tag was looked up in the action's own repository: the commit is what the tag names."""
INPUTS = {
    "actions/checkout": {"repository", "ref", "path", "persist-credentials"},
    "actions/upload-artifact": {
        *("name", "path", "if-no-files-found", "retention-days", "compression-level"),
        *("overwrite", "include-hidden-files", "archive"),
    },
    "actions/download-artifact": {
        *("name", "artifact-ids", "path", "pattern", "merge-multiple", "github-token"),
        *("repository", "run-id", "skip-decompress", "digest-mismatch"),
    },
    "actions/cache": {"path", "key", "restore-keys", "fail-on-cache-miss", "lookup-only"},
    "actions/upload-pages-artifact": {"name", "path", "retention-days"},
    "actions/deploy-pages": {"token", "timeout", "artifact_name"},
}
RESULTS = ("failure", "cancelled", "skipped", "")
HARM = """x"; touch owned; echo '$(touch owned)' `touch owned` ${{ secrets.X }} * ]] && exit 0 #"""


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


BUILD = load(GITHUB / "workflows" / "build.yml")


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in load(path)["jobs"].items():
            yield f"{path.name}/{name}", job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in jobs():
        yield from ((name, step) for step in job.get("steps", ()))
    yield from (("action.yml", step) for step in load(ACTION)["runs"]["steps"])


# What they may do


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nothing_is_allowed_but_by_job(path):
    assert load(path)["permissions"] == {}


def test_every_job_says_what_it_may_and_how_long():
    for name, job in jobs():
        assert "permissions" in job, name
        allowed = {"contents": {"read"}, "id-token": {"write"}, "pages": {"write"}}
        assert all(value in allowed[key] for key, value in job["permissions"].items()), name
        assert "uses" in job or "timeout-minutes" in job, name
        if "strategy" in job:
            assert job["strategy"]["fail-fast"] is False, name


def test_only_evidence_may_ask_for_a_token():
    asking = {name for name, job in BUILD["jobs"].items() if "id-token" in job["permissions"]}
    assert asking == {"evidence"}


def test_every_action_is_pinned_to_the_commit_of_its_version():
    found = 0
    for path in (*WORKFLOWS, ACTION):
        for line in path.read_text().splitlines():
            match = re.search(r"uses: ([^\s#]+)(?:\s+# (\S+))?", line)
            if match and not match[1].startswith("./"):
                action, _, commit = match[1].partition("@")
                assert (commit, match[2]) == PINS[action], line
                found += 1
    assert found > 20


def test_actions_are_given_inputs_that_they_have():
    for name, step in steps():
        action = step.get("uses", "").partition("@")[0]
        if action in INPUTS:
            assert set(step.get("with", {})) <= INPUTS[action], name
        elif action == "./.planyard/action":
            assert set(step["with"]) <= set(load(ACTION)["inputs"]), name
    assert all(
        step["with"]["persist-credentials"] is False
        for _, step in steps()
        if step.get("uses", "").startswith("actions/checkout")
    )


def test_no_expression_is_in_a_script():
    for name, step in steps():
        assert "${{" not in step.get("run", ""), name
    for path in (GITHUB / "install", GITHUB / "prepare", GITHUB / "run"):
        assert "${{" not in path.read_text()


def test_secrets_reach_only_the_steps_that_need_them():
    signing = {"evidence/Sign"}
    for name, job in BUILD["jobs"].items():
        assert "secrets" not in json.dumps(job.get("env", {}))
        for step in job["steps"]:
            given = json.dumps({**step, "with": {}})
            if "COSIGN_PRIVATE_KEY" in given:
                assert f"{name}/{step['name']}" in signing
    assert "secrets" not in json.dumps(BUILD["env"])


def test_the_gate_waits_for_every_stage():
    verdict = BUILD["jobs"]["verdict"]
    assert set(verdict["needs"]) == set(BUILD["jobs"]) - {"verdict"}
    assert verdict["if"] == "${{ always() }}"


# The gate


def verdict_of(tmp_path: Path, **changes: str) -> tuple[int, str]:
    """Run the gate's own script, as it is in the file."""
    (step,) = BUILD["jobs"]["verdict"]["steps"]
    good = dict.fromkeys(
        ("CELLS", "IMAGES", "PLANS", "SMOKE", "JUDGE", "EVIDENCE", "PROMOTE", "REPORT"), "success"
    )
    flags = {"PLANS_JOBS": "2", "CHANNELS": "stable=a", "WANTS_EVIDENCE": "true"}
    given = {**good, **flags, "WANTS_REPORT": "true", **changes}
    assert set(given) == set(step["env"])
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={"PATH": os.environ["PATH"], **given},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_gate_is_green_when_all_is_well(tmp_path):
    code, said = verdict_of(tmp_path)
    assert code == 0
    assert said.count("success") == 8


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize(
    "stage", ["CELLS", "IMAGES", "PLANS", "SMOKE", "JUDGE", "EVIDENCE", "PROMOTE", "REPORT"]
)
def test_the_gate_is_red_for_a_stage_that_did_not_succeed(stage, result, tmp_path):
    code, said = verdict_of(tmp_path, **{stage: result})
    assert code == 1
    assert f"::error::the stage {stage.lower()} ended with {result or 'nothing'}" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"PLANS": "skipped", "PLANS_JOBS": "0"},
        {"PROMOTE": "skipped", "CHANNELS": " \n"},
        {"EVIDENCE": "skipped", "WANTS_EVIDENCE": "false"},
        {"REPORT": "skipped", "WANTS_REPORT": "false"},
    ],
)
def test_a_stage_without_work_may_be_skipped_and_only_that(changes, tmp_path):
    assert verdict_of(tmp_path, **changes)[0] == 0
    stage = next(iter(changes))
    for result in ("failure", "cancelled", ""):
        assert verdict_of(tmp_path, **{**changes, stage: result})[0] == 1


@pytest.mark.parametrize("stage", ["CELLS", "IMAGES", "SMOKE", "JUDGE"])
def test_these_stages_always_have_work(stage, tmp_path):
    idle = {"PLANS_JOBS": "0", "CHANNELS": "", "WANTS_EVIDENCE": "false", "WANTS_REPORT": "false"}
    assert verdict_of(tmp_path, **idle)[0] == 0
    assert verdict_of(tmp_path, **idle, **{stage: "skipped"})[0] == 1


def test_a_cells_job_that_died_leaves_no_stage_without_work(tmp_path):
    assert verdict_of(tmp_path, CELLS="failure", PLANS="skipped", PLANS_JOBS="")[0] == 1


# The action's scripts


def run_script(name: str, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = programs / "planyard"
    fake.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    fake.chmod(0o755)
    return subprocess.run(
        [GITHUB / name],
        env={"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_values_are_arguments_and_nothing_else(tmp_path):
    ran = run_script(
        "run",
        tmp_path,
        VERB="image build",
        MATRIX=HARM,
        STORE=HARM,
        SELECT=f"{HARM}\n\nrtx/*\n",
        ARGUMENTS="--require-smoke\n--because\ntwo words",
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [
        *("image", "build", "--matrix", HARM, "--store", HARM),
        *("--select", HARM, "--select", "rtx/*", "--require-smoke", "--because", "two words"),
    ]
    assert not (tmp_path / "owned").exists()


def test_the_action_without_inputs_builds(tmp_path):
    ran = run_script("run", tmp_path, VERB="build", MATRIX="matrix.yaml")
    assert json.loads(ran.stdout) == ["build", "--matrix", "matrix.yaml"]


def test_prepare_names_the_cache_and_the_store(tmp_path):
    (tmp_path / "ml").mkdir()
    ran = run_script(
        "prepare",
        tmp_path,
        GITHUB_ENV=str(tmp_path / "env"),
        RUNNER_TEMP=str(tmp_path),
        MATRIX="ml/matrix.yaml",
        S3_ENDPOINT="http://s3:8333",
        REGISTRY_AUTH='{"auths": {}}',
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "env").read_text().splitlines() == [
        f"PLANYARD_CACHE={tmp_path}/planyard-cache",
        "AWS_ENDPOINT_URL=http://s3:8333",
        f"REGISTRY_AUTH_FILE={tmp_path}/planyard-registry.json",
    ]
    assert (tmp_path / "planyard-registry.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ml" / ".planyard" / ".gitignore").read_text() == "*\n"


def test_prepare_takes_a_runners_own_cache(tmp_path):
    variables = {"GITHUB_ENV": str(tmp_path / "env"), "RUNNER_TEMP": str(tmp_path)}
    assert run_script("prepare", tmp_path, PLANYARD_CACHE="/kept", **variables).returncode == 0
    assert not (tmp_path / "env").exists()


def test_a_second_line_is_no_second_variable(tmp_path):
    variables = {"GITHUB_ENV": str(tmp_path / "env"), "RUNNER_TEMP": str(tmp_path)}
    ran = run_script("prepare", tmp_path, S3_ENDPOINT="http://s3\nPATH=/evil", **variables)
    assert ran.returncode == 2
    assert "PATH" not in (tmp_path / "env").read_text()


# What is installed


def test_every_dependency_is_pinned_by_hash():
    lock = (GITHUB / "requirements.txt").read_text()
    entries = re.split(r"\n(?=[a-z])", lock)
    pinned = {
        re.split(r"==", entry)[0]: entry for entry in entries if re.match(r"[a-z0-9-]+==", entry)
    }
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted += project["project"]["optional-dependencies"]["s3"]
    names = {re.match(r"[A-Za-z0-9_.-]+", each)[0].lower().replace("_", "-") for each in wanted}  # type: ignore[index]
    assert names <= set(pinned), f"run nox -s lock: {sorted(names - set(pinned))} are missing"
    assert all("--hash=sha256:" in entry for entry in pinned.values())
    assert "http" not in re.sub(r"\bhttp(x|core)\S*", "", lock)


# The documents

PAGE = (REPOSITORY / "docs" / "github-actions.md").read_text()
EXAMPLES = re.findall(r"^```yml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def parts(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in an example."""
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from parts(each)


def test_examples_use_inputs_that_there_are():
    called = BUILD[True]["workflow_call"]  # YAML reads the key `on` as true
    known = {
        "OWNER/planyard@COMMIT": set(load(ACTION)["inputs"]),
        "OWNER/planyard/.github/workflows/build.yml@COMMIT": set(called["inputs"]),
        "OWNER/planyard/.github/workflows/pages.yml@COMMIT": set(),
    }
    seen = set()
    for part in (part for text in EXAMPLES for part in parts(yaml.safe_load(text))):
        uses = part.get("uses", "")
        action, _, commit = uses.partition("@")
        if action in PINS:
            assert commit == PINS[action][0]
            assert set(part.get("with", {})) <= INPUTS[action]
        elif uses:
            assert set(part.get("with", {})) <= known[uses]
            assert set(part.get("secrets", {})) <= set(called["secrets"])
            seen.add(uses)
    assert seen == set(known)
    assert "| `verb` |" in PAGE


# Tools


def findings(*command: str) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    if not beside.exists():
        pytest.skip(f"{name} is not installed (the lint group has it)")
    return str(beside)


def test_zizmor_finds_nothing():
    assert findings(tool("zizmor"), "--offline", "--persona", "auditor", "--quiet", ".") == ""


def test_hadolint_finds_nothing():
    assert findings(tool("hadolint"), "images/Dockerfile") == ""


def test_actionlint_finds_nothing():
    if not go_programs.ACTIONLINT.cached.is_file():
        pytest.skip("actionlint is not built (nox -s lint builds it)")
    assert findings(str(go_programs.ACTIONLINT.cached)) == ""
