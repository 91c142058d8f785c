"""Links in an image: the quick way through folders seen before is the way walked link by link."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tars
from tests.audited import contents_of

names = st.sampled_from("abc")
folders = st.lists(names, min_size=1, max_size=3).map("/".join)
targets = st.one_of(
    folders, folders.map("/{}".format), st.sampled_from(["..", "../a", "/", ".", "../../.."])
)
asked = st.one_of(
    folders.map("/{}".format),
    st.text("abc./", max_size=12),
    st.sampled_from(["/", "", "/a/" * 80, "//a", "/a//b", "/a/./b", "/a/../b"]),
)


@given(st.dictionaries(folders, targets, max_size=6), st.lists(asked, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_both_ways_lead_to_the_same_file(links: dict[str, str], paths: list[str]) -> None:
    members = [tars.symlink(name, target) for name, target in links.items()]
    contents = contents_of([*members, tars.file("a/b/c", b"x")])
    for path in paths:
        walked = contents._walk(path)
        assert contents.real_path(path) == walked
        assert not {"..", "."} & set(walked.split("/"))
