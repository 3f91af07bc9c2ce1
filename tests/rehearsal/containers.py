"""One container: a process in mount, process and network namespaces of its own, with a root made for it.

The root holds the programs of this machine, read-only, in place of an image; `/tmp` and the mounts of the Pod are its
own. The process runs as the user of the security context, without privileges. It ends with the process that started
it, and all that it started ends with it.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from tests.rehearsal.network import namespace_of

_SYSTEM: Final = ("/usr", "/opt", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/var/lib/dpkg")
REPOSITORY: Final = Path(__file__).parents[2]
SIDECAR_FILES: Final = REPOSITORY / "kuberay" / "sidecar"
REDIS: Final = shutil.which("redis-server") or shutil.which("redis-check-rdb")
"""The server of the image `redis`. Its name decides what the program is; Debian's redis-tools has it as the other."""
_PROGRAMS: Final = "/programs"


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file in a container; without a source it is an empty one in memory."""

    path: str
    source: Path | None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """All that is needed to start a container."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    mounts: Sequence[Mount] = ()
    user: int = 0
    group: int = 0
    read_only_root: bool = False
    working_dir: str = "/tmp"  # the container's own
    files: Mapping[str, Path] = field(default_factory=dict)


def image_environment() -> dict[str, str]:
    """Return the environment that stands in for the application's image: this very Python and its packages."""
    path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:{_PROGRAMS}"
    return {"PATH": path, "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONPATH": str(REPOSITORY)}


def image_files() -> dict[str, Path]:
    """Return what images hold that does not lie there on this machine, by its path."""
    files = {f"{_PROGRAMS}/redis-server": Path(REDIS)} if REDIS else {}
    if SIDECAR_FILES.is_dir():
        files |= {f"/sidecar/{path.name}": path for path in SIDECAR_FILES.iterdir() if path.is_file()}
    return files


class Container:
    """A started container."""

    def __init__(self, plan: ContainerPlan, *, sandbox_pid: int, folder: Path) -> None:
        self.plan = plan
        self.log = folder / f"{plan.name}.log"
        script = folder / f"{plan.name}.sh"
        root = folder / f"{plan.name}.root"
        root.mkdir(exist_ok=True)
        script.write_text(_setup_script(plan, root))
        command = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{sandbox_pid}/ns/net"]
        command += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "/bin/sh", str(script)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def first_pid(self) -> int | None:
        """Return the pid, as seen from outside, of the container's process number 1; None when there is none."""
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except FileNotFoundError:
            return None
        return int(children[0]) if children else None

    def processes(self) -> list[psutil.Process]:
        """Return every process in the container."""
        first = self.first_pid()
        if first is None:
            return []
        found = []
        for process in psutil.process_iter():
            try:
                if namespace_of(process.pid, "pid") == namespace_of(first, "pid"):
                    found.append(process)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def run(self, command: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the container's user (`kubectl exec`).

        Raises:
            subprocess.TimeoutExpired: It took too long; it is ended.
        """
        first = self.first_pid()
        if first is None:
            return subprocess.CompletedProcess(command, 1, "", "the container is not running")
        enter = ["nsenter", "-t", str(first), "--mount", "--pid", "--net", "--root", "--wd"]
        return subprocess.run(
            [*enter, *_as_user(self.plan), *command],
            env=dict(self.plan.environment), capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def kill(self) -> None:
        """End it at once: without its first process a namespace of processes has none."""
        first = self.first_pid()
        if first is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def has_user(user: int) -> bool:
    """Whether processes and files may become this user's: not in a namespace of users that maps one alone."""
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return os.getuid() == 0 and any(first <= user < first + length for first, _, length in ranges)


def _as_user(plan: ContainerPlan) -> list[str]:
    if not plan.user or not has_user(plan.user):
        return []
    # Becoming another user makes a process forget that it is to end with its parent, so it is told again.
    bounds = ["--pdeathsig=KILL", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    return ["/usr/bin/setpriv", f"--reuid={plan.user}", f"--regid={plan.group}", "--clear-groups", *bounds]


def _setup_script(plan: ContainerPlan, root: Path) -> str:
    """Return the script that makes the container's root and becomes its first process."""
    lines = ["set -e", f"root={shlex.quote(str(root))}", "mount -t tmpfs -o mode=755 tmpfs $root"]
    # `/etc` as a copy: Pods mount things into it. Each step on a line of its own, so that `set -e` sees it fail.
    lines += ["mkdir $root/proc $root/tmp $root/var $root/run", "chmod 1777 $root/tmp"]
    lines.append("cp -a /etc $root/etc 2>/dev/null || [ -e $root/etc/passwd ]")  # some of it is for root alone
    # There is no DNS, and `/etc/hosts` has every name; a server that is never there would be waited for 40 s by gRPC.
    lines += ["rm -f $root/etc/resolv.conf", "echo nameserver 127.0.0.1 > $root/etc/resolv.conf"]
    for system in _SYSTEM:
        if Path(system).is_symlink():
            lines.append(f"ln -s {Path(system).readlink()} $root{system}")
        elif Path(system).is_dir():
            lines += _bind(system, system, read_only=True)
    for shared in ("/dev", "/sys"):
        lines += [f"mkdir $root{shared}", f"mount --rbind {shared} $root{shared}"]
    for mount in sorted(plan.mounts, key=lambda mount: mount.path):
        if mount.source is None:
            lines += [f"mkdir -p $root{mount.path}", f"mount -t tmpfs -o mode=1777 tmpfs $root{mount.path}"]
        else:
            lines += _bind(str(mount.source), mount.path, read_only=mount.read_only)
    # After the mounts: one of /tmp would hide what lies there on this machine.
    for source in _outermost([sys.prefix, sys.base_prefix, str(REPOSITORY)]):
        lines += _bind(source, source, read_only=True)
    for path, file in plan.files.items():
        lines += _bind(str(file), path, read_only=True)
    lines.append("mount -t proc proc $root/proc")
    if plan.read_only_root:
        lines.append("mount -o remount,bind,ro $root")
    variables = " ".join(shlex.quote(f"{name}={value}") for name, value in plan.environment.items())
    inner = f"cd {shlex.quote(plan.working_dir)} && exec {shlex.join([*_as_user(plan), *plan.command])}"
    lines.append(f"exec chroot $root /usr/bin/env -i {variables} /bin/sh -c {shlex.quote(inner)}")
    return "\n".join(lines) + "\n"


def _bind(source: str, path: str, *, read_only: bool) -> list[str]:
    there, here = f"$root{shlex.quote(path)}", shlex.quote(source)
    if Path(source).is_file():
        lines = [f"mkdir -p $(dirname {there})", f"[ -e {there} ] || touch {there}"]
    else:
        lines = [f"mkdir -p {there}"]
    lines.append(f"mount --bind {here} {there}")
    return [*lines, f"mount -o remount,bind,ro {there}"] if read_only else lines


def _outermost(paths: Sequence[str]) -> list[str]:
    """Return the paths that are not within another one, without those of the system."""
    own = [path for path in dict.fromkeys(paths) if not any(Path(path).is_relative_to(s) for s in _SYSTEM)]
    return [path for path in own if not any(path != other and Path(path).is_relative_to(other) for other in own)]
