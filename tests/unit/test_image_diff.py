"""A comparison of two images: exact sums, every kind of difference, names that cannot do harm."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from builders.audit.config_diff import config_changes
from builders.audit.diff import FILES, MOVEMENTS, diff_images
from builders.audit.diff_text import diff_markdown, headline, is_same, show_diff
from builders.audit.owners import Ownership
from builders.audit.visible import markdown_code, visible
from planyard.core.contents import ImageDiff
from planyard.edge.console import Console
from tests.images_by_hand import (
    a_file,
    a_folder,
    a_layer,
    a_link,
    an_image,
    debian,
    found,
    owned,
    wheel,
)

LIB = "/usr/lib/libz.so"
CORE = "/site/numpy/core.so"
ZLIB = debian("zlib1g", "1.2")
OLD, NEW = wheel("numpy", "2.3"), wheel("numpy", "2.4")
BASE = a_layer(a_file(LIB, size=1_000_000))
HOSTILE = (
    "a|b",
    "a`b``c",
    "<img src=x onerror=alert(1)>",
    "</code></details><h1>x",
    "a\nb\n\n# c",
    "@someone #1 http://x.example",
    "\\|",
    "**b** _i_ ~~s~~ [l](javascript:x) ![i](x)",
    "&lt;&#60;",
    "\x1b[31mred\x07",
    "\u202egnp.exe",
    "\udc80raw",
    "::error::x",
    "- - -",
    "|---|",
)


def diff_of(before, after, before_owners=None, after_owners=None, **options) -> ImageDiff:
    return diff_images(
        before, before_owners or Ownership(), after, after_owners or Ownership(), **options
    )


def both(*, files=None) -> ImageDiff:
    """numpy got another version and 4 MB more, zlib1g stays, the project's file goes."""
    before = an_image(
        BASE, a_layer(a_file(CORE, size=9_000_000), a_file("/opt/old.py", b"x")), name="app"
    )
    after = an_image(BASE, a_layer(a_file(CORE, size=13_000_000)), name="app")
    return diff_of(
        before,
        after,
        owned({LIB: ZLIB, CORE: OLD}),
        owned({LIB: ZLIB, CORE: NEW}),
        **({"files": files} if files else {}),
    )


def movement(diff: ImageDiff, what: str):
    return next(each for each in diff.movements if each.what == what)


# Sizes


def test_an_image_does_not_differ_from_itself():
    image, owners = an_image(BASE), owned({LIB: ZLIB})
    diff = diff_of(image, image, owners, owners)
    assert is_same(diff)
    assert (diff.packages, diff.movements, diff.files, diff.config) == ((), (), (), ())
    assert (diff.files_added, diff.files_removed, diff.files_changed) == (0, 0, 0)


def test_a_package_of_another_version_is_one_movement():
    found = movement(both(), "numpy 2.3 → 2.4 (wheel)")
    assert (found.before_bytes, found.after_bytes) == (9_000_000, 13_000_000)
    assert (found.before_pull_bytes, found.after_pull_bytes) == (900_010, 1_300_010)


def test_what_did_not_move_is_no_movement():
    assert not [each for each in both().movements if "zlib1g" in each.what]


def test_an_owner_that_came_or_went_has_no_size_on_the_other_side():
    found = movement(both(), "the project's own files")
    assert (found.before_bytes, found.after_bytes) == (1, None)
    assert found.after_pull_bytes is None


@st.composite
def images(draw):
    paths = st.sampled_from([f"/d/{n}" for n in range(6)])
    sizes = st.integers(0, 10_000)
    kinds = st.sampled_from(["file", "folder", "link", "hardlink"])
    layers = [
        a_layer(
            *(
                a_file(path, size=size if kind in ("file", "hardlink") else 0, kind=kind)
                for path, (size, kind) in draw(
                    st.dictionaries(paths, st.tuples(sizes, kinds), max_size=5)
                ).items()
            ),
            seed=str(number),
            hidden=tuple(draw(st.lists(paths, max_size=2))),
        )
        for number in range(draw(st.integers(1, 3)))
    ]
    claims = draw(st.dictionaries(paths, st.sampled_from([ZLIB, OLD, NEW]), max_size=4))
    return an_image(*layers), owned(claims)


@settings(max_examples=50, deadline=None)
@given(images(), images())
def test_the_movements_add_up_to_the_difference_to_the_byte(one, two):
    (before, old), (after, new) = one, two
    diff = diff_of(before, after, old, new, files=None)
    assert len(diff.movements) <= 4
    moved = [(each.after_bytes or 0) - (each.before_bytes or 0) for each in diff.movements]
    pulled = [
        (each.after_pull_bytes or 0) - (each.before_pull_bytes or 0) for each in diff.movements
    ]
    assert sum(moved) == after.unpacked_bytes - before.unpacked_bytes
    assert sum(pulled) == after.pull_bytes - before.pull_bytes
    assert diff.after_pull_bytes - diff.before_pull_bytes == sum(pulled)


def test_files_that_a_later_layer_hides_still_weigh():
    """They are pulled: an image that removes a file in its last layer is no smaller."""
    hidden = a_layer(hidden=(LIB,))
    diff = diff_of(an_image(BASE), an_image(BASE, hidden))
    assert diff.after_unpacked_bytes == diff.before_unpacked_bytes
    assert diff.files_removed == 1
    assert [each.what for each in diff.movements] == ["what is no file"]


def test_only_the_ten_largest_movements_are_named():
    claims = {f"/p/{n}": debian(f"p{n:02}", "1") for n in range(15)}
    after = an_image(a_layer(*(a_file(path, size=1000 * n) for n, path in enumerate(claims))))
    diff = diff_of(an_image(), after, None, owned(claims))
    assert len(diff.movements) == MOVEMENTS
    assert diff.movements[0].what == "p14 1 (Debian package)"
    assert "p05" in diff.movements[9].what


# Packages


def test_packages_that_came_went_and_changed():
    before = owned({"/a": ZLIB, "/b": OLD})
    after = owned({"/b": NEW, "/c": debian("libc6", "2.36")})
    diff = diff_of(an_image(), an_image(), before, after)
    assert [(each.kind, each.name, each.before, each.after) for each in diff.packages] == [
        ("debian", "libc6", None, "2.36"),
        ("debian", "zlib1g", "1.2", None),
        ("wheel", "numpy", "2.3", "2.4"),
    ]


def test_pypi_names_that_mean_the_same_are_the_same():
    before, after = (
        owned({"/a": wheel("Zope.Interface", "6")}),
        owned({"/a": wheel("zope-interface", "6")}),
    )
    assert diff_of(an_image(), an_image(), before, after).packages == ()
    other = owned({"/a": debian("a-b", "6")}), owned({"/a": debian("a.b", "6")})
    assert len(diff_of(an_image(), an_image(), *other).packages) == 2


def test_a_second_copy_of_a_package_is_a_difference():
    one = owned(None, found(OLD, source="/a"))
    two = owned(None, found(OLD, source="/a"), found(OLD, source="/b"))
    (change,) = diff_of(an_image(), an_image(), one, two).packages
    assert (change.before, change.after) == ("2.3", "2.3 (2 copies)")


# Files


def files_of(before, after, **options):
    diff = diff_of(an_image(a_layer(*before)), an_image(a_layer(*after)), **options)
    counts = (diff.files_added, diff.files_removed, diff.files_changed)
    return counts, [(each.what, each.before_bytes, each.after_bytes) for each in diff.files]


def test_files_added_removed_and_changed():
    before = [a_file("/same", b"1"), a_file("/went", b"22"), a_file("/other", b"333")]
    after = [a_file("/same", b"1"), a_file("/came", b"4444"), a_file("/other", b"334")]
    assert files_of(before, after) == (
        (1, 1, 1),
        [("/came", None, 4), ("/went", 2, None), ("/other", 3, 3)],
    )


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"mode": 0o4755}, " (mode 0644 → 4755)"),
        ({"uid": 5, "gid": 6}, " (owner 0:0 → 5:6)"),
        ({"capabilities": True}, " (has capabilities)"),
        ({"kind": "pipe"}, " (file → pipe)"),
        ({"digest": "f" * 32}, ""),
    ],
)
def test_a_file_that_is_another_by_its_rights_or_kind_is_changed(change, note):
    file = a_file("/f", b"")
    counts, ((what, *_),) = files_of([file], [msgspec.structs.replace(file, **change)])
    assert counts == (0, 0, 1)
    assert what == f"/f{note}"


def test_a_link_that_points_elsewhere_is_changed():
    counts, ((what, *_),) = files_of([a_link("/l", "/a")], [a_link("/l", "/b")])
    assert (counts, what) == ((0, 0, 1), "/l (to /a → to /b)")


def test_folders_are_no_files():
    assert files_of([], [a_folder("/d")]) == ((0, 0, 0), [])


def test_a_moved_file_is_one_line_and_prefers_its_own_name():
    before = [a_file("/a/x.so", b"same"), a_file("/a/y.so", b"same")]
    after = [a_file("/b/y.so", b"same"), a_file("/c/z.so", b"same"), a_file("/d/w.so", b"same")]
    counts, found = files_of(before, after)
    assert counts == (3, 2, 0)
    assert found == [
        ("/d/w.so", None, 4),
        ("/a/x.so → /c/z.so", 4, 4),
        ("/a/y.so → /b/y.so", 4, 4),
    ]


def test_empty_files_are_not_taken_for_moved():
    _, found = files_of([a_file("/a/__init__.py")], [a_file("/b/__init__.py")])
    assert len(found) == 2


def test_only_the_largest_files_are_named_unless_all_are_wanted():
    after = [a_file(f"/{n:03}", size=n + 1) for n in range(50)]
    counts, named = files_of([], after)
    assert counts == (50, 0, 0)
    assert len(named) == FILES
    assert named[0] == ("/049", None, 50)
    assert len(files_of([], after, files=None)[1]) == 50


# Configuration


def test_configuration_changes_are_named():
    before = {
        "architecture": "amd64",
        "config": {
            "User": "65532:65532",
            "Env": ["PATH=/bin", "GONE=1", "SAME=1"],
            "Entrypoint": ["/app"],
            "Labels": {"a": "1"},
            "ExposedPorts": {"80/tcp": {}},
        },
    }
    after = {
        "architecture": "arm64",
        "config": {
            "Env": ["PATH=/usr/bin", "CAME=a=b", "SAME=1"],
            "Entrypoint": ["/app", "-x"],
            "Labels": {"a": "2"},
            "ExposedPorts": {"81/tcp": {}},
        },
    }
    assert config_changes(before, after) == (
        "architecture: amd64 → arm64",
        "user: 65532:65532 → not set",
        'entrypoint: ["/app"] → ["/app", "-x"]',
        "port 80/tcp went",
        "port 81/tcp came",
        "environment CAME came: a=b",
        "environment GONE went",
        "environment PATH: /bin → /usr/bin",
        "label a: 1 → 2",
    )
    assert config_changes(before, before) == ()


@pytest.mark.parametrize(
    "name", ["DB_PASSWORD", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "API_KEY", "PIP_INDEX_URL"]
)
def test_values_that_may_be_secrets_are_not_shown(name):
    """A comment on a pull request has more readers than the image."""
    old = {"config": {"Env": [f"{name}=hunter2"]}}
    new = {"config": {"Env": [f"{name}=hunter3"]}}
    for before, after in ((old, new), ({}, new), (old, {})):
        (line,) = config_changes(before, after)
        assert name in line
        assert "hunter" not in line


def test_digests_in_values_are_shortened():
    before, after = ({"config": {"Labels": {"r": f"sha256:{x * 64}"}}} for x in "ab")
    wanted = "label r: sha256:aaaaaaaaaaaa… → sha256:bbbbbbbbbbbb…"
    assert config_changes(before, after) == (wanted,)


def test_authors_and_monkeys_are_no_secrets():
    before = {"config": {"Labels": {"org.opencontainers.image.authors": "a", "MONKEY": "b"}}}
    after = {"config": {"Labels": {"org.opencontainers.image.authors": "c", "MONKEY": "d"}}}
    assert [line.endswith("not shown)") for line in config_changes(before, after)] == [False, False]


@pytest.mark.parametrize("config", [{"config": None}, {"config": {"Env": "x", "Labels": [1]}}, {}])
def test_a_configuration_of_other_types_is_read_as_empty(config):
    assert config_changes(config, {"config": {}}) == ()


# Words


def shown(diff: ImageDiff) -> str:
    console = Console()
    console._lines = io.StringIO()
    show_diff(diff, console)
    return console._lines.getvalue()


def test_the_headline_says_how_much_and_why():
    assert headline(both()) == (
        "400.0 kB more to pull, 4.0 MB more unpacked; most of it: numpy 2.3 → 2.4 (wheel) +4.0 MB"
    )


def test_the_headline_names_no_cause_that_went_the_other_way():
    before = an_image(a_layer(a_file("/a", size=5_000_000), a_file("/b", size=10)))
    after = an_image(a_layer(a_file("/a", size=10), a_file("/b", size=6_000_000)))
    owners = owned({"/a": debian("a", "1"), "/b": debian("b", "1")})
    text = headline(diff_of(before, after, owners, owners))
    assert text.endswith("most of it: b 1 (Debian package) +6.0 MB")


def test_people_see_every_part():
    text = shown(both())
    for words in (
        "~ numpy 2.3 → 2.4 (wheel)",
        "packages: 1 with another version",
        "files: 1 went, 1 changed",
        "+4.0 MB  /site/numpy/core.so",
        "-1 B  /opt/old.py",
    ):
        assert words in text, words
    assert re.search(r"^pull +1\.0 MB +1\.4 MB +\+400\.0 kB$", text, re.MULTILINE)
    assert "the 20 that weigh most" not in text


def test_people_are_told_when_nothing_differs():
    image = an_image(BASE)
    assert "no difference" in shown(diff_of(image, image))
    assert "No difference" in diff_markdown(diff_of(image, image))


# Names that could do harm


class _Seen(HTMLParser):
    """The tags and the text of what a browser would be given."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.whole: dict[str, list[str]] = {"td": [], "li": [], "h3": []}
        self._inside = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in self.whole:
            self._inside = tag
            self.whole[tag].append("")
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("href", "src")]

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data):
        self.texts.append(data)
        if self._inside:
            self.whole[self._inside][-1] += data


def rendered(markdown: str) -> _Seen:
    """Through a Markdown reader that lets HTML through, as GitHub's does."""
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    seen = _Seen()
    seen.feed(html.render(markdown))
    return seen


PLAIN_TAGS = {"h3", "p", "code", "table", "thead", "tbody", "tr", "th", "td", "strong"} | {
    *("details", "summary", "ul", "li")
}


def hostile_diff(name: str) -> ImageDiff:
    path, package = f"/opt/{name}", wheel(name, name)
    after = an_image(
        a_layer(a_file(path, size=500), a_file("/pkg", size=100_000)),
        name=name,
        config={"config": {"User": name, "Env": [f"X={name}"], "Labels": {name: name}}},
    )
    return diff_of(an_image(), after, None, owned({"/pkg": package}))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_text_in_markdown(name):
    markdown = diff_markdown(hostile_diff(name))
    seen = rendered(markdown)
    assert set(seen.tags) <= PLAIN_TAGS
    # Five cells in each row below the header: no `|` splits one.
    rows = seen.tags.count("tr")
    assert seen.tags.count("td") == 5 * (rows - 1)
    assert rows == 6
    assert seen.tags.count("details") == seen.tags.count("ul") == 3
    assert seen.tags.count("li") == 6
    # Each name is read as it is, whole: in a cell, in the lists and in the heading.
    shown_name = visible(name)
    assert f"{shown_name} {shown_name} (wheel)" in seen.whole["td"]
    assert f"came: {shown_name} {shown_name} (wheel)" in seen.whole["li"]
    assert f"+500 B /opt/{shown_name}" in seen.whole["li"]
    assert f"user: 65532:65532 → {shown_name}" in seen.whole["li"]
    assert seen.whole["h3"][0].endswith(f"{shown_name} {shown_name} (wheel) +100.0 kB")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_on_its_line_of_a_terminal_and_in_json(name):
    diff = hostile_diff(name)
    text = shown(diff)
    assert all(line.isprintable() for line in text.split("\n"))
    assert f"  +500 B  /opt/{visible(name)}" in text
    assert msgspec.json.decode(msgspec.json.encode(diff), type=ImageDiff) == diff


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_what_went_moved_or_changed_are_as_harmless(name):
    went, moved = a_file(f"/went/{name}", b"1"), a_file(f"/moved/{name}", b"22")
    changed = a_file(f"/changed/{name}", b"333")
    before = an_image(a_layer(went, moved, changed))
    after = an_image(
        a_layer(a_file(f"/there/{name}", b"22"), msgspec.structs.replace(changed, mode=0o755))
    )
    owners = owned({went.path: wheel(name, "1"), changed.path: debian(name, name)})
    diff = diff_of(before, after, owners, Ownership())
    assert len(diff.files) == 3
    assert len(diff.packages) == 2
    for each in (*diff.files, *diff.movements):
        assert each.what.isprintable()
    for each in diff.packages:
        assert (each.name + str(each.before)).isprintable()


@given(st.text())
def test_what_is_visible_can_be_printed_and_encoded(text):
    assert visible(text).isprintable()
    visible(text).encode()
    if text.isprintable():
        assert visible(text) == text


@given(st.text(max_size=100).filter(str.isprintable))
def test_a_name_in_markdown_is_read_back_as_itself(text):
    seen = rendered(f"x {markdown_code(text)} y")
    assert seen.tags == ["p", "code"]
    assert "".join(seen.texts) == f"x {text} y\n"


def test_a_comment_stays_below_what_github_takes():
    after = an_image(
        a_layer(*(a_file(f"/{n}" + "|" * 300, size=n) for n in range(900))),
        config={"config": {"Labels": {f"{n}" + "|" * 300: "x" * 300 for n in range(200)}}},
    )
    claims = {f"/{n}" + "|" * 300: wheel(f"{n}" + "|" * 300, "1") for n in range(0, 900, 2)}
    markdown = diff_markdown(diff_of(an_image(), after, None, owned(claims), files=None))
    assert len(markdown) < 65_536
    assert re.search(r"- and [\d,]+ more", markdown)
    assert markdown.count("<details>") == markdown.count("</details>") == 3
