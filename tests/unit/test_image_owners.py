"""Who owns what: by the metadata in the image alone, through links, and never by guessing."""

from __future__ import annotations

import pytest

from builders.audit.debian_packages import debian_licences
from builders.audit.owners import IMAGE, PROJECT, find_owners
from planyard.core.contents import Owner
from tests import tars
from tests.audited import contents_of

SITE = "usr/local/lib/python3.11/dist-packages"
LIBC = Owner(kind="debian", name="libc6", version="2.36")
NUMPY = Owner(kind="wheel", name="numpy", version="2.4.6")
FORMAT = "Format: https://www.debian" + ".org/doc/packaging-manuals/copyright-format/1.0/\n"


def text(path: str, content: str) -> tars.Member:
    return tars.file(path, content.encode())


STATUS = text(
    "var/lib/dpkg/status",
    "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36\n"
    "Homepage: https://libc\nDescription: C\n library\n\n"
    "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n",
)
LIST = text(
    "var/lib/dpkg/info/libc6:amd64.list", "/.\n/lib\n/lib/libc.so.6\n/lib/libc.so\n/etc/libc.conf\n"
)
DISTROLESS = [
    text("var/lib/dpkg/status.d/libc6", "Package: libc6\nVersion: 2.36\nArchitecture: amd64\n"),
    text(
        "var/lib/dpkg/status.d/libc6.md5sums",
        f"{1:032}  lib/libc.so.6\n{2:032}  usr/share/doc/libc6/README\n",
    ),
]
WHEEL = [
    text(
        f"{SITE}/numpy-2.4.6.dist-info/METADATA",
        "Metadata-Version: 2.4\nName: NumPy\nVersion: 2.4.6\nLicense-Expression: BSD-3-Clause\n"
        "Project-URL: Source, https://source\nProject-URL: Homepage, https://numpy\n\n"
        "Name: other\n",
    ),
    text(
        f"{SITE}/numpy-2.4.6.dist-info/RECORD",
        'numpy/core.py,sha256=x,3\n"numpy/odd,name.py",,\n../../../bin/f2py,,\nnumpy/gone.h,,\n'
        "numpy-2.4.6.dist-info/METADATA,,\n",
    ),
    tars.file(f"{SITE}/numpy/core.py", b"1"),
    tars.file(f"{SITE}/numpy/odd,name.py", b"2"),
    tars.file("usr/local/bin/f2py", b"3"),
]


def owner(path: str, *layers: list[tars.Member]) -> Owner:
    return find_owners(contents_of(*layers)).owner_of(path)


def test_a_dpkg_database_says_who_owns_what_it_lists() -> None:
    layer = [STATUS, LIST, tars.file("lib/libc.so.6", b"c"), tars.file("app", b"a")]
    found = find_owners(contents_of(layer))
    [package] = found.packages
    assert (package.owner, package.architecture) == (LIBC, "amd64")
    assert (package.homepage, package.source) == ("https://libc", "/var/lib/dpkg/status")
    assert found.owner_of("/lib/libc.so.6") == LIBC
    assert found.owner_of("/app") == PROJECT


def test_what_distroless_images_keep_of_it_says_so_too() -> None:
    layer = [
        *DISTROLESS,
        tars.file("lib/libc.so.6", b"c"),
        tars.symlink("lib/libc.so", "libc.so.6"),
        tars.hard_link("lib/again", "lib/libc.so.6"),
        tars.symlink("lib/nowhere", "lost"),
        text("usr/share/doc/libc6/copyright", f"{FORMAT}\nFiles: *\nLicense: LGPL-2.1+\n text\n"),
    ]
    found = find_owners(contents_of(layer))
    owned = ("lib/libc.so.6", "lib/libc.so", "lib/again", "usr/share/doc/libc6/copyright")
    for path in (*owned, "var/lib/dpkg/status.d/libc6", "var/lib/dpkg/status.d/libc6.md5sums"):
        assert found.owner_of(f"/{path}") == LIBC, path
    assert found.owner_of("/lib/nowhere") == PROJECT
    assert found.packages[0].licences == ("LGPL-2.1-or-later",)


def test_a_list_from_before_usr_was_merged_is_read_through_the_link() -> None:
    layer = [
        tars.symlink("lib", "usr/lib"),
        STATUS,
        LIST,
        tars.file("usr/lib/libc.so.6", b"c"),
    ]
    assert owner("/usr/lib/libc.so.6", layer) == LIBC
    assert owner("/lib", layer) == LIBC  # its list names the link as well


def test_a_wheel_owns_what_its_record_lists_wherever_that_is() -> None:
    found = find_owners(contents_of(WHEEL))
    [package] = found.packages
    assert (package.owner, package.licences) == (NUMPY, ("BSD-3-Clause",))
    assert package.homepage == "https://numpy"
    for path in (f"/{SITE}/numpy/core.py", f"/{SITE}/numpy/odd,name.py", "/usr/local/bin/f2py"):
        assert found.owner_of(path) == NUMPY, path
    # Files of the dist-info that RECORD does not name are its own as well.
    assert found.owner_of(f"/{SITE}/numpy-2.4.6.dist-info/RECORD") == NUMPY


def test_a_compiled_module_is_its_sources() -> None:
    layer = [*WHEEL, tars.file(f"{SITE}/numpy/__pycache__/core.cpython-311.pyc", b"p")]
    layer += [tars.file(f"{SITE}/numpy/__pycache__/mine.cpython-311.pyc", b"p")]
    assert owner(f"/{SITE}/numpy/__pycache__/core.cpython-311.pyc", layer) == NUMPY
    assert owner(f"/{SITE}/numpy/__pycache__/mine.cpython-311.pyc", layer) == PROJECT


def test_a_package_without_record_owns_the_folders_it_names() -> None:
    egg = f"{SITE}/old-1.egg-info"
    layer = [
        text(
            f"{egg}/PKG-INFO",
            "Name: old\nVersion: 1\nLicense: UNKNOWN\n"
            "Classifier: License :: OSI Approved\n"
            "Classifier: License :: OSI Approved :: MIT License\n",
        ),
        text(f"{egg}/top_level.txt", "old\nsingle\n"),
        tars.file(f"{SITE}/old/deep/x.py", b"x"),
        tars.file(f"{SITE}/single.py", b"x"),
        tars.file(f"{SITE}/older/x.py", b"x"),
    ]
    found = find_owners(contents_of(layer))
    assert found.packages[0].licences == ("MIT License",)
    assert found.owner_of(f"/{SITE}/old/deep/x.py").name == "old"
    assert found.owner_of(f"/{SITE}/single.py").name == "old"
    assert found.owner_of(f"/{SITE}/older/x.py") == PROJECT


def test_a_module_that_a_debian_package_brought_is_debians() -> None:
    path = f"{SITE}/numpy-2.4.6.dist-info/METADATA"
    sums = text("var/lib/dpkg/status.d/libc6.md5sums", f"{1:032}  {path}\n")
    found = find_owners(contents_of([*WHEEL, DISTROLESS[0], sums]))
    assert [each.owner for each in found.packages] == [LIBC]
    assert found.owner_of(f"/{SITE}/numpy/core.py") == PROJECT


def test_folders_belong_to_the_one_owner_below_them_or_to_the_image() -> None:
    layer = [
        *WHEEL,
        tars.folder(f"{SITE}/numpy"),
        tars.folder("usr"),
        tars.folder("app"),
        tars.folder("empty"),
        tars.file("app/main.py", b"x"),
        tars.file("usr/mine", b"x"),
    ]
    found = find_owners(contents_of(layer))
    assert found.owner_of(f"/{SITE}/numpy") == NUMPY
    assert found.owner_of("/app") == PROJECT
    assert found.owner_of("/usr") == IMAGE
    assert found.owner_of("/empty") == IMAGE


def test_what_a_later_layer_hides_keeps_its_owner_and_is_no_package() -> None:
    whiteout = [tars.file(f"{SITE}/.wh.numpy"), tars.file(f"{SITE}/.wh.numpy-2.4.6.dist-info")]
    found = find_owners(contents_of(WHEEL, whiteout))
    assert found.packages == ()
    assert found.owner_of(f"/{SITE}/numpy/core.py") == NUMPY


def test_of_two_versions_the_visible_one_claims_first() -> None:
    newer = [
        text(f"{SITE}/numpy-3.dist-info/METADATA", "Name: numpy\nVersion: 3\n"),
        text(f"{SITE}/numpy-3.dist-info/RECORD", "numpy/core.py,,\n"),
        tars.file(f"{SITE}/.wh.numpy-2.4.6.dist-info"),
        tars.file(f"{SITE}/numpy/core.py", b"new"),
    ]
    found = find_owners(contents_of(WHEEL, newer))
    assert [each.owner.version for each in found.packages] == ["3"]
    assert found.owner_of(f"/{SITE}/numpy/core.py").version == "3"
    assert found.owner_of(f"/{SITE}/numpy/odd,name.py").version == "2.4.6"


@pytest.mark.parametrize(
    "record",
    ["", "\n\n,,\n", "../../../../../../../etc/passwd,,\n", '"never ends\n', "\0,,\n", "/\n//\n"],
)
def test_a_strange_record_breaks_nothing(record: str) -> None:
    layer = [WHEEL[0], text(f"{SITE}/numpy-2.4.6.dist-info/RECORD", record)]
    assert find_owners(contents_of(layer)).packages[0].owner == NUMPY


@pytest.mark.parametrize(
    ("copyright_text", "licences"),
    [
        (
            f"{FORMAT}\nFiles: *\nLicense: GPL-2+\n\nFiles: x\nLicense: Expat\n",
            ("GPL-2.0-or-later", "MIT"),
        ),
        (f"{FORMAT}\nLicense: GPL-3 or Artistic\n", ("GPL-3.0-only OR Artistic",)),
        (f"{FORMAT}\nLicense: GPL-2+ with OpenSSL exception\n", ("GPL-2+ with OpenSSL exception",)),
        (f"{FORMAT}\nLicense: LGPL-2.1\n", ("LGPL-2.1-only",)),
        (f"{FORMAT}\nLicense: public-domain\n", ("public-domain",)),
        ("See /usr/share/common-licenses/LGPL-2.1.\nLicense: not a field\n", ("LGPL-2.1",)),
        ("Do what you like.\n", ()),
        ("", ()),
    ],
)
def test_licences_are_named_as_far_as_they_are_said(
    copyright_text: str, licences: tuple[str, ...]
) -> None:
    assert debian_licences(copyright_text) == licences
