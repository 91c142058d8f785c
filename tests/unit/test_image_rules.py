"""Each rule of the image audit: an image that makes it fire, one that does not, and accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from builders.audit.contents import ImageContents
from builders.audit.owners import Ownership
from builders.audit.rules import Asked, check_contents
from builders.audit.rules.catalogue import RULE, RULES
from planyard.core.contents import ElfFacts, LayerFile, SecretHit
from planyard.core.findings import Finding, failures
from planyard.core.matrix import Accepted
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
from tests.rule_images import code

LABELS = {"io.planyard.recipe": "sha256:0", "org.opencontainers.image.title": "app"}
PLAIN = {"config": {"User": "65532:65532", "Labels": LABELS}}
SITE = "/usr/lib/python3/dist-packages"
NUMPY = wheel("numpy", "2.4.6")
MB = 1_000_000


class Case(NamedTuple):
    """An image, who owns what in it, and what it is asked to be."""

    image: ImageContents
    owners: Ownership = Ownership()
    asked: Asked = Asked(image="app")

    def check(self, *accept: Accepted) -> tuple[Finding, ...]:
        asked = Asked(
            image=self.asked.image,
            sms=self.asked.sms,
            lazy_libraries=self.asked.lazy_libraries,
            accept=accept,
        )
        return check_contents(self.image, self.owners, asked=asked)


def with_files(*files: LayerFile, config: dict[str, Any] | None = None, **facts: Any) -> Case:
    return Case(an_image(a_layer(*files, **facts), config=config or PLAIN))


def of_wheel(*paths: str) -> Case:
    image = an_image(a_layer(*(a_file(path, b"x" * 9) for path in paths)), config=PLAIN)
    return Case(image, owned(dict.fromkeys(paths, NUMPY)))


def with_config(config: dict[str, Any], **rest: Any) -> Case:
    return Case(an_image(a_layer(), config={"config": config, **rest}))


def with_packages(*packages: tuple[str, str]) -> Case:
    made = (found(wheel(name, "1.0"), source=source) for name, source in packages)
    return Case(an_image(a_layer(), config=PLAIN), owned(None, *made))


def program(path: str, **fields: Any) -> LayerFile:
    return a_file(path, b"\x7fELF", **{"mode": 0o755, **fields})


def gpu(*targets: str, sms: tuple[int, ...], sure: bool = True) -> Case:
    library = "/lib/libown.so"
    elf = {library: ElfFacts(gpu=code(dict.fromkeys(targets, 5 * MB), sure=sure))}
    image = an_image(a_layer(a_file(library, b"x"), elf=elf), config=PLAIN)
    return Case(image, asked=Asked(image="app", sms=frozenset(sms)))


def needing(*libraries: str, there: tuple[str, ...] = (), lazy: tuple[str, ...] = ()) -> Case:
    files = [program("/app/run"), *(a_file(f"/usr/lib/{name}", b"x") for name in there)]
    layer = a_layer(*files, elf={"/app/run": ElfFacts(needed=libraries)})
    return Case(an_image(layer, config=PLAIN), asked=Asked(image="app", lazy_libraries=lazy))


def two_layers(first: int, *, hidden: bool) -> Case:
    upper = a_layer(a_file("/app/other", b"y"), hidden=("/app/model",) if hidden else ())
    return Case(an_image(a_layer(a_file("/app/model", b"x", size=first)), upper, config=PLAIN))


FIRES: dict[str, Case] = {
    "cuda-twice": with_files(
        a_file(f"{SITE}/nvidia/lib/libcublas.so.13", b"a"), a_file("/usr/lib/libcublas.so.12", b"b")
    ),
    "onnxruntime-twice": with_packages(
        ("onnxruntime", f"{SITE}/onnxruntime-1.dist-info/METADATA"),
        ("onnxruntime_gpu", f"{SITE}/onnxruntime_gpu-1.dist-info/METADATA"),
    ),
    "library-missing": needing("libgone.so.1"),
    "gpu-code-missing": gpu("sm_80", "sm_120a", sms=(121,)),
    "secret": with_files(
        a_file("/app/.env", b"x"), secrets={"/app/.env": (SecretHit(rule="github-token", line=3),)}
    ),
    "root-user": with_config({"Labels": LABELS}),
    "shell": with_files(program("/usr/bin/dash"), a_link("/bin/sh", "../usr/bin/dash")),
    "package-manager": with_files(program("/usr/bin/apt-get")),
    "setuid": with_files(program("/usr/bin/su", mode=0o4755)),
    "capabilities": with_files(program("/usr/bin/ping", capabilities=True)),
    "world-writable": with_files(a_file("/app/config.json", b"x", mode=0o666)),
    "device": with_files(a_file("/dev/sda", kind="device", digest="")),
    "layer-problem": with_files(a_file("/app/x", b"x"), problems=("../../etc/x leads out",)),
    "gpu-code-unused": gpu("sm_90a", "sm_89", sms=(89,)),
    "gpu-code-jit": gpu("compute_75", "sm_75", sms=(89,)),
    "static-archive": with_files(a_file("/usr/lib/libcudart_static.a", b"x")),
    "header-file": with_files(a_file("/usr/include/cuda.h", b"x")),
    "bytecode": with_files(a_file("/app/__pycache__/x.cpython-311.pyc", b"x")),
    "tests": of_wheel(f"{SITE}/numpy/tests/data.npz"),
    "docs": of_wheel(f"{SITE}/numpy/docs/index.txt"),
    "same-file-twice": with_files(
        a_file("/app/a.onnx", size=MB), a_file("/app/b.onnx", size=MB), a_file("/c", size=MB - 1)
    ),
    "hidden-bytes": two_layers(MB, hidden=True),
    "label-missing": with_config({"User": "65532"}),
}

QUIET: list[tuple[str, Case]] = [
    ("cuda-twice", with_files(a_file("/lib/libcublas.so.13", b"a"))),
    (
        "cuda-twice",
        with_files(
            a_file("/lib/libcublas.so.13.1", b"a"),
            a_link("/lib/libcublas.so.13", "libcublas.so.13.1"),
            a_file("/lib/libcublasLt.so.13", b"b"),
            a_file("/cuda/lib64/stubs/libcublas.so", b"s"),
            a_file("/cuda/lib64/libcublas.so.13.1", kind="hardlink", link="/lib/libcublas.so.13.1"),
            a_file("/lib/libother.so", b"c"),
            a_file("/opt/libother.so", b"c"),
            a_file("/opt/libcublas.so.txt", b"c"),
        ),
    ),
    (
        "onnxruntime-twice",
        with_packages(
            ("onnxruntime", "/a/onnxruntime-1.dist-info/METADATA"),
            ("onnxruntime-gpu", "/b/onnxruntime_gpu-1.dist-info/METADATA"),
        ),
    ),
    (
        "onnxruntime-twice",
        with_packages(
            ("onnxruntime", f"{SITE}/onnxruntime-1.dist-info/METADATA"),
            ("onnxruntime-extensions", f"{SITE}/onnxruntime_extensions-1.dist-info/METADATA"),
            ("numpy", f"{SITE}/numpy-1.dist-info/METADATA"),
        ),
    ),
    ("library-missing", needing("libhere.so.1", "libcuda.so.1", there=("libhere.so.1",))),
    ("library-missing", needing(there=("liblazy.so",), lazy=("liblazy.so",))),
    ("gpu-code-missing", gpu("sm_80", sms=(86, 89))),
    ("gpu-code-missing", gpu("compute_80", sms=(121,))),
    ("gpu-code-missing", gpu("sm_80", sms=())),
    ("root-user", with_config({"User": "app"})),
    ("shell", with_files(a_link("/bin/sh", "dash"))),
    ("shell", with_files(program("/usr/bin/dash", mode=0o644), program("/app/sh"))),
    ("shell", with_files(program("/usr/bin/python3"))),
    ("package-manager", with_files(a_folder("/usr/bin/apt"), a_file(f"{SITE}/pip/x.py", b"x"))),
    ("setuid", with_files(a_file("/var/mail", kind="folder", mode=0o2775, digest=""))),
    ("setuid", with_files(program("/usr/bin/su"))),
    ("world-writable", with_files(a_file("/tmp", kind="folder", mode=0o1777, digest=""))),
    ("world-writable", with_files(a_file("/bin", kind="link", link="usr/bin", mode=0o777))),
    ("world-writable", with_files(a_file("/app/x", b"x", mode=0o664))),
    ("gpu-code-unused", gpu("sm_80", "compute_75", sms=(89,))),
    ("gpu-code-jit", gpu("compute_75", "sm_80", sms=(89,))),
    ("static-archive", with_files(a_file("/app/data.aa", b"x"), a_folder("/app/x.a"))),
    ("header-file", with_files(a_file("/app/x.html", b"x"), a_link("/x.h", "y"))),
    ("tests", with_files(a_file("/app/tests/test_app.py", b"x"))),
    ("tests", of_wheel(f"{SITE}/numpy/testing/__init__.py", f"{SITE}/numpy/attest.py")),
    ("docs", with_files(a_file("/app/docs/index.md", b"x"))),
    (
        "docs",
        of_wheel(
            f"{SITE}/numpy-2.dist-info/licenses/docs/x.md",
            f"{SITE}/numpy/LICENSE.md",
            f"{SITE}/numpy/licenses/zlib.md",
            f"{SITE}/numpy/docs.py",
        ),
    ),
    ("same-file-twice", with_files(a_file("/a", size=499_999), a_file("/b", size=499_999))),
    (
        "same-file-twice",
        with_files(
            a_file("/a", size=9 * MB), a_file("/b", kind="hardlink", size=9 * MB, link="/a")
        ),
    ),
    ("hidden-bytes", two_layers(MB - 1, hidden=True)),
    ("hidden-bytes", two_layers(9 * MB, hidden=False)),
    ("label-missing", with_config({"User": "65532", "Labels": LABELS})),
]


def of_rule(findings: tuple[Finding, ...], rule: str) -> list[Finding]:
    return [each for each in findings if each.rule == f"image.{rule}"]


def test_every_rule_has_an_image_that_makes_it_fire() -> None:
    assert {*FIRES, "accept-idle"} == set(RULE)
    assert len(RULE) == len(RULES)


@pytest.mark.parametrize("rule", FIRES)
def test_a_rule_fires(rule) -> None:
    [finding] = of_rule(FIRES[rule].check(), rule)
    assert (finding.gate, finding.where) == ("image", "app")
    assert finding.severity == RULE[rule].severity
    assert finding.message.endswith(f": {RULE[rule].mend}")
    assert "{" not in finding.message
    assert finding.evidence


@pytest.mark.parametrize("rule", FIRES)
def test_and_no_other_rule_fires_with_it(rule) -> None:
    assert {each.rule for each in FIRES[rule].check()} <= {
        f"image.{rule}",
        "image.label-missing" if rule == "label-missing" else f"image.{rule}",
        "image.gpu-code-unused" if rule.startswith("gpu-code") else f"image.{rule}",
    }


@pytest.mark.parametrize(("rule", "case"), QUIET)
def test_a_rule_is_quiet(rule, case) -> None:
    assert of_rule(case.check(), rule) == []


@pytest.mark.parametrize("rule", FIRES)
def test_accept_takes_it_away(rule) -> None:
    findings = FIRES[rule].check(Accepted(rule=rule, reason="it is meant"))
    assert of_rule(findings, rule) == []
    assert of_rule(findings, "accept-idle") == []


@pytest.mark.parametrize("rule", FIRES)
def test_accept_at_another_path_takes_nothing_and_says_so(rule) -> None:
    findings = FIRES[rule].check(Accepted(rule=rule, path="/else/where", reason="it is meant"))
    assert len(of_rule(findings, rule)) == 1
    [idle] = of_rule(findings, "accept-idle")
    assert idle.severity == "warn"
    assert f"accept {rule} at /else/where means nothing that is in the image" in idle.message


def test_a_plain_image_has_no_findings() -> None:
    assert with_files(program("/usr/bin/python3"), a_folder("/app")).check() == ()


@pytest.mark.parametrize(
    ("names", "soname", "text"),
    [
        (("/a/libcudart.so.13", "/b/libcudart.so.12"), "", "in different builds"),
        (("/a/libcudart-1a2b3c4d.so.12", "/b/libcudart.so.12.8.90"), "", "in different builds"),
        (("/a/libcudart.so.13", "/b/bundled.bin"), "libcudart.so.13", "in different builds"),
        (("/a/libcudnn_ops.so.9", "/b/libcudnn_ops.so.9"), "", "in different builds"),
        (("/a/libnvrtc-builtins.so.13.0", "/b/libnvrtc-builtins.so.13.0"), "", "libnvrtc-builtins"),
        (("/a/libnvinfer_plugin.so.11", "/b/libnvinfer_plugin.so.11"), "", "libnvinfer_plugin"),
    ],
)
def test_two_copies_are_found_under_any_name(names, soname, text) -> None:
    first, second = names
    elf = {second: ElfFacts(soname=soname)} if soname else {}
    case = with_files(a_file(first, b"a" * 2000), a_file(second, b"b" * 1000), elf=elf)
    [finding] = of_rule(case.check(), "cuda-twice")
    assert "is there 2 times, 3.0 kB, " in finding.message
    assert text in finding.message
    assert finding.evidence[0].startswith(f"{first} 2.0 kB (project)")


def test_equal_copies_are_said_to_be_equal_and_are_reported_once() -> None:
    case = with_files(a_file("/a/libcufft.so.12", size=MB), a_file("/b/libcufft.so.12", size=MB))
    [finding] = case.check()
    assert "2.0 MB, with the same content" in finding.message


def test_libraries_that_a_program_opens_are_asked_for_too() -> None:
    case = needing(lazy=("libgone.so.1",))
    [finding] = case.check()
    assert finding.message.startswith("libgone.so.1 is not in the image")
    assert case.check(Accepted(rule="library-missing", path="libgone.so.*", reason="r")) == ()


def test_the_library_path_of_the_image_counts() -> None:
    files = [program("/app/run"), a_file("/opt/own/libx.so.1", b"x")]
    layer = a_layer(*files, elf={"/app/run": ElfFacts(needed=("libx.so.1",))})
    there = {**PLAIN["config"], "Env": ["A=b", "LD_LIBRARY_PATH=/other:/opt/own"]}
    assert Case(an_image(layer, config={"config": there})).check() == ()
    assert of_rule(Case(an_image(layer, config=PLAIN)).check(), "library-missing")


def test_the_owners_of_two_copies_are_named() -> None:
    paths = ("/a/libcublas.so.13", "/usr/lib/libcublas.so.12")
    image = an_image(a_layer(a_file(paths[0], b"a"), a_file(paths[1], b"b")), config=PLAIN)
    claims = dict(
        zip(paths, (wheel("cublas", "13.1"), debian("libcublas12", "12.8-1")), strict=True)
    )
    [finding] = Case(image, owned(claims)).check()
    assert {each.partition(" (")[2] for each in finding.evidence} == {
        "wheel cublas 13.1)",
        "debian libcublas12 12.8-1)",
    }


@pytest.mark.parametrize("user", ["", "root", "0", "0:0", "root:65532", "0:65532"])
def test_every_way_to_be_root(user) -> None:
    assert of_rule(with_config({"User": user}).check(), "root-user")


@pytest.mark.parametrize("user", ["65532", "65532:0", "app", "nobody:root"])
def test_other_users_are_not_root(user) -> None:
    assert not of_rule(with_config({"User": user}).check(), "root-user")


def test_the_labels_that_are_missing_are_named() -> None:
    case = with_config({"User": "1", "Labels": {"io.planyard.recipe": "x"}})
    [finding] = case.check()
    assert "org.opencontainers.image.title" in finding.message
    assert "io.planyard.recipe" not in finding.message
    assert finding.severity == "warn"


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"Env": ["PATH=/bin", "DB_PASSWORD=correct-horse"]}, "Env DB_PASSWORD"),
        ({"Labels": {**LABELS, "note": "API_KEY=correct-horse"}}, "Label note"),
        ({"Entrypoint": ["serve", "--key", "AKIA" + "QX5TBNDGK3UOWPZR"]}, "Entrypoint"),
        ({"Cmd": ["serve", "--password=correct-horse"]}, "Cmd"),
        ({"Cmd": "serve --token=correct-horse"}, "Cmd"),
    ],
)
def test_secrets_in_the_configuration_are_found_and_not_repeated(config, place) -> None:
    case = with_config({"User": "1", "Labels": LABELS, **config})
    [finding] = of_rule(case.check(), "secret")
    assert finding.evidence[0].startswith(place)
    assert "correct-horse" not in repr(finding)
    assert "QX5TBNDGK3UOWPZR" not in repr(finding)
    assert of_rule(case.check(Accepted(rule="secret", path=place, reason="r")), "secret") == []


def test_secrets_in_the_history_are_found() -> None:
    step = "|1 PIP_TOKEN=correct-horse /bin/sh -c pip install"
    case = with_config(PLAIN["config"], history=[{"created_by": "COPY"}, {"created_by": step}])
    [finding] = of_rule(case.check(), "secret")
    assert finding.evidence[0].startswith("history 1")


def test_secrets_that_a_later_layer_hides_are_still_secrets() -> None:
    hits = {"/root/.netrc": (SecretHit(rule="netrc-password", line=1),)}
    lower = a_layer(a_file("/root/.netrc", b"x"), secrets=hits)
    image = an_image(lower, a_layer(hidden=("/root/.netrc",)), config=PLAIN)
    assert [each.rule for each in Case(image).check()] == ["image.secret"]


def test_a_link_to_a_shell_is_one() -> None:
    links = (a_link("/usr/bin/sh", "../../opt/tools"), a_link("/bin", "usr/bin"))
    [finding] = with_files(*links, program("/opt/tools")).check()
    assert finding.evidence == ("/usr/bin/sh",)


@pytest.mark.parametrize("name", ["bash", "busybox", "ash", "zsh"])
@pytest.mark.parametrize("folder", ["/bin", "/usr/bin", "/usr/local/bin", "/sbin"])
def test_shells_wherever_programs_are(name, folder) -> None:
    assert of_rule(with_files(program(f"{folder}/{name}")).check(), "shell")


@pytest.mark.parametrize(
    "path",
    [
        "/usr/bin/dpkg",
        "/usr/local/bin/pip3",
        "/sbin/apk",
        f"{SITE}/pip/__main__.py",
        "/usr/local/lib/python3.11/site-packages/pip/__main__.py",
        "/usr/lib/python3.11/ensurepip/_bundled/pip-23.2-py3-none-any.whl",
    ],
)
def test_package_managers_of_the_system_and_of_python(path) -> None:
    assert of_rule(with_files(program(path)).check(), "package-manager")


def test_modes_and_owners_are_evidence() -> None:
    [finding] = with_files(program("/usr/bin/su", mode=0o6755, uid=0, gid=42)).check()
    assert finding.evidence == ("/usr/bin/su 4 B (mode 6755, owner 0:42)",)


@pytest.mark.parametrize("mode", [0o2755, 0o4755])
def test_either_bit_counts_and_links_to_the_same_file_too(mode) -> None:
    assert with_files(program("/x", mode=mode)).check()
    assert with_files(program("/x", mode=mode, kind="hardlink", link="/y")).check()


def test_folders_that_everyone_writes_into_need_to_be_sticky() -> None:
    case = with_files(a_file("/run/x", kind="folder", mode=0o777, digest=""))
    assert of_rule(case.check(), "world-writable")


def test_what_a_later_layer_removes_is_no_leftover() -> None:
    lower = a_layer(a_file("/x/a.a", b"x"), a_file("/x/b.h", b"x"), program("/bin/sh"))
    image = an_image(lower, a_layer(hidden=("/x", "/bin")), config=PLAIN)
    assert Case(image).check() == ()


def test_hidden_bytes_say_which_layer() -> None:
    [finding] = two_layers(5 * MB, hidden=True).check()
    assert "5.0 MB in 1 file that later layers hide" in finding.message
    assert finding.evidence == ("/app/model 5.0 MB (layer 1, COPY)",)


def test_of_equal_files_all_but_one_count() -> None:
    files = [a_file(f"/app/{each}", size=2 * MB) for each in "cab"]
    [finding] = with_files(*files).check()
    assert "4.0 MB in 2 files" in finding.message
    assert finding.evidence == ("/app/b 2.0 MB (as /app/a)", "/app/c 2.0 MB (as /app/a)")


def test_the_heaviest_paths_are_the_evidence() -> None:
    files = [a_file(f"/x/{size}.a", b"x" * size) for size in range(1000, 9000, 1000)]
    [finding] = with_files(*files).check()
    assert "8 files of 36.0 kB" in finding.message
    assert finding.evidence == (
        *(f"/x/{size}.a {size / 1000:.1f} kB" for size in range(8000, 3000, -1000)),
        "and 3 more, 6.0 kB",
    )


def test_names_from_a_layer_cannot_act_on_a_terminal() -> None:
    [finding] = with_files(a_file("/x/\x1b[2J\n::error::.a", b"x")).check()
    assert finding.evidence == ("/x/\\x1b[2J\\n::error::.a 1 B",)


def test_findings_that_fail_come_first_then_the_heaviest() -> None:
    case = with_files(
        a_file("/x/a.h", b"x" * 10),
        a_file("/x/a.a", b"x" * 100),
        a_file("/x/a.pyc", b"x" * 50),
        program("/bin/sh"),
        config={"config": {"Labels": LABELS}},
    )
    assert [each.rule for each in case.check()] == [
        *("image.shell", "image.root-user"),
        *("image.static-archive", "image.bytecode", "image.header-file"),
    ]


@pytest.mark.parametrize("config", [{}, {"config": None}, {"config": {"Env": 5, "Labels": []}}])
def test_a_configuration_of_any_form_is_judged(config) -> None:
    image = ImageContents(
        image="sha256:0", name="x", config=config, layers=(), created_by=(), metadata_bytes=0
    )
    findings = check_contents(image, Ownership(), asked=Asked(image="x"))
    assert {each.rule for each in findings} == {"image.root-user", "image.label-missing"}
    assert len(failures(findings)) == 1


def test_the_page_has_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs/image-audit.md").read_text()
    for rule in RULES:
        assert f"| `{rule.id}` | {rule.severity} | {rule.why} |" in page
