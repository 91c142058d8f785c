"""A machine with a GPU as far as admission can look, laid over containers; nothing computes.

Device nodes, the driver's libraries (compiled here from C), and /proc/driver, which only a launcher
with CAP_SYS_ADMIN can replace; it then drops everything and becomes the image's entrypoint.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SITE = "/usr/local/lib/python3.11/dist-packages"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
ENTRYPOINT = ("/usr/bin/python3.11", "-I", "-S", "/opt/planyard/admit.py")
PYTHON = "/usr/bin/python3.11"
USER = 65532
LAUNCH = f"""\
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"/fake/driver", b"/proc/driver", None, 4096, None):
    sys.exit(f"mount: {{os.strerror(ctypes.get_errno())}}")
os.setgroups([])
os.setgid({USER})
os.setuid({USER})
os.environ.pop("LC_CTYPE", None)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
MEASURE = f"""\
import ctypes, json, os, sys, time
count, wanted, *command = sys.argv[1:]
if ctypes.CDLL(None).mount(b"/fake/driver", b"/proc/driver", None, 4096, None):
    sys.exit("mount")
starts = []
for _ in range(int(count)):
    began = time.monotonic()
    child = os.fork()
    if not child:
        nowhere = os.open("/dev/null", os.O_RDWR)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.setgroups([])
        os.setgid({USER})
        os.setuid({USER})
        os.execv(command[0], command)
    _, status, used = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status) != int(wanted):
        sys.exit(f"ended with {{os.waitstatus_to_exitcode(status)}}")
    starts.append([time.monotonic() - began, used.ru_utime + used.ru_stime])
print(json.dumps(starts))
"""
KERNEL = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\n"
NVML = r"""
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}
static int say(char *to, unsigned size, const char *text) { strncpy(to, text, size); return 0; }
int nvmlInit_v2(void) {
    const char *hang = getenv("FAKE_HANG");
    if (hang) {
        if (!strcmp(hang, "loud")) write(2, "asked\n", 6);
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, 0);
        for (;;) pause();
    }
    return number("FAKE_INIT", 0);
}
const char *nvmlErrorString(int status) { return "Driver/library version mismatch"; }
int nvmlSystemGetDriverVersion(char *to, unsigned size) { return say(to, size, "580.65.06"); }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("FAKE_COUNT", 1); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { *device = (void *)1; return 0; }
int nvmlDeviceGetName(void *device, char *to, unsigned size) {
    return say(to, size, device == (void *)2 ? "NVIDIA FAKE MIG 1g.10gb" : "NVIDIA FAKE");
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = number("FAKE_SM", 89) / 10;
    *minor = number("FAKE_SM", 89) % 10;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    memory[0] = 24ULL << 30; memory[1] = 20ULL << 30; memory[2] = 4ULL << 30;
    return 0;
}
int nvmlDeviceGetMigMode(void *device, unsigned *mode, unsigned *pending) {
    if (!getenv("FAKE_MIG")) return 3;
    *mode = *pending = 1;
    return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned i, void **slice) {
    if ((int)i != number("FAKE_MIG", -1)) return 6;
    *slice = (void *)2;
    return 0;
}
"""
PROBE = r"""
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
extern char **environ;
int main(int count, char **arguments) {
    int others = 0;
    for (int number = 1; number < 32; number++) {
        struct sigaction found;
        if (number == SIGKILL || number == SIGSTOP) continue;
        sigaction(number, 0, &found);
        others += found.sa_handler != SIG_DFL;
    }
    printf("pid %d\nnot default %d\n", (int)getpid(), others);
    for (int at = 1; at < count; at++) printf("argument %s\n", arguments[at]);
    for (char **each = environ; *each; each++) puts(*each);
    return 3;
}
"""
CUDA = "int cuDriverGetVersion(int *version) { *version = 13000; return 0; }"


def lay_out_fakes(folder: Path) -> Path:
    """The folder that `Machine.fakes` names: libraries, launcher, the kernel's words."""
    compiled(folder, "libnvidia-ml.so.1", NVML)
    compiled(folder, "libcuda.so.1", CUDA)
    compiled(folder, "probe", PROBE, program=True)
    (folder / "launch.py").write_text(LAUNCH)
    (folder / "measure.py").write_text(MEASURE)
    (folder / "driver" / "nvidia").mkdir(parents=True)
    (folder / "driver" / "nvidia" / "version").write_text(KERNEL.format(version="580.65.06"))
    for each in (folder, *folder.parents):
        if each.stat().st_uid == os.getuid() and each.is_relative_to(folder.parent):
            each.chmod(0o755)  # the image's user reads it too
    return folder


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A container that ended."""

    exit_code: int
    stdout: str
    stderr: str

    def refused(self, *checks: str) -> dict[str, Any]:
        """The JSON of a refusal for just these checks; nothing was started."""
        assert self.exit_code == 78, f"{self.exit_code}\n{self.stdout}\n{self.stderr}"
        (line,) = self.stdout.splitlines()
        document: dict[str, Any] = json.loads(line)
        assert document["verdict"] == "refused"
        found = [each["check"] for each in document["mismatches"]]
        assert sorted(set(found)) == sorted(checks), line
        (plain,) = self.stderr.splitlines()
        assert plain.startswith("planyard: refused: ")
        assert all(f"{check}: expected " in plain for check in checks)
        return document

    def started(self, *, exit_code: int) -> None:
        """The service ended with this code, and admission had said nothing."""
        said = f"{self.exit_code}\n{self.stdout}\n{self.stderr}"
        assert (self.exit_code, self.stdout, self.stderr) == (exit_code, "", ""), said

    def service(self, *, exit_code: int) -> dict[str, Any]:
        """What the service said of itself."""
        assert self.exit_code == exit_code, f"{self.exit_code}\n{self.stdout}\n{self.stderr}"
        document: dict[str, Any] = json.loads(self.stdout.splitlines()[0])
        return document


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An image on an engine, with what is laid over its containers. `gpu` brings the fake one."""

    host: str
    image: str
    fakes: Path
    options: tuple[str, ...] = ()
    gpu: bool = False
    missing: frozenset[str] = field(default_factory=frozenset)

    def laid(self, source: Path, target: str) -> Machine:
        """The same with a file or folder over a place of the container."""
        return replace(self, options=(*self.options, "--volume", f"{source}:{target}:ro"))

    def given(self, **variables: str) -> Machine:
        """The same with environment variables."""
        more = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
        return replace(self, options=(*self.options, *more))

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs the image's own entrypoint, on the fake GPU if any."""
        start = ["docker", "--host", self.host, "run", "--network", "none", *self.options]
        if not self.gpu:
            return [*start, self.image, *arguments]
        for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
            if name not in self.missing:
                start += ["--device", f"/dev/null:/dev/{name}"]
        for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
            if name not in self.missing:
                start += ["--volume", f"{self.fakes / name}:{LIBRARIES}/{name}:ro"]
        start += ["--volume", f"{self.fakes}:/fake:ro", "--user", "0", "--cap-add", "SYS_ADMIN"]
        start += ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]
        start += ["--entrypoint", PYTHON, self.image, "/fake/launch.py", *ENTRYPOINT]
        return [*start, *(arguments or (PYTHON, "/srv/service.py"))]

    def starts(self, count: int, *, exit_code: int) -> list[tuple[float, float]]:
        """Elapsed and CPU seconds of so many starts, each to the end of a program of one line."""
        command = self.command("/fake/probe")
        at = command.index("/fake/launch.py")
        command[at : at + 1] = ["/fake/measure.py", str(count), str(exit_code)]
        command.insert(command.index("run") + 1, "--rm")
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return [(wall, cpu) for wall, cpu in json.loads(done.stdout)]

    def run(self, *arguments: str) -> Ran:
        """Run a container to its end."""
        command = self.command(*arguments)
        command.insert(command.index("run") + 1, "--rm")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return Ran(exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def compiled(folder: Path, name: str, source: str, *, program: bool = False) -> Path:
    """A shared library, or a program, made of C."""
    folder.mkdir(parents=True, exist_ok=True)
    code = folder / f"{name}.c"
    code.write_text(source)
    kind = ["-static"] if program else ["-shared", "-fPIC"]
    args = ["gcc", *kind, "-O1", "-o", str(folder / name), str(code)]
    subprocess.run(args, check=True, capture_output=True)
    code.unlink()
    return folder / name
