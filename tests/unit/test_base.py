"""Bases: what was resolved is recorded and kept, and the same packages give the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import tarfile
from pathlib import Path

import pytest

from builders.base import BaseCache, filter_root, package_lists, packages_from_sums
from planyard.core.errors import ImageBuildError, IntegrityError
from planyard.core.matrix import DebianBase
from planyard.edge import proc
from planyard.edge.files import digest_of_file
from tests import tars

SPEC = DebianBase(release="bookworm", packages=("libc6", "tzdata"), remove=("usr/share/man/*",))
A, B = "a" * 64, "b" * 64

# Does what mmdebstrap does with these arguments, on a root of three files.
FAKE = f"""#!{sys.executable}
import os, pathlib, subprocess, sys, tarfile
options = dict(each.lstrip("-").partition("=")[::2] for each in sys.argv[1:-2])
release, target = sys.argv[-2:]
print("I: resolving", options["include"])
if "absent" in options["include"]:
    print("E: Unable to locate package absent")
    sys.exit(1)
root = pathlib.Path(os.environ["TMPDIR"]) / "root"
archives = root / "var/cache/apt/archives"
archives.mkdir(parents=True)
(archives / "tzdata_2026a-0+deb12u1_all.deb").write_bytes(b"tz")
(archives / "libc6_1%3a2.36-9_amd64.deb").write_bytes(b"libc")
(root / "etc").mkdir()
(root / "etc/ld.so.conf").write_text("include")
(root / "var/lib/dpkg/info").mkdir(parents=True)
(root / "var/lib/dpkg/status").write_text("")
subprocess.run([options["extract-hook"], str(root)], check=True)
(root / "etc/resolv.conf").write_text("of the building machine")
(root / "etc/os-release").write_text(release + options["variant"])
(root / "usr/share/man/man1").mkdir(parents=True)
(root / "usr/share/man/man1/ls.1").write_text("no")
with tarfile.open(target, "w") as tar:
    tar.add(root, ".")
"""

# Does what dpkg-deb does with these packages: libc6 has a library, a page and a setting, tzdata a
# page alone.
FAKE_DPKG_DEB = f"""#!{sys.executable}
import pathlib, sys
deb = pathlib.Path(sys.argv[2]).read_text()
name = {{"tz": "tzdata", "libc": "libc6"}}[deb]
if sys.argv[1] == "--field":
    print(name)
    sys.exit()
folder = pathlib.Path(sys.argv[3])
folder.mkdir()
(folder / "control").write_text(f"Package: {{name}}\\nVersion: 1\\nArchitecture: amd64\\n")
sums = "%032d  usr/share/man/man1/ls.1\\n" % 1
if name == "libc6":
    sums += "%032d  lib/libc.so.6\\n" % 2
    (folder / "conffiles").write_text("/etc/ld.so.conf\\nremove-on-upgrade /etc/old\\n")
(folder / "md5sums").write_text(sums)
"""
STATUS = "var/lib/dpkg/status.d/"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseCache:
    program = tmp_path / "bin" / "mmdebstrap"
    program.parent.mkdir()
    for path, text in ((program, FAKE), (program.with_name("dpkg-deb"), FAKE_DPKG_DEB)):
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return BaseCache(tmp_path / "bases", epoch_seconds=1000)


def test_a_base_is_bootstrapped_recorded_and_found(cache: BaseCache) -> None:
    lines: list[str] = []
    assert cache.find(SPEC) is None
    base = cache.bootstrap(SPEC, report=lines.append)
    assert lines == ["I: resolving libc6,tzdata"]
    assert [(each.name, each.version) for each in base.packages] == [
        ("libc6", "1:2.36-9"),
        ("tzdata", "2026a-0+deb12u1"),
    ]
    assert digest_of_file(cache.tar_path(base)) == base.digest
    names = [info.name for info, _ in tars.read(cache.tar_path(base).read_bytes())]
    assert "etc/os-release" in names
    assert not [
        name for name in names if name.startswith(("var/cache/", "etc/resolv", "usr/share/man/"))
    ]
    assert cache.find(SPEC) == base
    assert base.tag == f"planyard-base:{base.digest[7:19]}"
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".json", ".tar"]


def test_a_base_lists_its_packages_as_scanners_look_for_them(cache: BaseCache) -> None:
    base = cache.bootstrap(SPEC, report=lambda _: None)
    found = {info.name: (info, body) for info, body in tars.read(cache.tar_path(base).read_bytes())}
    below_dpkg = {name for name in found if name.startswith("var/lib/dpkg/")}
    assert below_dpkg == {STATUS[:-1], f"{STATUS}libc6", f"{STATUS}libc6.md5sums"}
    info, control = found[f"{STATUS}libc6"]
    assert control == b"Package: libc6\nVersion: 1\nArchitecture: amd64\n"
    assert (info.mode, info.mtime) == (0o644, 1000)
    setting = hashlib.md5(b"include").hexdigest()
    sums = found[f"{STATUS}libc6.md5sums"][1].decode().splitlines()
    assert sums == [f"{2:032}  lib/libc.so.6", f"{setting}  etc/ld.so.conf"]


def test_a_package_with_nothing_but_documentation_from_the_start_is_listed(tmp_path: Path) -> None:
    raw = tmp_path / "raw.tar"
    lines = {
        "gcc-12-base": f"{1:032}  usr/share/doc/gcc-12-base/copyright\n",
        "tar": f"{1:032}  bin/tar\n{2:032}  usr/share/doc/tar/copyright\n",
        "empty": "",
        "kept": f"{1:032}  bin/kept\n{2:032}  bin/tar\n",
    }
    members = [
        tars.file(f"./{STATUS}{name}.md5sums", text.encode()) for name, text in lines.items()
    ]
    members += [tars.file(f"./{STATUS}{name}", b"Package: x\n") for name in lines]
    raw.write_bytes(tars.tar(members))
    lists = package_lists(raw, remove=("bin/tar",))
    clean = tmp_path / "clean.tar"
    filter_root(raw, clean, remove=("bin/tar",), epoch_seconds=1, lists=lists)
    found = {info.name.removeprefix(STATUS): body for info, body in tars.read(clean.read_bytes())}
    assert found == {
        "gcc-12-base": b"Package: x\n",
        "gcc-12-base.md5sums": lines["gcc-12-base"].encode(),
        "empty": b"Package: x\n",
        "empty.md5sums": b"",
        "kept": b"Package: x\n",
        "kept.md5sums": f"{1:032}  bin/kept\n".encode(),
    }


@pytest.mark.parametrize(
    "other",
    [
        DebianBase(release="trixie", packages=SPEC.packages, remove=SPEC.remove),
        DebianBase(release="bookworm", packages=("libc6",), remove=SPEC.remove),
        DebianBase(release="bookworm", packages=SPEC.packages),
    ],
)
def test_what_was_asked_otherwise_is_another_base(cache: BaseCache, other: DebianBase) -> None:
    cache.bootstrap(SPEC, report=lambda _: None)
    assert cache.find(other) is None
    assert BaseCache(cache.folder, epoch_seconds=1001).find(SPEC) is None


def test_what_is_forgotten_is_resolved_anew(cache: BaseCache) -> None:
    base = cache.bootstrap(SPEC, report=lambda _: None)
    cache.forget()
    assert cache.find(SPEC) is None
    assert cache.tar_path(base).exists()


def test_a_base_whose_tar_is_gone_is_not_found(cache: BaseCache) -> None:
    cache.tar_path(cache.bootstrap(SPEC, report=lambda _: None)).unlink()
    assert cache.find(SPEC) is None


def test_a_tar_that_changed_in_the_cache_is_not_imported(cache: BaseCache) -> None:
    base = cache.bootstrap(SPEC, report=lambda _: None)
    assert cache.verified_tar(base) == cache.tar_path(base)
    with cache.tar_path(base).open("ab") as file:
        file.write(b"more")
    with pytest.raises(IntegrityError, match="is damaged"):
        cache.verified_tar(base)


def test_a_refusal_carries_the_words_of_mmdebstrap(cache: BaseCache) -> None:
    spec = DebianBase(release="bookworm", packages=("absent",))
    with pytest.raises(ImageBuildError, match="exited with 1") as caught:
        cache.bootstrap(spec, report=lambda _: None)
    assert caught.value.log_tail[-1] == "E: Unable to locate package absent"
    assert cache.find(spec) is None
    assert list(cache.folder.iterdir()) == []


def test_without_mmdebstrap_the_mend_is_named(
    cache: BaseCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(proc, "SYSTEM_PATH", "/nonexistent")
    with pytest.raises(ImageBuildError) as caught:
        cache.bootstrap(SPEC, report=lambda _: None)
    assert caught.value.mend == "planyard setup"


def test_packages_are_read_and_sorted() -> None:
    text = f"{B}  zlib1g_1%3a1.2.13.dfsg-1_amd64.deb\n{A}  libstdc++6_12.2.0-14+deb12u1_amd64.deb\n"
    found = [(each.name, each.version, each.sha256) for each in packages_from_sums(text)]
    assert found == [("libstdc++6", "12.2.0-14+deb12u1", A), ("zlib1g", "1:1.2.13.dfsg-1", B)]


@pytest.mark.parametrize(
    "line", ["", "sha256sum: no such file", f"{A}  ../x_1_amd64.deb", f"{A[1:]}  a_1_b.deb"]
)
def test_a_line_that_is_no_package_is_refused(line: str) -> None:
    with pytest.raises(ImageBuildError, match="does not understand"):
        packages_from_sums(f"{line}\n{A}  a1_1_all.deb\n")


def filtered(
    tmp_path: Path, *members: tars.Member, remove: tuple[str, ...] = ()
) -> list[tars.Member]:
    raw, clean = tmp_path / "raw.tar", tmp_path / "clean.tar"
    raw.write_bytes(tars.tar(members))
    filter_root(raw, clean, remove=remove or ("nothing",), epoch_seconds=1000)
    return tars.read(clean.read_bytes())


def test_a_root_is_cleaned_and_in_normal_form(tmp_path: Path) -> None:
    found = filtered(
        tmp_path,
        tars.folder("./"),
        tars.folder("./usr", uname="root"),
        tars.file("./usr/ping", b"p", mode=0o4755, mtime=5000),
        tars.hard_link("./usr/ping6", "./usr/ping"),
        tars.symlink("./bin", "usr"),
        tars.file("./usr/share/man/x", b"m"),
        tars.file("./usr/ping", b"again"),
        remove=("usr/share/man/*",),
    )
    assert [(info.name, info.linkname, info.mtime) for info, _ in found] == [
        ("usr", "", 0),
        ("usr/ping", "", 1000),
        ("usr/ping6", "usr/ping", 0),
        ("bin", "usr", 0),
    ]
    assert found[1][0].mode == stat.S_ISUID | 0o755
    assert found[1][1] == b"p"


def test_a_removed_file_lives_on_under_its_other_names(tmp_path: Path) -> None:
    """A link to a file that is not in the tar would be refused by the engine."""
    found = filtered(
        tmp_path,
        tars.file("./a/first", b"content", mode=0o750),
        tars.hard_link("./b/second", "./a/first", mode=0o750),
        tars.hard_link("./b/third", "./a/first"),
        remove=("a/*",),
    )
    assert [(info.name, info.type, info.linkname, body) for info, body in found] == [
        ("b/second", tarfile.REGTYPE, "", b"content"),
        ("b/third", tarfile.LNKTYPE, "b/second", b""),
    ]


def test_nothing_of_a_root_is_extracted(tmp_path: Path) -> None:
    found = filtered(tmp_path, *tars.hostile())
    assert len(found) == len(tars.hostile())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.tar", "raw.tar"]
    assert not Path("/absolute").exists()
    assert not (tmp_path.parent / "outside").exists()


def test_a_root_can_be_read_by_any_tar(tmp_path: Path) -> None:
    filtered(tmp_path, tars.file("Übung", b"x"), tars.file("n" * 200, b"y"))
    data = (tmp_path / "clean.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["Übung", "n" * 200]
