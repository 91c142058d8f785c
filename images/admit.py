"""The entrypoint of an image: starts the service where it fits, refuses to start it elsewhere.

    python3 -I -S admit.py COMMAND [ARGUMENT]...

The expectation that was baked into the image at build time is held against the machine. What does
not fit is said in one line of JSON and one line of text, and nothing is started. Where all fits,
the capability snapshot is written and this process becomes COMMAND. Variables, files and exit codes
are in docs/admission.md.

One file, standard library only, fast: heavy modules are imported where they are needed. Gathering
facts (`gather_*`) is apart from judging them (`judge_*`, pure). What was not found out counts as
found wrong. The driver's libraries are called in a child with a deadline: a driver that hangs must
not hang the start.
"""
# Importing pathlib would take a tenth of the time this file may take.
# ruff: noqa: PTH103, PTH105, PTH108, PTH116, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import json
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    Document = dict[str, Any]

SCHEMA = 1
EXPECTATION = "/etc/planyard/expect.json"
EXIT_USAGE, EXIT_BUG, EXIT_REFUSED = 64, 70, 78  # as in sysexits.h
EXIT_CANNOT_RUN, EXIT_NO_COMMAND = 126, 127  # as in shells
EXPECTATION_LIMIT_BYTES = 1 << 20
ANSWER_LIMIT_BYTES = 1 << 20
SYSTEM_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/lib64",
    "/usr/lib/wsl/lib",
)


class RefusedError(Exception):
    """What cannot be accepted: expected, found, and what to do about it."""

    def __init__(self, check: str, *, expected: str, found: str, mend: str) -> None:
        super().__init__(check)
        self.mismatch = mismatch(check, expected=expected, found=found, mend=mend)


def mismatch(check: str, *, expected: str, found: str, mend: str) -> dict[str, str]:
    return {"check": check, "expected": expected, "found": found, "mend": mend}


# --- The expectation: all of it is understood, or it is refused -----------------------------------


def is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) < 4096


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_path(value: object) -> bool:
    return is_text(value) and str(value).startswith("/") and ".." not in str(value).split("/")


def is_version(value: object) -> bool:
    text = str(value)
    return is_text(value) and text.isascii() and all(each.isdigit() for each in text.split("."))


def is_list_of(wanted: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(wanted(each) for each in value)


def is_map_of(wanted: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, dict) and all(is_text(key) and wanted(value[key]) for key in value)
    )


def has_fields(fields: Mapping[str, Callable[[object], bool]]) -> Callable[[object], bool]:
    def holds(value: object) -> bool:
        if not isinstance(value, dict) or set(value) != set(fields):
            return False
        return all(wanted(value[name]) for name, wanted in fields.items())

    return holds


def is_switch(value: object) -> bool:
    """`on`, or `off: ` and a reason of some length."""
    return value == "on" or (
        is_text(value) and str(value).startswith("off: ") and len(str(value)) > 12
    )


def is_sha256(value: object) -> bool:
    return (
        is_text(value) and len(str(value)) == 64 and not set(str(value)) - set("0123456789abcdef")
    )


PLAN_FIELDS: dict[str, Callable[[object], bool]] = {
    "path": is_path,
    "size_bytes": is_count,
    "sha256": is_sha256,
    "verify": lambda value: value in ("header", "digest"),
    "sms": is_list_of(is_count),
}
FIELDS: dict[str, Callable[[object], bool]] = {
    "schema": lambda value: value is not True and value == SCHEMA,
    "image": is_text,
    "backend": is_text,
    "checks": is_map_of(is_switch),
    "driver": has_fields({"branch": is_count, "newer": lambda value: isinstance(value, bool)}),
    "cuda": is_version,
    "sms": is_list_of(is_count),
    "free_bytes": lambda value: is_count(value) or (value == 0 and isinstance(value, int)),
    "mig": is_text,
    "site": is_list_of(is_path),
    "packages": is_map_of(is_text),
    "rivals": is_list_of(is_text),
    "libraries": is_list_of(lambda value: is_text(value) and "/" not in str(value)),
    "provider": has_fields(
        {
            "name": is_text,
            "files": is_list_of(lambda value: is_text(value) and is_path(f"/{value}")),
        }
    ),
    "plans": has_fields(
        {"kind": is_text, "version": is_version, "files": is_list_of(has_fields(PLAN_FIELDS))}
    ),
    "snapshot": is_path,
    "metrics": is_path,
    "gpu_seconds": lambda value: is_count(value) and value <= 300,  # type: ignore[operator]
}
CHECKS = (
    *("toolkit", "devices", "driver", "cuda", "gpu", "sm", "memory", "mig"),
    *("libraries", "packages", "provider", "plans"),
)
NEEDED = {
    "sm": "sms",
    "memory": "free_bytes",
    "libraries": "libraries",
    "packages": "packages",
}
"""A check that is on must have something to look for in this field."""
ASKS_GPU = {"driver", "cuda", "gpu", "sm", "memory", "mig", "plans"}
"""Checks that need what the driver's own libraries answer."""


def read_expectation(path: str) -> Document:
    """The expectation of this image; only root may have written it, and it must be whole."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise bad_expectation(f"{path}: {error.strerror}") from error
    try:
        problem = problem_of_status(os.fstat(descriptor))
        if problem:
            raise bad_expectation(f"{path}: {problem}")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(EXPECTATION_LIMIT_BYTES + 1)
    finally:
        os.close(descriptor)
    return parse_expectation(data)


def problem_of_status(status: os.stat_result) -> str:
    """Why a file cannot be the expectation; empty when it can."""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_uid != 0:
        return f"belongs to user {status.st_uid}, not to root"
    if status.st_mode & 0o022:
        return f"can be written by others (mode {status.st_mode & 0o777:o})"
    if status.st_size > EXPECTATION_LIMIT_BYTES:
        return f"{status.st_size} bytes, more than {EXPECTATION_LIMIT_BYTES}"
    return ""


def parse_expectation(data: bytes) -> Document:
    """The expectation in `data`, or RefusedError: nothing missing, unknown or senseless."""
    if len(data) > EXPECTATION_LIMIT_BYTES:
        raise bad_expectation(f"more than {EXPECTATION_LIMIT_BYTES} bytes")
    try:
        document = json.loads(data, object_pairs_hook=once, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise bad_expectation(f"no JSON: {error}") from error
    if not isinstance(document, dict):
        raise bad_expectation(f"a JSON {type(document).__name__}")
    problem = problem_of_document(document)
    if problem:
        raise bad_expectation(problem)
    return document


def problem_of_document(document: Document) -> str:
    """The first thing that is missing, unknown or senseless; empty when there is none."""
    strange = sorted(set(document) ^ set(FIELDS))
    if strange:
        return "missing or unknown: " + ", ".join(strange)
    for name, holds in FIELDS.items():
        if not holds(document[name]):
            return f"{name} is {json.dumps(document[name])[:200]}"
    strange = sorted(set(document["checks"]) ^ set(CHECKS))
    if strange:
        return "checks missing or unknown: " + ", ".join(strange)
    for check, field in NEEDED.items():
        if is_on(document, check) and not document[field]:
            return f"the check {check} is on, and {field} is empty"
    if is_on(document, "provider") and not document["provider"]["files"]:
        return "the check provider is on, and provider.files is empty"
    return ""


def once(pairs: list[tuple[str, Any]]) -> Document:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def bad_expectation(found: str) -> RefusedError:
    return RefusedError(
        "expectation",
        expected=f"a whole expectation of schema {SCHEMA} at {EXPECTATION}, owned by root",
        found=found,
        mend="build the image again with planyard; nothing may replace this file",
    )


def is_on(expect: Document, check: str) -> bool:
    return bool(expect["checks"][check] == "on")


# --- Facts: what is there. `root` is / but in tests ----------------------------------------------


def gather(expect: Document, *, root: str, environment: Mapping[str, str]) -> Document:
    """Everything that the checks that are on look at."""
    asks = any(is_on(expect, check) for check in ASKS_GPU)
    wanted = ["libcuda.so.1", *(expect["libraries"] if is_on(expect, "libraries") else ())]
    provided = expect["provider"]["files"] if is_on(expect, "provider") else ()
    names = ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "CUDA_VISIBLE_DEVICES")
    folders = [each for each in environment.get("LD_LIBRARY_PATH", "").split(":") if each]
    return {
        "environment": {name: environment[name] for name in names if name in environment},
        "devices": gather_devices(root),
        "kernel_driver": gather_kernel_driver(root),
        "libraries": {
            name: gather_library(name, folders=[*folders, *SYSTEM_FOLDERS], root=root)
            for name in wanted
        },
        "packages": gather_packages(expect, root=root) if is_on(expect, "packages") else [],
        "provider": {name: gather_provided(name, expect["site"], root=root) for name in provided},
        "plans": gather_plans(expect, environment, root=root) if is_on(expect, "plans") else [],
        "gpu": ask_gpu(seconds=expect["gpu_seconds"]) if asks else {},
    }


def gather_devices(root: str) -> dict[str, str]:
    """The driver's device nodes, each with what is wrong with it, if anything."""
    folder = f"{root.rstrip('/')}/dev"
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return {}
    found = {}
    for name in entries:
        fixed = name in ("nvidiactl", "nvidia-uvm", "dxg")
        if fixed or (name.startswith("nvidia") and name[6:].isdigit()):
            found[f"/dev/{name}"] = problem_of_device(f"{folder}/{name}")
    return found


def problem_of_device(path: str) -> str:
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            return "not a device"
    except OSError as error:
        return str(error.strerror)
    return "" if os.access(path, os.R_OK | os.W_OK) else f"user {os.geteuid()} may not open it"


def gather_kernel_driver(root: str) -> str:
    """The version of the kernel's driver, as its own line gives it; empty when there is none."""
    try:
        with open(f"{root.rstrip('/')}/proc/driver/nvidia/version", "rb") as file:
            return parse_kernel_driver(file.read(4096).decode(errors="replace"))
    except OSError:
        return ""


def parse_kernel_driver(text: str) -> str:
    """`580.65.06` out of `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06 …`."""
    for line in text.splitlines():
        if line.startswith("NVRM version:"):
            for word in line.split():
                if "." in word and is_version(word):
                    return word
    return ""


def gather_library(name: str, *, folders: Sequence[str], root: str) -> dict[str, str]:
    """Where the loader would find a library, and what is wrong with it there."""
    for folder in folders:
        path = f"{root.rstrip('/')}{folder}/{name}"
        if os.path.lexists(path):
            return {"path": f"{folder}/{name}", "problem": problem_of_library(path)}
    return {"path": "", "problem": "not there"}


def problem_of_library(path: str) -> str:
    """Why a file is not a whole ELF library; its section table is the last thing in it."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            size_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        return str(error.strerror)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":
        return "not a 64-bit ELF library"
    at, each, count = (
        int.from_bytes(head[a:b], "little") for a, b in ((40, 48), (58, 60), (60, 62))
    )
    wanted = at + each * count
    return f"truncated: {size_bytes} of {wanted} bytes" if at and size_bytes < wanted else ""


def gather_packages(expect: Document, *, root: str) -> list[dict[str, str]]:
    """The installed Python packages, each with what no longer is as it was installed.

    Two wheels with one import name (onnxruntime and onnxruntime-gpu) overwrite each other's files:
    then a library has another size than its own package's RECORD says.
    """
    found = []
    for site in expect["site"]:
        folder = f"{root.rstrip('/')}{site}"
        try:
            entries = sorted(os.listdir(folder))
        except OSError:
            continue
        for entry in entries:
            if entry.endswith(".dist-info") and "-" in entry:
                name, _, version = entry.removesuffix(".dist-info").partition("-")
                found.append(
                    {
                        "name": normal_name(name),
                        "version": version,
                        "altered": altered_library(folder, entry),
                    }
                )
    return found


def normal_name(name: str) -> str:
    return name.replace("_", "-").replace(".", "-").lower()


def altered_library(folder: str, entry: str) -> str:
    """The first library of a package that has another size than its RECORD says."""
    try:
        with open(f"{folder}/{entry}/RECORD", encoding="utf-8", errors="replace") as file:
            lines = file.read(8 << 20).splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, size = line.rpartition(",")
        name = name.rpartition(",")[0]
        if ".so" not in name or not size.isdigit() or name.startswith(("/", "..")):
            continue
        try:
            size_bytes = os.stat(f"{folder}/{name}").st_size
        except OSError:
            continue  # images leave libraries out on purpose; those they need are checked by name
        if size_bytes != int(size):
            return f"{name} has {size_bytes} bytes, was installed with {size}"
    return ""


def gather_provided(name: str, sites: Sequence[str], *, root: str) -> str:
    """What is wrong with a file of the execution provider; empty when it is whole."""
    problem = "not there"
    for site in sites:
        path = f"{root.rstrip('/')}{site}/{name}"
        if os.path.lexists(path):
            problem = problem_of_library(path)
            break
    return problem


# --- Plans ----------------------------------------------------------------------------------------

RTX_TARGETS = (75, 80, 86, 89, 120, 121)
"""SM of each bit of a plan's target mask. As engines/header.py, where the format is described."""


def gather_plans(expect: Document, environment: Mapping[str, str], *, root: str) -> list[Document]:
    """Each plan that is expected: those of the image, and those of the folder PLANYARD_PLANS."""
    wanted = [dict(each) for each in expect["plans"]["files"]]
    folder = environment.get("PLANYARD_PLANS")
    problem = ""
    if folder is not None:
        try:
            wanted += pulled_plans(folder, root=root)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = (
                f"PLANYARD_PLANS={folder}: no snapshot.json of `planyard lookup --pull`: {error}"
            )
    found = [{**each, **look_at_plan(each, root=root)} for each in wanted]
    return [*found, {"path": folder, "problem": problem, "sms": []}] if problem else found


def pulled_plans(folder: str, *, root: str) -> list[Document]:
    """The plans that `planyard lookup --pull` wrote into a folder, by its snapshot.json."""
    if not is_path(folder):
        raise ValueError("not an absolute path")
    with open(f"{root.rstrip('/')}{folder}/snapshot.json", "rb") as file:
        plans = json.loads(file.read(16 << 20))["plans"]
    if not plans:
        raise ValueError("it names no plan")
    found = []
    for plan in plans:
        stem = "-".join(plan["cell"].split("/")[1:])
        sha256 = plan["digest"].removeprefix("sha256:")
        names = (f"{stem}.plan", f"{stem}-{sha256[:12]}.plan")
        here = [each for each in names if os.path.lexists(f"{root.rstrip('/')}{folder}/{each}")]
        document = {
            "path": f"{folder.rstrip('/')}/{[*here, names[0]][0]}",
            "size_bytes": plan["size_bytes"],
            "sha256": sha256,
            "verify": "header" if plan["size_bytes"] > 64 << 20 else "digest",
            "sms": [plan["sm"]],
        }
        if not has_fields(PLAN_FIELDS)(document):
            raise ValueError(f"it does not describe {plan['cell']}")
        found.append(document)
    return found


def look_at_plan(plan: Document, *, root: str) -> Document:
    """What is in a plan's file: its header, and its digest where that is asked for."""
    try:
        with open(f"{root.rstrip('/')}{plan['path']}", "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return {"problem": "not a regular file"}
            if status.st_size != plan["size_bytes"]:
                return {"problem": f"{status.st_size} bytes instead of {plan['size_bytes']}"}
            found = read_header(file.read(64), size_bytes=status.st_size)
            if plan["verify"] == "digest" and not found["problem"]:
                import hashlib

                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != plan["sha256"]:
                    found["problem"] = f"sha256 {digest} instead of {plan['sha256']}"
            return found
    except OSError as error:
        return {"problem": str(error.strerror)}


def read_header(head: bytes, *, size_bytes: int) -> Document:
    """Kind, version and, where the header says it, SMs of a plan; see engines/header.py."""
    kind = {b"vtrt": "tensorrt-rtx", b"ftrt": "tensorrt"}.get(head[:4])
    if kind is None or len(head) < 40 or head[4:8] != bytes(4):
        return {"problem": f"starts with {head[:8].hex(' ')}, which no known plan does"}
    found: Document = {"kind": kind, "version": ".".join(map(str, head[24:28])), "problem": ""}
    if kind == "tensorrt-rtx":
        mask = int.from_bytes(head[32:40], "little")
        declared_bytes = int.from_bytes(head[16:24], "little")
        if declared_bytes != size_bytes:
            found["problem"] = f"{size_bytes} bytes, its header declares {declared_bytes}"
        found["header_sms"] = [sm for bit, sm in enumerate(RTX_TARGETS) if mask >> bit & 1]
    return found


# --- The GPU, asked in a child that may hang -----------------------------------------------------


def ask_gpu(*, seconds: float, query: Callable[[], Document] | None = None) -> Document:
    """What the driver's libraries answer within `seconds`; `problem` says why they did not."""
    import select
    import time

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer_and_end(writing, query or query_driver)
    os.close(writing)
    deadline, answer = time.monotonic() + seconds, b""
    poller = select.poll()
    poller.register(reading, select.POLLIN | select.POLLHUP)
    ended = False
    while not ended and len(answer) <= ANSWER_LIMIT_BYTES:
        left_ms = (deadline - time.monotonic()) * 1000
        if left_ms <= 0 or not poller.poll(left_ms):
            break
        piece = os.read(reading, 65536)
        answer, ended = answer + piece, not piece
    os.close(reading)
    status = end_child(child, kill=not ended)
    if not ended:
        return {"problem": f"the driver's libraries did not answer within {seconds} s"}
    try:
        document = json.loads(answer)
    except ValueError:
        return {"problem": f"asking the driver's libraries ended with {status}"}
    return document if isinstance(document, dict) else {"problem": "no answer"}


def answer_and_end(writing: int, query: Callable[[], Document]) -> NoReturn:
    """In the child: whatever happens, it ends here."""
    try:
        try:
            answer = query()
        except Exception as error:  # noqa: BLE001 - said in the answer
            answer = {"problem": f"{type(error).__name__}: {error}"}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)


def end_child(child: int, *, kill: bool) -> str:
    """Reap the child; one that not even SIGKILL ends at once (a driver's lock) is left behind."""
    import signal
    import time

    if kill:
        os.kill(child, signal.SIGKILL)
    for _ in range(1000):
        try:
            ended, status = os.waitpid(child, os.WNOHANG)
        except ChildProcessError:
            return "no answer"  # started with SIGCHLD ignored: the kernel has reaped it
        if ended:
            killed = os.WIFSIGNALED(status)
            return f"signal {os.WTERMSIG(status)}" if killed else "no answer"
        time.sleep(0.001)
    return "no end"


def query_driver() -> Document:
    """NVML's and libcuda's own words; runs in the child. Names are those of nvml.h and cuda.h."""
    import ctypes

    found: Document = {"problem": "", "cuda": 0, "driver": "", "devices": []}
    nvml = ctypes.CDLL("libnvidia-ml.so.1")

    def call(name: str, *arguments: object, absent: tuple[int, ...] = ()) -> bool:
        status = getattr(nvml, name)(*arguments)
        if status and status not in absent:
            describe = nvml.nvmlErrorString
            describe.restype = ctypes.c_char_p
            raise RuntimeError(f"{name}: {(describe(status) or b'').decode(errors='replace')}")
        return not status

    call("nvmlInit_v2")
    text = ctypes.create_string_buffer(96)
    call("nvmlSystemGetDriverVersion", text, 96)
    found["driver"] = text.value.decode(errors="replace")
    count = ctypes.c_uint()
    call("nvmlDeviceGetCount_v2", ctypes.byref(count))
    for index in range(count.value):
        device = ctypes.c_void_p()
        call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(device))
        found["devices"] += query_device(call, device)
    number = ctypes.c_int()
    status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    found["cuda"] = 0 if status else number.value
    return found


def query_device(call: Callable[..., bool], device: Any) -> list[Document]:
    """A GPU, or the MIG slices of it that are visible here."""
    import ctypes

    major, minor = ctypes.c_int(), ctypes.c_int()
    call("nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor))
    sm = major.value * 10 + minor.value
    mode, pending = ctypes.c_uint(), ctypes.c_uint()
    # 3 is NVML_ERROR_NOT_SUPPORTED: a GPU without MIG.
    asked = ctypes.byref(mode), ctypes.byref(pending)
    call("nvmlDeviceGetMigMode", device, *asked, absent=(3,))
    if not mode.value:
        return [describe_device(call, device, sm=sm, mig="")]
    slices = []
    count = ctypes.c_uint()
    call("nvmlDeviceGetMaxMigDeviceCount", device, ctypes.byref(count))
    for index in range(count.value):
        part = ctypes.c_void_p()
        # NVML_ERROR_NOT_FOUND and NO_PERMISSION: no slice at this index, or none of this container.
        if call(
            "nvmlDeviceGetMigDeviceHandleByIndex", device, index, ctypes.byref(part), absent=(4, 6)
        ):
            slices.append(describe_device(call, part, sm=sm, mig="unknown"))
    return slices or [describe_device(call, device, sm=sm, mig="no slice")]


def describe_device(call: Callable[..., bool], device: Any, *, sm: int, mig: str) -> Document:
    """Name, SM and memory; a slice's profile is the end of its name: `… MIG 1g.10gb`."""
    import ctypes

    text = ctypes.create_string_buffer(96)
    call("nvmlDeviceGetName", device, text, 96)
    name = text.value.decode(errors="replace")
    memory = (ctypes.c_ulonglong * 3)()  # total, free, used
    # Some integrated GPUs share the host's memory and do not support the question.
    known = call("nvmlDeviceGetMemoryInfo", device, memory, absent=(3,))
    if mig == "unknown" and " MIG " in name:
        mig = name.rpartition(" MIG ")[2]
    free_bytes, total_bytes = (memory[1], memory[0]) if known else (None, None)
    return {
        "name": name,
        "sm": sm,
        "mig": mig,
        "free_bytes": free_bytes,
        "total_bytes": total_bytes,
    }


# --- Judging: pure. Each check gives what does not fit; nothing known fits nothing ----------------

GIVE_GPU = "pass the GPU into the container: docker run --gpus all, or nvidia.com/gpu under limits"
OTHER_NODE = "start it on a node that fits (planyard labels names them), or build for this one"
REBUILD = "build the image again with planyard, and change nothing in it afterwards"


def judge_toolkit(expect: Document, facts: Document) -> list[dict[str, str]]:  # noqa: ARG001
    """The container toolkit brings libcuda.so.1 into the container."""
    found = []
    library, environment = facts["libraries"].get("libcuda.so.1", {}), facts["environment"]
    visible = environment.get("NVIDIA_VISIBLE_DEVICES", "unset")
    problem = library.get("problem", "not looked for")
    if problem or visible == "none":
        found.append(
            mismatch(
                "toolkit",
                expected="libcuda.so.1, brought in by the NVIDIA container toolkit",
                found=f"libcuda.so.1 {problem or 'there'}, NVIDIA_VISIBLE_DEVICES {visible}",
                mend=f"{GIVE_GPU}; the host needs nvidia-container-toolkit",
            )
        )
    capabilities = environment.get("NVIDIA_DRIVER_CAPABILITIES")
    if capabilities is not None and not {"compute", "all"} & set(capabilities.split(",")):
        found.append(
            mismatch(
                "toolkit",
                expected="NVIDIA_DRIVER_CAPABILITIES with compute",
                found=f"NVIDIA_DRIVER_CAPABILITIES={capabilities}",
                mend="do not set it, or set compute,utility",
            )
        )
    return found


def judge_devices(expect: Document, facts: Document) -> list[dict[str, str]]:  # noqa: ARG001
    """A GPU's node and the two that all of them share; on WSL one node is all there is."""
    devices: dict[str, str] = facts["devices"]
    here = {name for name, problem in devices.items() if not problem}
    gpus = [name for name in here if name[len("/dev/nvidia") :].isdigit()]
    if "/dev/dxg" in here and "/dev/nvidiactl" not in devices:
        return []
    missing = sorted({"/dev/nvidiactl", "/dev/nvidia-uvm"} - here)
    wrong = [f"{name}: {problem}" for name, problem in sorted(devices.items()) if problem]
    if gpus and not missing and not wrong:
        return []
    return [
        mismatch(
            "devices",
            expected="/dev/nvidia0 (or another GPU), /dev/nvidiactl and /dev/nvidia-uvm",
            found="; ".join(wrong) or ", ".join(sorted(here)) or "none of them",
            mend=GIVE_GPU,
        )
    ]


def judge_driver(expect: Document, facts: Document) -> list[dict[str, str]]:
    """The driver's branch; kernel and libraries must be of one driver."""
    kernel, library = facts["kernel_driver"], facts["gpu"].get("driver", "")
    branch, newer = expect["driver"]["branch"], expect["driver"]["newer"]
    wanted = f"driver branch {branch}" + (" or newer" if newer else " exactly")
    if kernel and library and kernel != library:
        return [
            mismatch(
                "driver",
                expected=f"one driver, {wanted}",
                found=f"kernel module {kernel}, libraries {library}",
                mend="restart the node after the driver's update, then the container",
            )
        ]
    version = library or kernel
    first = version.partition(".")[0]
    fits = first.isdigit() and (int(first) >= branch if newer else int(first) == branch)
    # The libraries' answer is needed where there is no kernel module to ask: WSL.
    if fits:
        return []
    return [
        mismatch(
            "driver",
            expected=wanted,
            found=f"driver {version}" if version else "no driver",
            mend=f"install a driver of branch {branch} on the host, or choose a node that has it",
        )
    ]


def judge_cuda(expect: Document, facts: Document) -> list[dict[str, str]]:
    """The newest CUDA the driver runs: 13000 is 13.0."""
    number = facts["gpu"].get("cuda") or 0
    found = (number // 1000, number % 1000 // 10)
    wanted = tuple(int(part) for part in expect["cuda"].split("."))
    if number and found >= wanted[:2]:
        return []
    return [
        mismatch(
            "cuda",
            expected=f"a driver that runs CUDA {expect['cuda']}",
            found=f"a driver up to CUDA {found[0]}.{found[1]}"
            if number
            else "no answer of libcuda",
            mend="upgrade the host's driver, or build with an older CUDA under pins",
        )
    ]


def judge_gpu(expect: Document, facts: Document) -> list[dict[str, str]]:  # noqa: ARG001
    """The driver's libraries answer, and see a GPU that can be used."""
    answer = facts["gpu"]
    devices = answer.get("devices") or []
    without = [each["name"] for each in devices if each.get("mig") == "no slice"]
    problem = answer.get("problem", "not asked")
    if devices and not problem and not without:
        return []
    named = f"MIG is on and no slice is visible: {', '.join(without)}" if without else "no GPU"
    return [
        mismatch("gpu", expected="a GPU that NVML can see", found=problem or named, mend=GIVE_GPU)
    ]


def judge_each(
    expect: Document,
    facts: Document,
    *,
    check: str,
    wanted: str,
    mend: str,
    test: Callable[..., str],
) -> list[dict[str, str]]:
    """Every visible GPU must pass: which one the service takes is not known here."""
    devices = facts["gpu"].get("devices") or []
    wrong = [said for device in devices if (said := test(expect, device))]
    if devices and not wrong:
        return []
    return [mismatch(check, expected=wanted, found="; ".join(wrong) or "no GPU", mend=mend)]


def judge_sm(expect: Document, facts: Document) -> list[dict[str, str]]:
    """The SM is one that the image's cells were built and judged for."""

    def test(expect: Document, device: Document) -> str:
        sm = device.get("sm") or 0
        return "" if sm in expect["sms"] else f"{device.get('name')} with SM {sm / 10}"

    wanted = "SM " + ", ".join(str(sm / 10) for sm in expect["sms"])
    return judge_each(expect, facts, check="sm", wanted=wanted, mend=OTHER_NODE, test=test)


def judge_memory(expect: Document, facts: Document) -> list[dict[str, str]]:
    """Free device memory; that of the slice where MIG is on."""

    def test(expect: Document, device: Document) -> str:
        free = device.get("free_bytes")
        enough = free is not None and free >= expect["free_bytes"]
        return "" if enough else f"{device.get('name')} with {free} bytes free"

    wanted = f"{expect['free_bytes']} bytes of free device memory"
    mend = "stop what else uses this GPU, or choose a larger GPU or slice"
    return judge_each(expect, facts, check="memory", wanted=wanted, mend=mend, test=test)


def judge_mig(expect: Document, facts: Document) -> list[dict[str, str]]:
    """`none` wants whole GPUs, anything else is the profile of a slice, like `1g.10gb`."""

    def test(expect: Document, device: Document) -> str:
        wanted = "" if expect["mig"] == "none" else expect["mig"]
        profile = device.get("mig")
        said = f"slice {profile}" if profile else "a whole GPU"
        return "" if profile == wanted else f"{device.get('name')}: {said}"

    wanted = "no MIG" if expect["mig"] == "none" else f"a MIG slice {expect['mig']}"
    mend = "ask for it by name (nvidia.com/mig-1g.10gb), or on a node without MIG"
    return judge_each(expect, facts, check="mig", wanted=wanted, mend=mend, test=test)


def judge_libraries(expect: Document, facts: Document) -> list[dict[str, str]]:
    """Each library is where the loader looks, and is one."""
    found = {name: facts["libraries"].get(name) or {} for name in expect["libraries"]}
    wrong = [
        f"{name} {problem}"
        for name, each in found.items()
        if (problem := each.get("problem", "not looked for"))
    ]
    if not wrong:
        return []
    wanted = ", ".join(expect["libraries"])
    return [mismatch("libraries", expected=wanted, found="; ".join(wrong), mend=REBUILD)]


def judge_packages(expect: Document, facts: Document) -> list[dict[str, str]]:
    """Each package once, at its version, its libraries as it brought them, and no rival of it."""
    wrong = []
    for name, version in expect["packages"].items():
        here = [each for each in facts["packages"] if each["name"] == normal_name(name)]
        versions = sorted(each["version"] for each in here)
        if versions != [version]:
            wrong.append(f"{name} {' and '.join(versions) or 'not there'}")
        wrong += [f"{name}: {each['altered']}" for each in here if each["altered"]]
    rivals = {normal_name(name) for name in expect["rivals"]}
    wrong += [
        f"{each['name']} {each['version']}, which overwrites it"
        for each in facts["packages"]
        if each["name"] in rivals
    ]
    if not wrong:
        return []
    wanted = ", ".join(f"{name} {version}" for name, version in expect["packages"].items())
    return [mismatch("packages", expected=wanted, found="; ".join(wrong), mend=REBUILD)]


def judge_provider(expect: Document, facts: Document) -> list[dict[str, str]]:
    """The provider's own libraries are there: ONNX Runtime lists it without them as well."""
    files, name = expect["provider"]["files"], expect["provider"]["name"]
    problems = {each: facts["provider"].get(each, "not looked for") for each in files}
    wrong = [f"{each} {problem}" for each, problem in problems.items() if problem]
    if not wrong:
        return []
    wanted = f"{name}: {', '.join(files)}"
    return [mismatch("provider", expected=wanted, found="; ".join(wrong), mend=REBUILD)]


def judge_plans(expect: Document, facts: Document) -> list[dict[str, str]]:
    """Every plan is whole and of the pinned version; each GPU has a plan made for its SM."""
    plans, kind, version = facts["plans"], expect["plans"]["kind"], expect["plans"]["version"]
    wrong = []
    for plan in plans:
        problem = plan["problem"]
        if not problem and (plan["kind"], plan["version"]) != (kind, version):
            problem = f"a plan of {plan['kind']} {plan['version']}"
        if not problem and not set(plan["sms"]) <= set(plan.get("header_sms", plan["sms"])):
            problem = f"made for SMs {plan['header_sms']} instead of {plan['sms']}"
        if problem:
            wrong.append(f"{plan['path']}: {problem}")
    if not plans:
        wrong.append("no plan, and PLANYARD_PLANS names no folder")
    missing = {each["path"] for each in expect["plans"]["files"]} - {each["path"] for each in plans}
    wrong += [f"{path}: not looked at" for path in sorted(missing)]
    for device in facts["gpu"].get("devices") or []:
        if plans and not any(device.get("sm") in plan["sms"] for plan in plans):
            wrong.append(f"no plan for {device.get('name')} with SM {(device.get('sm') or 0) / 10}")
    if not wrong:
        return []
    wanted = f"whole plans of {kind} {version} for the SM of each GPU"
    mend = "planyard lookup IMAGE --sm SM --pull DIR, mount DIR, and name it in PLANYARD_PLANS"
    return [mismatch("plans", expected=wanted, found="; ".join(wrong), mend=mend)]


JUDGES = {
    "toolkit": judge_toolkit,
    "devices": judge_devices,
    "driver": judge_driver,
    "cuda": judge_cuda,
    "gpu": judge_gpu,
    "sm": judge_sm,
    "memory": judge_memory,
    "mig": judge_mig,
    "libraries": judge_libraries,
    "packages": judge_packages,
    "provider": judge_provider,
    "plans": judge_plans,
}


def judge(expect: Document, facts: Document) -> list[dict[str, str]]:
    """Everything that does not fit, in the order of the checks that are on."""
    return [each for name in CHECKS if is_on(expect, name) for each in JUDGES[name](expect, facts)]


# --- Saying, writing, becoming the service --------------------------------------------------------


def main(arguments: list[str]) -> NoReturn:
    """Admit and become the service, or say why not and end."""
    end_when_asked()
    mode = os.environ.get("PLANYARD_ADMIT", "enforce")
    expect, facts, found = {}, {}, []
    try:
        if mode not in ("enforce", "warn"):
            raise RefusedError(
                "mode",
                expected="PLANYARD_ADMIT is enforce (also when it is not set) or warn",
                found=f"PLANYARD_ADMIT={mode}",
                mend="set one of these, or leave it out",
            )
        expect = read_expectation(EXPECTATION)
        facts = gather(expect, root="/", environment=os.environ)
        found = judge(expect, facts)
    except RefusedError as refusal:
        found = [refusal.mismatch]
    except Exception as error:  # noqa: BLE001 - a bug here must not start anything
        import traceback

        traceback.print_exc()
        found = [bug(error)]
    if not found or mode == "warn":
        found += record(expect, facts, found)
    if found and mode != "warn":
        end("refused", found, exit_code=EXIT_BUG if found[0]["check"] == "bug" else EXIT_REFUSED)
    if found:
        warn(found)
    become(arguments)


def end_when_asked() -> None:
    """The first process of a container ignores SIGTERM and SIGINT unless it has a handler."""
    import signal

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: os._exit(128 + number))


def bug(error: Exception) -> dict[str, str]:
    return mismatch(
        "bug",
        expected="admission ends with a verdict",
        found=f"{type(error).__name__}: {error}",
        mend="report it with the traceback; PLANYARD_ADMIT=warn starts the service all the same",
    )


def record(
    expect: Document, facts: Document, found: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
    """Write the capability snapshot and the metric; returns what could not be written."""
    import time

    snapshot, metrics = (
        os.environ.get(variable) or str(expect.get(field) or f"/run/planyard/{name}")
        for variable, field, name in (
            ("PLANYARD_SNAPSHOT", "snapshot", "capability.json"),
            ("PLANYARD_METRICS", "metrics", "planyard.prom"),
        )
    )
    lost = try_to_write(metrics, metric_text(degraded=bool(found)))
    document = {
        "schema": SCHEMA,
        "verdict": "degraded" if found or lost else "admitted",
        "mismatches": [*found, *lost],
        "checks": expect.get("checks", {}),
        "facts": facts,
        "expectation": expect,
        "at_seconds": int(time.time()),
    }
    unwritten = try_to_write(snapshot, json.dumps(document, sort_keys=True) + "\n")
    if unwritten and not found:
        try_to_write(metrics, metric_text(degraded=True))
    return [*lost, *unwritten]


def try_to_write(path: str, text: str) -> list[dict[str, str]]:
    """Write a file; what keeps it from being written is a mismatch."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        mend = f"mount a writable folder at {os.path.dirname(path)} (tmpfs, emptyDir), or name "
        mend += "other paths in PLANYARD_SNAPSHOT and PLANYARD_METRICS"
        said = f"{error.strerror} (user {os.geteuid()})"
        return [mismatch("snapshot", expected=f"{path} can be written", found=said, mend=mend)]
    return []


def metric_text(*, degraded: bool) -> str:
    return (
        "# HELP planyard_degraded 1 when the service runs although admission found a mismatch.\n"
        "# TYPE planyard_degraded gauge\n"
        f"planyard_degraded {int(degraded)}\n"
    )


def write_whole(path: str, data: bytes) -> None:
    """Write a file so that readers see all of it or none; links are not followed."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    partial = f"{folder}/.{os.path.basename(path)}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(partial, flags, 0o644)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    finally:
        if os.path.lexists(partial):
            os.unlink(partial)


def say(found: Sequence[dict[str, str]], *, verdict: str) -> tuple[str, str]:
    """The line of JSON and the line of text."""
    document = {"planyard": "admission", "schema": SCHEMA, "verdict": verdict, "mismatches": found}
    plain = " | ".join(
        f"{each['check']}: expected {each['expected']}; found {each['found']}; do: {each['mend']}"
        for each in found
    )
    words = " ".join(plain.split())
    return json.dumps(document, sort_keys=True), f"planyard: {verdict}: {words}"


def end(verdict: str, found: Sequence[dict[str, str]], *, exit_code: int) -> NoReturn:
    """Say why, JSON on stdout and text on stderr, and end; nothing was started."""
    document, plain = say(found, verdict=verdict)
    put(1, document)
    put(2, plain)
    sys.exit(exit_code)


def warn(found: Sequence[dict[str, str]]) -> None:
    """Both lines on stderr: stdout is the service's."""
    document, plain = say(found, verdict="degraded")
    put(2, document)
    put(2, f"{plain} | started all the same because of PLANYARD_ADMIT=warn")


def put(descriptor: int, line: str) -> None:
    data = (line + "\n").encode(errors="backslashreplace")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return  # nobody reads; the exit code says it too


def become(arguments: list[str]) -> NoReturn:
    """Replace this process by the service, as if it had been started in the first place."""
    if not arguments:
        lost = mismatch(
            "command",
            expected="the service's command after the image's name",
            found="no command",
            mend="docker run IMAGE COMMAND, or CMD in the Dockerfile",
        )
        end("refused", [lost], exit_code=EXIT_USAGE)
    give_back_interpreter_changes()
    try:
        os.execvp(arguments[0], arguments)  # noqa: S606 - a list, no shell
    except (OSError, ValueError) as error:
        lost = mismatch(
            "command",
            expected=f"a program {arguments[0]!r}",
            found=str(error),
            mend="name a program of the image, with its path",
        )
        missing = isinstance(error, FileNotFoundError)
        end("refused", [lost], exit_code=EXIT_NO_COMMAND if missing else EXIT_CANNOT_RUN)


def give_back_interpreter_changes() -> None:
    """Undo what Python did to this process when it started.

    It ignores SIGPIPE and SIGXFSZ, which `exec` would hand on, and sets LC_CTYPE in a C locale
    (PEP 538).
    """
    import signal

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        with open("/proc/self/environ", "rb") as file:
            started_with = file.read().split(b"\0")
    except OSError:
        return
    if not any(entry.startswith(b"LC_CTYPE=") for entry in started_with):
        os.environ.pop("LC_CTYPE", None)


if __name__ == "__main__":
    main(sys.argv[1:])
