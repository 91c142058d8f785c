"""A bill of materials: valid by the formats' own schemas, the same every time, nothing invented."""

from __future__ import annotations

import functools
import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from packageurl import PackageURL
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from builders.audit.owners import Ownership
from builders.sbom.attach import document_of, sbom_of
from builders.sbom.bill import UNKNOWN_TIME, BuildInputs, bill_of, time_of
from builders.sbom.licences import licences_of
from builders.sbom.purls import checked_address
from builders.wheels import Requirement
from planyard.core.results import Package
from tests.images_by_hand import a_file, a_layer, an_image, debian, found, owned, wheel

REPOSITORY = Path(__file__).parents[2]
ZLIB, NUMPY = debian("zlib1g", "1:1.2.13"), wheel("numpy", "2.4.6")
META = "/site/numpy-2.4.6.dist-info/METADATA"
STATUS = "/var/lib/dpkg/status.d/zlib1g"
LOWER = a_layer(a_file(STATUS, b"zlib1g"), a_file("/usr/lib/libz.so", b"z"))
UPPER = a_layer(a_file(META, b"numpy"), a_file("/opt/app.py", b"pass"), a_file("/opt/b", b"12"))
IMAGE = an_image(LOWER, UPPER, name="registry.example/team/app:1")
CLAIMS = {STATUS: ZLIB, "/usr/lib/libz.so": ZLIB, META: NUMPY}
OWNERS = owned(
    CLAIMS,
    found(ZLIB, source=STATUS, licences=("Zlib",), architecture="amd64"),
    found(
        NUMPY,
        source=META,
        licences=("BSD-3-Clause AND MIT",),
        homepage="https://numpy.org/",
    ),
)
INPUTS = BuildInputs(
    base=(
        Package(name="zlib1g", version="1:1.2.13", sha256="a" * 64),
        Package(name="libc6", version="2.36-9", sha256="b" * 64),
    ),
    wheels=(
        Requirement(name="NumPy", version="2.4.6", sha256=("c" * 64,)),
        Requirement(name="pip", version="26.3", sha256=("d" * 64, "e" * 64)),
    ),
    release="bookworm",
)
FORMATS = ("spdx", "cyclonedx")


def bill(image=IMAGE, owners=OWNERS, inputs=INPUTS, version="0.1.0"):
    return bill_of(image, owners, inputs=inputs, planyard_version=version)


def spdx(*args, **fields):
    return json.loads(document_of(bill(*args, **fields), "spdx"))


def cyclonedx(*args, **fields):
    return json.loads(document_of(bill(*args, **fields), "cyclonedx"))


def spdx_package(document, name):
    (package,) = (each for each in document["packages"] if each["name"] == name)
    return package


def component(document, name):
    (part,) = (each for each in document["components"] if each["name"] == name)
    return part


# The formats' own schemas


@functools.cache
def spdx_validator():
    """SPDX's schema of 2.3, as lib4sbom has it."""
    folder = importlib.resources.files("lib4sbom") / "schemas" / "spdx"
    schema = json.loads((folder / "2.3-schema.json").read_text())
    assert schema["title"] == "SPDX 2.3"
    return jsonschema.Draft7Validator(schema)


@functools.cache
def cyclonedx_validator():
    return JsonStrictValidator(SchemaVersion.V1_6)


def assert_valid(of) -> None:
    """Both documents, by both schemas, and by what SPDX's library knows beyond its schema."""
    document = json.loads(document_of(of, "spdx"))
    spdx_validator().validate(document)
    assert validate_full_spdx_document(JsonLikeDictParser().parse(document)) == []
    text = document_of(of, "cyclonedx").decode()
    assert cyclonedx_validator().validate_str(text) is None


def test_both_documents_are_valid():
    assert_valid(bill())


def test_the_validators_refuse_what_is_wrong():
    document = spdx()
    del document["packages"][0]["SPDXID"]
    with pytest.raises(jsonschema.ValidationError):
        spdx_validator().validate(document)
    document = cyclonedx()
    document["components"][0]["type"] = "nonsense"
    text = json.dumps(document)
    assert cyclonedx_validator().validate_str(text) is not None


def test_an_image_of_nothing_has_valid_documents():
    assert_valid(bill(an_image(name="", config={"created": None}), Ownership(), None))


NASTY = st.text(max_size=30) | st.sampled_from(
    ["", "a/b@1?c#d", "../..", "\udc80", "x" * 5000, "a\nb", "%zz", "(", "MIT AND", "NOASSERTION"]
)


@settings(max_examples=60, deadline=None)
@given(
    name=NASTY,
    version=NASTY,
    licences=st.lists(NASTY | st.sampled_from(["MIT", "GPL-2.0-only OR MIT", "BSD"]), max_size=4),
    homepage=NASTY | st.sampled_from(["https://x.org/ä", "https://x.org/%", "javascript:x"]),
    source=NASTY,
)
def test_whatever_an_image_says_the_documents_are_valid(name, version, licences, homepage, source):
    """Names, versions, licences and addresses are whatever somebody wrote into the image."""
    packages = [
        found(
            each,
            source=source,
            licences=tuple(licences),
            homepage=homepage,
            architecture=name,
        )
        for each in (debian(name, version), wheel(name, version))
    ]
    image = an_image(LOWER, name=name, config={"architecture": name, "created": version})
    assert_valid(bill(image, owned({}, *packages)))


# What is in them


def test_the_image_is_named_by_its_digest():
    purl = PackageURL(type="oci", name="app", version=IMAGE.image, qualifiers={"arch": "amd64"})
    image = spdx_package(spdx(), IMAGE.name)
    assert image["versionInfo"] == IMAGE.image
    assert image["checksums"] == [{"algorithm": "SHA256", "checksumValue": IMAGE.image[7:]}]
    assert image["externalRefs"][0]["referenceLocator"] == purl.to_string()
    subject = cyclonedx()["metadata"]["component"]
    assert subject["purl"] == purl.to_string()
    assert subject["hashes"] == [{"alg": "SHA-256", "content": IMAGE.image[7:]}]
    assert subject["type"] == "container"


def test_every_package_is_listed_once_with_its_purl():
    purls = {
        "pkg:deb/debian/zlib1g@1:1.2.13?arch=amd64&distro=bookworm",
        "pkg:deb/debian/libc6@2.36-9?distro=bookworm",
        "pkg:pypi/numpy@2.4.6",
        "pkg:pypi/pip@26.3",
    }
    parts = [each["purl"] for each in cyclonedx()["components"] if "purl" in each]
    assert (set(parts), len(parts)) == (purls, 4)
    packages = [
        each["externalRefs"][0]["referenceLocator"]
        for each in spdx()["packages"]
        if "externalRefs" in each and each["SPDXID"] != "SPDXRef-image"
    ]
    assert (set(packages), len(packages)) == (purls, 4)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [("zlib1g", "a" * 64), ("libc6", "b" * 64), ("numpy", "c" * 64), ("pip", None)],
)
def test_hashes_are_those_of_the_build_and_never_one_of_several(name, sha256):
    part = component(cyclonedx(), name)
    assert [each["content"] for each in part.get("hashes", [])] == ([sha256] if sha256 else [])
    package = spdx_package(spdx(), name)
    sums = [each["checksumValue"] for each in package.get("checksums", [])]
    assert sums == ([sha256] if sha256 else [])


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("zlib1g", ["metadata in the image", "the packages of the build's base"]),
        ("libc6", ["the packages of the build's base alone"]),
        ("numpy", ["metadata in the image", "the build's lock"]),
        ("pip", ["the build's lock alone"]),
    ],
)
def test_it_is_said_how_a_package_is_known(name, known):
    properties = component(cyclonedx(), name)["properties"]
    assert [each["value"] for each in properties if each["name"] == "planyard:known"] == known
    assert f"known from: {'; '.join(known)}" in spdx_package(spdx(), name)["comment"]


def test_the_licence_of_a_package_of_the_base_is_in_its_copyright_file():
    """Where the database of dpkg was removed, as from our own bases."""
    path = "/usr/share/doc/libc6/copyright"
    text = "Format: https://www.debian" + ".org/doc/packaging-manuals/copyright-format/1.0/\n"
    text += "\nFiles: *\nLicense: Expat\n"
    layer = a_layer(a_file(path, text.encode()), texts={path: text})
    part = component(cyclonedx(an_image(LOWER, layer)), "libc6")
    assert part["licenses"] == [{"license": {"id": "MIT", "acknowledgement": "declared"}}]
    assert part["evidence"]["occurrences"] == [{"location": path}]
    assert {"name": "planyard:layer", "value": layer.digest} in part["properties"]


def test_another_version_in_the_lock_is_not_the_one_in_the_image():
    wheels = (Requirement(name="numpy", version="2.0", sha256=("c" * 64,)),)
    parts = cyclonedx(inputs=BuildInputs(wheels=wheels))["components"]
    numpy = {each["version"]: each for each in parts if each["name"] == "numpy"}
    assert set(numpy) == {"2.4.6", "2.0"}
    assert "hashes" not in numpy["2.4.6"]


def relations(document):
    names = {each["SPDXID"]: each["name"] for each in document["packages"]}
    names["SPDXRef-DOCUMENT"] = "document"
    return {
        (names[each["spdxElementId"]], each["relationshipType"], names[each["relatedSpdxElement"]])
        for each in document["relationships"]
    }


def test_layers_contain_the_packages_whose_metadata_lies_in_them():
    lower, upper = LOWER.digest, UPPER.digest
    assert relations(spdx()) == {
        ("document", "DESCRIBES", IMAGE.name),
        (IMAGE.name, "CONTAINS", lower),
        (IMAGE.name, "CONTAINS", upper),
        (lower, "CONTAINS", "zlib1g"),
        (upper, "CONTAINS", "numpy"),
        ("libc6", "BUILD_DEPENDENCY_OF", IMAGE.name),
        ("pip", "BUILD_DEPENDENCY_OF", IMAGE.name),
        (IMAGE.name, "CONTAINS", f"{IMAGE.name} files"),
    }
    layer = spdx_package(spdx(), lower)
    assert layer["checksums"][0]["checksumValue"] == lower[7:]
    properties = component(cyclonedx(), "numpy")["properties"]
    assert {"name": "planyard:layer", "value": upper} in properties


def contained_in(document):
    """The names of what the image is said to depend on."""
    (image,) = (each for each in document["dependencies"] if each["ref"] == "image")
    names = {each["bom-ref"]: each["name"] for each in document["components"]}
    return {names[ref] for ref in image["dependsOn"]}


def test_what_only_the_build_names_is_no_part_of_the_image():
    """pip installs the wheels in a stage of its own; of libc6 nothing is left but its licence."""
    assert {"zlib1g", "numpy"} <= contained_in(cyclonedx())
    assert not {"libc6", "pip"} & contained_in(cyclonedx())


def test_without_any_database_the_whole_base_is_part_of_the_image():
    """The roots of an earlier planyard had none."""
    owners = owned({META: NUMPY})
    document = cyclonedx(owners=owners)
    assert {"libc6", "zlib1g", "numpy"} <= contained_in(document)
    assert "pip" not in contained_in(document)
    properties = component(document, "libc6")["properties"]
    assert properties == [{"name": "planyard:known", "value": "the packages of the build's base"}]
    assert (IMAGE.name, "CONTAINS", "libc6") in relations(spdx(owners=owners))


def test_the_projects_own_files_are_one_component():
    part = component(cyclonedx(), f"{IMAGE.name} files")
    assert part["description"] == "2 files, 6 bytes, that no package claims"
    everything = owned({**CLAIMS, "/opt/app.py": NUMPY, "/opt/b": NUMPY})
    names = [each["name"] for each in cyclonedx(owners=everything)["components"]]
    assert not [name for name in names if name.endswith("files")]


def test_two_copies_of_a_package_are_one_component_with_two_places():
    owners = owned({}, found(NUMPY, source=META), found(NUMPY, source="/other/METADATA"))
    part = component(cyclonedx(owners=owners), "numpy")
    places = [each["location"] for each in part["evidence"]["occurrences"]]
    assert sorted(places) == ["/other/METADATA", META]


@pytest.mark.parametrize(
    ("text", "vendor", "release"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "debian", "debian-12"),
        ("ID=ubuntu\nVERSION_ID=24.04", "ubuntu", "ubuntu-24.04"),
        ("ID=../x\nVERSION_ID=1", "debian", "bookworm"),
        ("", "debian", "bookworm"),
    ],
)
def test_the_image_says_whose_packages_they_are(text, vendor, release):
    name = "/usr/lib/os-release"
    layer = a_layer(a_file(name, text.encode()), texts={name: text})
    purl = f"pkg:deb/{vendor}/zlib1g@1:1.2.13?arch=amd64&distro={release}"
    assert component(cyclonedx(an_image(LOWER, layer)), "zlib1g")["purl"] == purl


# Licences


@pytest.mark.parametrize(
    ("said", "expression"),
    [
        ("MIT", "MIT"),
        ("mit", "MIT"),
        ("Apache-2.0 or MIT", "Apache-2.0 OR MIT"),
        ("GPL-2.0-or-later WITH GCC-exception-3.1", "GPL-2.0-or-later WITH GCC-exception-3.1"),
        ("BSD", ""),
        ("BSD License", ""),
        ("Apache 2.0", ""),
        ("GPL-2", ""),
        ("MIT AND weird", ""),
        ("MIT AND", ""),
        ("(" * 400, ""),
        ("MIT " * 200, ""),
        ("LicenseRef-scancode-public-domain", ""),
    ],
)
def test_only_spdx_expressions_are_taken_for_such(said, expression):
    (licence,) = licences_of([said])
    assert licence.expression == expression
    assert licence.words == said.strip()


@pytest.mark.parametrize("said", ["", "  ", "UNKNOWN", "NOASSERTION"])
def test_what_says_nothing_is_no_licence(said):
    assert licences_of([said]) == ()


def declared(*licences):
    owners = owned({}, found(NUMPY, source=META, licences=licences))
    document, package = spdx(owners=owners), None
    package = spdx_package(document, "numpy")
    texts = {
        each["licenseId"]: each["extractedText"]
        for each in document.get("hasExtractedLicensingInfos", [])
    }
    part = component(cyclonedx(owners=owners), "numpy")
    return package["licenseDeclared"], texts, part.get("licenses", [])


def test_one_licence_of_the_list_is_its_id():
    found, texts, parts = declared("MIT")
    assert (found, texts) == ("MIT", {})
    assert parts == [{"license": {"id": "MIT", "acknowledgement": "declared"}}]


def test_an_expression_stays_one():
    found, _, parts = declared("MIT OR Apache-2.0")
    assert found == "MIT OR Apache-2.0"
    assert parts == [{"expression": found, "acknowledgement": "declared"}]


def test_several_apply_together():
    found, _, parts = declared("MIT OR Apache-2.0", "Zlib")
    assert found == "(MIT OR Apache-2.0) AND Zlib"
    assert parts == [{"expression": found, "acknowledgement": "declared"}]
    assert [each["license"]["id"] for each in declared("MIT", "Zlib")[2]] == ["MIT", "Zlib"]


def test_other_words_are_named_and_repeated_whole():
    text = "Do what you like.\n" * 20
    found, texts, parts = declared("MIT", text)
    (reference,) = texts
    assert found == f"{reference} AND MIT"
    assert texts[reference] == text.strip()
    (other,) = (each["license"] for each in parts if "name" in each["license"])
    assert other["text"]["content"] == text.strip()
    assert len(other["name"]) < 130


def test_no_licence_is_said_not_to_be_known():
    assert declared() == ("NOASSERTION", {}, [])


def test_one_licence_in_two_spellings_is_one():
    assert declared("BSD-2-clause", "BSD-2-Clause")[0] == "BSD-2-Clause"


def test_nothing_is_concluded():
    assert {each["licenseConcluded"] for each in spdx()["packages"]} == {"NOASSERTION"}


# The same every time


def test_equal_images_have_equal_documents_in_another_run_too():
    """Neither the seed of hashes nor the time zone may show."""
    script = (
        "import sys, msgspec\nfrom builders.sbom.attach import document_of\n"
        "from builders.sbom.bill import Bill\n"
        "bill = msgspec.json.decode(sys.stdin.buffer.read(), type=Bill)\n"
        "for each in ('spdx', 'cyclonedx'): sys.stdout.buffer.write(document_of(bill, each))"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        input=msgspec.json.encode(bill()),
        check=True,
        capture_output=True,
        cwd=REPOSITORY,
        env={"PYTHONHASHSEED": "4", "TZ": "Asia/Tokyo", "PYTHONPATH": str(REPOSITORY)},
    ).stdout
    assert said == b"".join(document_of(bill(), each) for each in FORMATS)


@pytest.mark.parametrize("wanted", FORMATS)
def test_the_order_in_which_packages_are_found_does_not_matter(wanted):
    turned = Ownership(packages=OWNERS.packages[::-1], claims=OWNERS.claims)
    inputs = msgspec.structs.replace(INPUTS, base=INPUTS.base[::-1], wheels=INPUTS.wheels[::-1])
    assert document_of(bill(), wanted) == document_of(bill(IMAGE, turned, inputs), wanted)


def test_documents_that_differ_have_other_names():
    names = {spdx(version=each)["documentNamespace"] for each in ("0.1.0", "0.2.0")}
    serials = {cyclonedx(version=each)["serialNumber"] for each in ("0.1.0", "0.2.0")}
    assert (len(names), len(serials)) == (2, 2)


@pytest.mark.parametrize(
    ("created", "said"),
    [
        ("2025-01-02T03:04:05Z", "2025-01-02T03:04:05Z"),
        ("2025-01-02T03:04:05.123456789Z", "2025-01-02T03:04:05Z"),
        ("2025-01-02T03:04:05+02:00", "2025-01-02T01:04:05Z"),
        ("0001-01-01T00:00:00Z", UNKNOWN_TIME),
        ("0001-01-01T00:00:00+14:00", UNKNOWN_TIME),
        ("2025-13-02T03:04:05Z", UNKNOWN_TIME),
        ("yesterday", UNKNOWN_TIME),
        (None, UNKNOWN_TIME),
        (5, UNKNOWN_TIME),
    ],
)
def test_the_time_is_the_images(created, said):
    assert time_of(created) == said
    document = spdx(an_image(LOWER, config={"created": created}))
    assert document["creationInfo"]["created"] == said


@pytest.mark.parametrize(
    ("address", "is_kept"),
    [
        ("https://numpy.org", True),
        ("http://a.example.com:80/b?c=d&e=%20#f", True),
        ("https://user:secret@x.org", False),
        ("javascript:alert(1)", False),
        ("https://x.org/a b", False),
        ("https://x.org/%zz", False),
        ("https://x.org/#a#b", False),
        ("https://x.org/" + "a" * 600, False),
        ("UNKNOWN", False),
    ],
)
def test_addresses_are_kept_when_both_formats_take_them(address, is_kept):
    assert checked_address(address) == (address if is_kept else "")


# Other images


def test_an_image_that_is_not_ours_has_a_bill_from_its_files_alone():
    document = json.loads(sbom_of(IMAGE, OWNERS, "cyclonedx"))
    names = {each["name"] for each in document["components"] if "purl" in each}
    assert names == {"zlib1g", "numpy"}
    assert not [each for each in document["components"] if "hashes" in each and "purl" in each]


def test_an_image_without_a_digest_is_named_without_one():
    """In a docker archive it has that of its configuration, which no registry serves."""
    archive = bill_of(IMAGE, OWNERS, planyard_version="0.1.0", has_manifest=False)
    assert_valid(archive)
    subject = json.loads(document_of(archive, "cyclonedx"))["metadata"]["component"]
    assert "@" not in subject["purl"]
    assert "hashes" not in subject
    image = spdx_package(json.loads(document_of(archive, "spdx")), IMAGE.name)
    assert "checksums" not in image
