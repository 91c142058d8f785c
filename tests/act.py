"""The workflow run by act on this machine, without containers: jobs, steps, expressions for real.

Actions cannot be fetched here, so four of GitHub's own have a stand-in that does the same with
folders. They take what the real ones take; tests/unit/test_workflow_files.py holds every `with`
against the real actions' inputs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planyard.edge import proc
from tests.workspaces import REPOSITORY, Site

PLANYARD = "OWNER/planyard@" + "0" * 40
RUNNERS = ("ubuntu-latest", "ubuntu-24.04")
CALLER = """\
on: push
permissions: {{}}
jobs:
  build:
    permissions: {{contents: read, id-token: write}}
    uses: OWNER/planyard/.github/workflows/build.yml@{commit}
    with:
      store: {store}
      install: false
{inputs}
    secrets: inherit
"""

CHECKOUT = """\
name: checkout
inputs: {repository: {default: ""}, ref: {default: ""}, path: {default: ""}}
runs:
  using: composite
  steps:
    - shell: bash
      if: ${{ inputs.path != '' }}
      env: {TO: "${{ inputs.path }}"}
      run: |
        mkdir -p "$TO" && cp -r "$TEST_PLANYARD/action.yml" "$TEST_PLANYARD/.github" "$TO"
"""
UPLOAD = """\
name: upload-artifact
inputs: {name: {default: artifact}, path: {default: ""}}
runs:
  using: composite
  steps:
    - shell: bash
      env: {NAME: "${{ inputs.name }}", FROM: "${{ inputs.path }}"}
      run: |
        rm -rf "$TEST_ARTIFACTS/$NAME"
        for each in $FROM; do
          if [[ -e $each ]]; then
            mkdir -p "$TEST_ARTIFACTS/$NAME" && cp -r "$each" "$TEST_ARTIFACTS/$NAME"
          fi
        done
"""
DOWNLOAD = """\
name: download-artifact
inputs: {pattern: {default: "*"}, path: {default: "."}}
runs:
  using: composite
  steps:
    - shell: bash
      env: {PATTERN: "${{ inputs.pattern }}", TO: "${{ inputs.path }}"}
      run: |
        mkdir -p "$TO"
        for each in "$TEST_ARTIFACTS"/$PATTERN; do
          if [[ -d $each ]]; then cp -r "$each"/. "$TO"; fi
        done
"""
CACHE = """\
name: cache
runs: {using: composite, steps: [{shell: bash, run: "true"}]}
"""
STAND_INS = {
    "actions/checkout": CHECKOUT,
    "actions/upload-artifact": UPLOAD,
    "actions/download-artifact": DOWNLOAD,
    "actions/cache": CACHE,
}


@dataclass(frozen=True, kw_only=True)
class ActRun:
    """What act said of a run: its exit code, and each line as act's JSON has it."""

    exit_code: int
    lines: tuple[dict[str, Any], ...] = field(repr=False)
    text: str = field(repr=False)
    artifacts: Path
    seconds: float

    def results(self) -> dict[str, set[str]]:
        """The results of each job that ran, by its id; a matrix may have several."""
        found: dict[str, set[str]] = {}
        for line in self.lines:
            if "jobResult" in line:
                found.setdefault(line["jobID"], set()).add(line["jobResult"])
        return found

    def said(self, job: str) -> str:
        """Everything the jobs of this id said."""
        return "".join(
            line["msg"] if line["msg"].endswith("\n") else line["msg"] + "\n"
            for line in self.lines
            if line.get("jobID") == job
        )

    def failures(self) -> str:
        """The last words of each job that failed: what to show when a run should be green."""
        failed = [job for job, results in self.results().items() if "failure" in results]
        words = [f"== {job}\n{self.said(job)[-3000:]}" for job in failed]
        return "\n".join(words) or self.text[-3000:]

    @property
    def summary(self) -> str:
        """The Markdown that was kept as an artifact."""
        return (self.artifacts / "planyard-summary" / "planyard-summary.md").read_text()


@dataclass(frozen=True, kw_only=True)
class Act:
    """A place to run the workflow in: `site` is the repository that calls it."""

    program: str
    site: Site
    room: Path
    planyard: Path = REPOSITORY
    """What stands for OWNER/planyard."""
    installed: bool = True
    """Whether runners have planyard on their PATH."""

    def push(
        self,
        workflow: str,
        *,
        secrets: Mapping[str, str],
        environment: Mapping[str, str],
        meanwhile: Callable[[subprocess.Popen[bytes]], None] | None = None,
        timeout_seconds: float = 600,
    ) -> ActRun:
        """Commit what is there, and run a workflow as a push does, `meanwhile` beside it."""
        self._commit(workflow)
        artifacts = Path(tempfile.mkdtemp(prefix="artifacts-", dir=self.room))
        secret_file = self.room / "secrets.json"
        secret_file.write_text(
            "".join(f"{name}={json.dumps(value)}\n" for name, value in secrets.items())
        )
        started = time.monotonic()
        with (self.room / "act.log").open("wb+") as log:
            process = subprocess.Popen(
                self._command(secret_file),
                cwd=self.site.root,
                env=self._environment(environment, artifacts),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                if meanwhile:
                    meanwhile(process)
                process.wait(timeout=timeout_seconds)
            finally:
                proc.end_group(process)
            log.seek(0)
            text = log.read().decode(errors="replace")
        return ActRun(
            exit_code=process.returncode,
            lines=tuple(_lines(text)),
            text=text,
            artifacts=artifacts,
            seconds=time.monotonic() - started,
        )

    def _commit(self, workflow: str) -> None:
        self.site.write(".github/workflows/ci.yml", workflow)
        who = ["-c", "user.name=Planyard", "-c", "user.email=tests@planyard.invalid"]
        if not (self.site.root / ".git").exists():
            self._git("init", "--quiet")
            self._git("remote", "add", "origin", "https://github.com/somebody/else.git")
        self._git("add", "--all")
        self._git(*who, "commit", "--quiet", "--allow-empty", "--message", "A push")

    def _git(self, *args: str) -> None:
        subprocess.run(["git", *args], cwd=self.site.root, check=True)

    def _command(self, secret_file: Path) -> list[str]:
        command = [self.program, "push", "--json", "--no-cache-server"]
        command += ["--action-cache-path", str(self.room / "cache")]
        command += ["--secret-file", str(secret_file), "--concurrent-jobs", "2"]
        for label in RUNNERS:
            command += ["--platform", f"{label}=-self-hosted"]
        command += ["--local-repository", f"{PLANYARD}={self.planyard}"]
        for action, commit in pinned_actions().items():
            if action in STAND_INS:
                folder = self.room / "stand-ins" / action
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "action.yml").write_text(STAND_INS[action])
                command += ["--local-repository", f"{action}@{commit}={folder}"]
        return command

    def _environment(self, changes: Mapping[str, str], artifacts: Path) -> dict[str, str]:
        """That of a site, with planyard on the PATH, as on a runner that has it installed."""
        programs = self.room / "bin"
        programs.mkdir(exist_ok=True)
        if self.installed:
            start = programs / "planyard"
            start.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m builders "$@"\n')
            start.chmod(0o755)
        found = self.site.variables({**changes})
        path = changes.get("PATH", found["PATH"])
        return found | {
            "PATH": f"{programs}{os.pathsep}{path}",
            "TEST_PLANYARD": str(self.planyard),
            "TEST_ARTIFACTS": str(artifacts),
        }


def caller(store: str, inputs: Mapping[str, str]) -> str:
    """A workflow of somebody else's that calls ours; the values of `inputs` are YAML."""
    given = "\n".join(f"      {name}: {value}" for name, value in inputs.items())
    return CALLER.format(commit=PLANYARD.partition("@")[2], store=store, inputs=given)


def pinned_actions(folder: Path = REPOSITORY / ".github" / "workflows") -> dict[str, str]:
    """The commit of each action that our workflows use."""
    texts = [path.read_text() for path in folder.glob("*.yml")]
    uses = re.compile(r"uses: ([\w/-]+)@([0-9a-f]{40})")
    return {match[1]: match[2] for text in texts for match in uses.finditer(text)}


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            if isinstance(found, dict) and "msg" in found:
                yield found
