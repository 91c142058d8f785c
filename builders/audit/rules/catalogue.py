"""The findings of the image audit as data: how grave each is, why it is one, and how to mend it.

What lets a wrong or foreign thing run, or stops inference, fails. What only weighs warns: the
budget bounds the weight, and an image within it may carry what it likes.
"""

from __future__ import annotations

from typing import NamedTuple

from planyard.core.findings import Severity


class Rule(NamedTuple):
    """One kind of finding. `mend` ends its message."""

    id: str
    severity: Severity
    why: str
    mend: str


RULES = (
    Rule(
        "cuda-twice",
        "fail",
        "Two copies of a CUDA library: which one a process gets depends on the order of imports, "
        "and two versions in one process crash or give wrong results.",
        "keep one: take the wheel out of the lock, or the Debian package out of the base",
    ),
    Rule(
        "onnxruntime-twice",
        "fail",
        "`onnxruntime` and `onnxruntime-gpu` write the same folder: one of them silently wins, and "
        "with it CPU or GPU.",
        "keep one of them in the lock",
    ),
    Rule(
        "library-missing",
        "fail",
        "An ELF file, or `lazy_libraries`, names a library that is not in the image: it fails when "
        "it is first needed.",
        "add what brings it, or remove the file that needs it",
    ),
    Rule(
        "gpu-code-missing",
        "fail",
        "A library has neither machine code nor PTX for an SM that a cell asks for: `no kernel "
        "image is available` at run time. A warning where its code could not all be read.",
        "take a build of the library for that SM, or drop the cells",
    ),
    Rule(
        "secret",
        "fail",
        "A file of any layer, or the configuration, has a line that looks like a secret. A later "
        "layer that deletes the file does not take it out of the image.",
        "build without it (RUN --mount=type=secret) and replace it: whoever has the image has it",
    ),
    Rule(
        "root-user",
        "fail",
        "The service starts as root: what breaks into it owns the container, and often the node.",
        "end the stage with USER 65532:65532",
    ),
    Rule(
        "shell",
        "fail",
        "A runtime needs no shell; an intruder does.",
        "start the service in exec form, and leave the shell out of the base (bases.*.remove)",
    ),
    Rule(
        "package-manager",
        "fail",
        "With a package manager a running container can become another image than the one tested.",
        "install in a builder stage and copy the result; leave it out of the base (bases.*.remove)",
    ),
    Rule(
        "setuid",
        "fail",
        "A setuid or setgid file runs with its owner's rights: a way from the service to root.",
        "remove it, or chmod u-s,g-s in the stage that brings it",
    ),
    Rule(
        "capabilities",
        "fail",
        "A file with capabilities gives rights of root to whoever starts it.",
        "remove the file, or copy it without extended attributes",
    ),
    Rule(
        "world-writable",
        "fail",
        "Every user may change the file or what is in the folder: the service can be made to run "
        "what it did not bring. Sticky folders like /tmp are not meant.",
        "chmod o-w it, or give it to the user of the service (COPY --chown)",
    ),
    Rule(
        "device",
        "fail",
        "Device nodes come from the runtime; one in a layer opens whatever it numbers.",
        "remove it: the runtime makes /dev",
    ),
    Rule(
        "layer-problem",
        "fail",
        "A layer has members that no tool writes by itself: names that lead out of the root, "
        "unreadable headers.",
        "find out what wrote the layer, and build it again",
    ),
    Rule(
        "gpu-code-unused",
        "warn",
        "GPU code that runs on no SM that the cells ask for is pulled for nothing.",
        "a build of the library for fewer SMs is smaller; NVIDIA's own can not be cut",
    ),
    Rule(
        "gpu-code-jit",
        "warn",
        "For this SM there is only PTX: the driver compiles it at the first start, which takes "
        "seconds to minutes, and again wherever its cache is not kept.",
        "take a build with machine code for that SM, or keep the driver's cache (CUDA_CACHE_PATH)",
    ),
    Rule(
        "static-archive",
        "warn",
        "Static archives are for linkers; nothing opens them at run time.",
        "remove them where wheels are installed (--remove), or from the base (bases.*.remove)",
    ),
    Rule(
        "header-file",
        "warn",
        "C and C++ headers are for compilers.",
        "remove them where wheels are installed (--remove), or from the base (bases.*.remove)",
    ),
    Rule(
        "bytecode",
        "warn",
        "Compiled Python is made again from the source, is as large, and differs with every build.",
        "install with --no-compile, and set PYTHONDONTWRITEBYTECODE=1",
    ),
    Rule(
        "tests",
        "warn",
        "Tests of a package are not run in production.",
        "remove them where wheels are installed (--remove)",
    ),
    Rule(
        "docs",
        "warn",
        "Documentation and examples inside a package are read elsewhere. Licences are not meant.",
        "remove them where wheels are installed (--remove)",
    ),
    Rule(
        "same-file-twice",
        "warn",
        "Files with the same content, each with its own bytes.",
        "make the others links to one of them, or find out why both packages are there",
    ),
    Rule(
        "hidden-bytes",
        "warn",
        "What a later layer replaces or deletes is pulled and unpacked all the same.",
        "delete in the instruction that writes, or copy the result out of a builder stage",
    ),
    Rule(
        "label-missing",
        "warn",
        "`io.planyard.recipe` names all that the image was made from, and "
        "`org.opencontainers.image.title` its name in the matrix: without them an image in a "
        "registry is bytes of unknown origin.",
        "build it with `planyard image build`, which writes both",
    ),
    Rule(
        "accept-idle",
        "warn",
        "An `accept` entry of the matrix takes nothing away: what it meant was mended, or moved.",
        "take the entry out of the matrix",
    ),
)
RULE = {rule.id: rule for rule in RULES}
