"""Every published JSON Schema by name, generated from the types; and documents made of several."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.channels.history import ChannelHistory, Channels
from engines.channels.moves import Move
from engines.evidence.sets import EvidenceSet, EvidenceVerdict
from engines.keeping.checking import FsckReport
from engines.keeping.copying import CopyReport
from engines.keeping.gc import GcReport
from engines.lookup import lookup_json_schema
from engines.node_labels import NodeLabels
from engines.snapshot import Snapshot, any_json
from engines.snapshot_diff import SnapshotDiff
from planyard.core.cells import Cell, Dropped
from planyard.core.contents import ImageAudit, ImageDiff
from planyard.core.findings import Severity
from planyard.core.loads import LoadReport
from planyard.core.report import BuildReport
from planyard.core.schema import matrix_json_schema
from smoke.own_lines import SmokeLine


class CellsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`planyard cells --json`."""

    schema: int = 1
    cells: tuple[Cell, ...]
    dropped: tuple[Dropped, ...]


class LogFinding(msgspec.Struct, frozen=True, kw_only=True):
    """A loss in a log: the rule, the 1-based line it begins on, the cleaned text, and why."""

    file: str
    rule: str
    line: int
    text: str
    severity: Severity
    why: str


class LogDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`planyard log-check --json`."""

    schema: int = 1
    findings: tuple[LogFinding, ...]


class SnapshotsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """`planyard snapshot show`."""

    schema: int = 1
    snapshots: tuple[Snapshot, ...]


def all_schemas() -> dict[str, dict[str, Any]]:
    """The matrix, every document that planyard prints, and the lines that smoke commands print."""
    # Here, because the verbs that need one document of this file must not pay for all of these.
    from builders.github.jobs import Jobs
    from builders.github.judging import RunVerdict
    from builders.page.making import ReportWritten
    from builders.starting.start import Started

    documents: dict[str, Any] = {
        "build": BuildReport,
        "cells": CellsDocument,
        "channel-history": ChannelHistory,
        "channels": Channels,
        "github-jobs": Jobs,
        "github-run": RunVerdict,
        "image-audit": ImageAudit,
        "image-diff": ImageDiff,
        "init": Started,
        "labels": NodeLabels,
        "load": LoadReport,
        "log-check": LogDocument,
        "promote": Move,
        "report": ReportWritten,
        "sign": EvidenceSet,
        "smoke-line": SmokeLine,
        "snapshot": SnapshotsDocument,
        "snapshot-diff": SnapshotDiff,
        "store-copy": CopyReport,
        "store-fsck": FsckReport,
        "store-gc": GcReport,
        "verify": EvidenceVerdict,
    }
    schemas = {
        name: msgspec.json.schema(kind, schema_hook=any_json) for name, kind in documents.items()
    }
    return {"matrix": matrix_json_schema(), "lookup": lookup_json_schema(), **schemas}
