"""Several hosts on one machine: each is a process tree in namespaces of its own (host name, process table, /dev/shm, perhaps a network).

All processes are children of this one and die with it, however it ends, so nothing stays behind. Needs root.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"]


def need_packages(*packages: str, program: str):
    """Installs Debian packages that a test needs, or skips the test and says why. program: one that is there if they are."""
    if os.geteuid() != 0:
        pytest.skip("hosts of namespaces need root")
    if find_program(program):
        return
    wanted = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if not shutil.which("apt-get"):
        pytest.skip(f"{program} is missing, and there is no apt-get")
    if Path("/run/systemd/system").exists() and os.environ.get("HCSMOE_INSTALL") != "1":
        pytest.skip(f"{program} is missing, and its package brings services to this machine: HCSMOE_INSTALL=1 allows it, or: {wanted}")
    # Nothing that is installed is started: that is what policy-rc.d is asked for.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "-q", "update"], env=environment, capture_output=True)
        result = subprocess.run(["apt-get", "-q", "-y", *wanted.split()[1:]], env=environment, capture_output=True, text=True)
    finally:
        if ours:
            policy.unlink()
    if not find_program(program):
        pytest.skip(f"{wanted} failed: {result.stderr.strip().splitlines()[-1:]}")


def find_program(name: str):
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def wait_until(condition, seconds: float, what: str):
    """The first true value of condition()."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.05)
    return value


def child(process: subprocess.Popen) -> int:
    """The id of the process that `unshare` or `nsenter` started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(wait_until(lambda: children.read_text().split(), 10, f"start of {process.args}")[0])


class Host:
    """One host: `unshare` keeps it, and all its processes are gone when that one is.

    start: shell commands of the host's first process, after the common ones; what it starts in the background lives as long as the host.
    """

    def __init__(self, name: str, folder: Path, names: Path, network: bool, start: str = ""):
        self.name, self.folder = name, folder
        folder.mkdir(parents=True, exist_ok=True)
        ready = folder / "ready"
        ready.unlink(missing_ok=True)
        script = f"""
            hostname {name}
            mount -t tmpfs -o mode=1777 shm /dev/shm && mount -t tmpfs -o mode=755 run /run && mkdir /run/sshd
            mount --bind {names} /etc/hosts
            {"ip link set lo up" if network else ""}
            {start}
            touch {ready}
            while :; do sleep 3600 & wait $!; done
        """
        kinds = ["--uts", "--ipc", "--mount", "--pid", *(["--net"] if network else [])]
        with open(folder / "log", "ab") as log:
            own = ["unshare", *kinds, "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
            self.keeper = subprocess.Popen(
                [*DIES_WITH_US, *own, "bash", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.first = child(self.keeper)
        wait_until(ready.exists, 10, f"{name} ready: {(folder / 'log').read_text()}")

    def command(self, command: list) -> list:
        """The command line that runs `command` there, in the current folder."""
        kinds = ["--net", "--pid", "--mount", "--uts", "--ipc"]
        return ["nsenter", "--target", str(self.first), *kinds, f"--wd={os.getcwd()}", "--", *map(str, command)]

    def run(self, *command, check=True) -> str:
        return subprocess.run(self.command(list(command)), check=check, capture_output=True, text=True).stdout

    def processes(self, name: str) -> list:
        """Ids, as this machine counts them, of the host's processes of that name."""
        found = []
        if self.keeper.poll() is not None:
            return found
        here = os.stat(f"/proc/{self.first}/ns/pid").st_ino
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "comm").read_text().strip() == name[:15] and os.stat(folder / "ns/pid").st_ino == here:
                    found.append(int(folder.name))
            except OSError:
                pass  # it has just ended
        return found

    def crash(self):
        """As a power cut would: every process at once, and its network."""
        if self.keeper.poll() is None:
            self.keeper.send_signal(signal.SIGKILL)
            self.keeper.wait()
