"""The members of one layer as they are found: paths in normal form, whiteouts, and problems."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from builders.audit import tar_headers as tar
from builders.audit.facts import FileFacts
from builders.audit.pull_map import PullMap
from builders.audit.tar_headers import Header
from planyard.core.contents import ElfFacts, FileKind, LayerFile, LayerIndex, SecretHit

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_CAPABILITIES = (b"SCHILY.xattr.security.capability", b"LIBARCHIVE.xattr.security.capability")
_KINDS: dict[int, FileKind] = {
    **dict.fromkeys(tar.REGULAR, "file"),
    tar.FOLDER: "folder",
    tar.LINK: "link",
    tar.HARD_LINK: "hardlink",
    tar.PIPE: "pipe",
    **dict.fromkeys(tar.DEVICES, "device"),
}
_NAMED_PROBLEMS = 100


class Member:
    """One member, until its share of the pull size is known. Offsets are those of the tar."""

    __slots__ = ("began", "capabilities", "digest", "header", "kind", "link", "path", "until")

    def __init__(
        self, path: str, kind: FileKind, header: Header, *, began: int, until: int, link: str
    ) -> None:
        self.path, self.kind, self.header, self.link = path, kind, header, link
        self.began, self.until = began, until
        self.digest = ""
        self.capabilities = False


class Found:
    """What was found in a layer so far."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._paths: dict[str, Member] = {}
        self._hidden: set[str] = set()
        self._emptied: set[str] = set()
        self._elf: dict[str, ElfFacts] = {}
        self._texts: dict[str, str] = {}
        self._secrets: dict[str, tuple[SecretHit, ...]] = {}
        self._problems: list[str] = []
        self._more_problems = 0

    def problem(self, text: str) -> None:
        """Note something that no image should have; of very many only the first are kept."""
        if len(self._problems) < _NAMED_PROBLEMS:
            self._problems.append(text)
        else:
            self._more_problems += 1

    def member(
        self, header: Header, pax: dict[bytes, bytes], *, began: int, until: int
    ) -> Member | None:
        """Take in a member; None for a whiteout, which is none."""
        name = pax.get(b"GNU.sparse.name", header.name) if pax else header.name
        path = self._path(name, of="the name")
        folder, _, base = path.rpartition("/")
        if base.startswith(_WHITEOUT):
            self._whiteout(folder or "/", base)
            return None
        kind = _KINDS.get(header.type)
        if kind is None:
            self.problem(f"{path}: a member of a kind that no runtime knows")
            kind = "file"
        member = Member(path, kind, header, began=began, until=until, link="")
        if kind not in ("file", "folder"):
            self._link_or_device(member)
        if header.type == tar.SPARSE or (pax and any(b"GNU.sparse" in key for key in pax)):
            self.problem(f"{path}: a sparse file: it may weigh more than is counted")
        if pax:
            member.capabilities = any(key in pax for key in _CAPABILITIES)
        before = self._paths.get(path)
        if before is not None:
            if "folder" not in (before.kind, kind) or before.kind != kind:
                self.problem(f"{path}: more than once in one layer")
            for facts in (self._elf, self._texts, self._secrets):
                facts.pop(path, None)
        self._paths[path] = member
        self.members.append(member)
        return member

    def add_facts(self, path: str, facts: FileFacts) -> None:
        """Keep what a watch saw in a file."""
        if facts.elf is not None:
            self._elf[path] = facts.elf
        if facts.text is not None:
            self._texts[path] = facts.text
        if facts.secrets:
            self._secrets[path] = facts.secrets

    def index(self, *, digest: str, diff_id: str, pulls: PullMap) -> LayerIndex:
        """The index of a layer that was read to its end."""
        self._find_links_in_paths()
        if self._more_problems:
            self._problems.append(f"{self._more_problems} more of the same kinds")
        files = tuple(_files(self.members, pulls))
        return LayerIndex(
            digest=digest,
            diff_id=diff_id,
            pull_bytes=pulls.size_bytes,
            unpacked_bytes=sum(file.size_bytes for file in files),
            rest_bytes=pulls.size_bytes - sum(file.pull_bytes for file in files),
            files=files,
            hidden=tuple(sorted(self._hidden)),
            emptied=tuple(sorted(self._emptied)),
            elf=self._elf,
            texts=self._texts,
            secrets=self._secrets,
            problems=tuple(self._problems),
        )

    def _path(self, name: bytes, *, of: str) -> str:
        """A name as an absolute path in normal form; what is odd about it is a problem."""
        try:
            text = name.decode()
        except UnicodeDecodeError:
            text = name.decode(errors="backslashreplace")
            self.problem(f"{text}: {of} is not UTF-8")
        if "\0" in text:
            text = text.replace("\0", "\\0")
            self.problem(f"{text}: {of} has a NUL byte in it")
        if text.startswith("/"):
            self.problem(f"{text}: {of} begins with /, which other programs take as it stands")
        framed = f"/{text.strip('/')}/"
        if "/../" in framed:
            self.problem(f"{text}: {of} leads out of its folder")
        elif "//" not in framed and "/./" not in framed:
            return framed[:-1]
        return posixpath.normpath(framed).replace("//", "/")

    def _whiteout(self, folder: str, base: str) -> None:
        if base == _OPAQUE:
            self._emptied.add(folder)
            return
        hidden = base.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            self.problem(f"{posixpath.join(folder, base)}: a whiteout of no file")
        else:
            self._hidden.add(posixpath.join(folder, hidden))

    def _link_or_device(self, member: Member) -> None:
        link = member.header.link
        if member.kind == "link":
            member.link = link.decode(errors="backslashreplace")
        elif member.kind == "hardlink":
            member.link = self._path(link, of="what a hard link shares")
            if member.link not in self._paths:
                self.problem(f"{member.path}: a hard link to {member.link}, not in this layer")
        elif member.kind == "device":
            self.problem(f"{member.path}: a device node")

    def _find_links_in_paths(self) -> None:
        """Members below a link: where they come to lie depends on who unpacks them."""
        links = {path for path, member in self._paths.items() if member.kind == "link"}
        if not links:
            return
        folders = {path.rpartition("/")[0] for path in self._paths}
        for folder in sorted(folders):
            above = folder
            while above and above not in links:
                above = above.rpartition("/")[0]
            if above:
                self.problem(f"{folder}: lies below {above}, which is a link in the same layer")


def _files(members: Iterable[Member], pulls: PullMap) -> Iterable[LayerFile]:
    last, packed = -1, 0
    for member in members:
        began = packed if member.began == last else pulls.packed_at(member.began)
        last, packed = member.until, pulls.packed_at(member.until)
        header = member.header
        yield LayerFile(
            member.path,
            member.kind,
            header.size_bytes if member.kind == "file" else 0,
            packed - began,
            header.mode,
            header.uid,
            header.gid,
            member.link,
            member.digest,
            member.capabilities,
        )
