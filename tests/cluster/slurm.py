"""A Slurm cluster of nodes n1, n2, ... on this machine: real munged, slurmctld and slurmd, each node in namespaces of its own.

All it writes is below one folder, and all it listens on is 127.0.0.1.
"""

import os
import socket
import subprocess
from pathlib import Path

from namespaces import DIES_WITH_US, Host, find_program, need_packages, wait_until

TEMPLATE = Path(__file__).with_name("slurm.conf")
# The default of Slurm 22.05 (and `tree`) lets a rank leave MPI_Init before another has set up its part: one start in thirty crashes there.
MPI = "PMIxCollFence=ring\nPMIxTimeout=60\n"
# A cgroup plugin is loaded although nothing uses it; this one starts anywhere.
CGROUP = "CgroupPlugin=cgroup/v1\n"
GPUS = 8


def free_ports(count: int) -> int:
    """The first of `count` ports in a row on which nobody listens."""
    used = {int(line.split()[3].rpartition(":")[2]) for line in subprocess.check_output(["ss", "-Hltn"], text=True).splitlines()}
    return next(first for first in range(17000, 30000, 100) if not used & set(range(first, first + count)))


class Slurm:
    def __init__(self, folder: Path, nodes: int):
        need_packages("slurmctld", "slurmd", "slurm-client", "munge", "iproute2", program="slurmctld")
        assert len(str(folder)) < 60, f"too long a name for a Unix socket below it: {folder}"
        self.folder, self.hosts, self.daemons = folder, {}, []
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        (folder / "state").mkdir(parents=True)
        controller = socket.gethostname().split(".")[0]
        local = {address[4][0] for address in socket.getaddrinfo(controller, None, socket.AF_INET)} == {"127.0.0.1"}
        port = free_ports(nodes + 51)
        self.names = folder / "etc_hosts"
        self.names.write_text("".join(f"127.0.0.1 {name}\n" for name in ["localhost", controller, *self.nodes]))
        values = {
            "FOLDER": folder,
            "CONTROLLER": controller,
            "PORT": port,
            "SRUN_PORTS": f"{port + nodes + 1}-{port + nodes + 50}",
            # srun listens on what the host's name resolves to and is told to be where it connects from.
            "COMMUNICATION": "NoCtldInAddrAny,NoInAddrAny" if local else "NoCtldInAddrAny",
            "NODES": "\n".join(
                f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port + number} CPUs=64 RealMemory=1000 Gres=gpu:a100:{GPUS}"
                for number, name in enumerate(self.nodes, 1)
            ),
        }
        text = TEMPLATE.read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(text)
        (folder / "mpi.conf").write_text(MPI)
        (folder / "cgroup.conf").write_text(CGROUP)
        for number in range(GPUS):  # Slurm counts files
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu Type=a100 File={folder}/gpu[0-{GPUS - 1}]\n")
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def daemon(self, *command):
        with open(self.folder / "daemons.log", "ab") as log:
            process = subprocess.Popen(
                [*DIES_WITH_US, *map(str, command)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=self.environment(),
            )  # fmt: skip
        self.daemons.append(process)

    def start(self):
        key, munge_socket = self.folder / "munge.key", self.folder / "munge.socket"
        subprocess.run([find_program("mungekey"), "--create", f"--keyfile={key}"], check=True)
        self.folder.chmod(0o755)
        files = {"key": "munge.key", "pid": "munged.pid", "seed": "munge.seed", "log": "munged.log"}
        options = [f"--{name}-file={self.folder}/{file}" for name, file in files.items()]
        self.daemon(find_program("munged"), "--foreground", "--force", f"--socket={munge_socket}", *options)
        wait_until(munge_socket.exists, 10, "munged")
        self.daemon(find_program("slurmctld"), "-D", "-c")
        for node in self.nodes:
            self.boot(node)
        self.wait_for_nodes()

    def boot(self, node: str):
        for part in ("spool", "tmp"):
            (self.folder / node / part).mkdir(parents=True, exist_ok=True)
        start = f"export SLURM_CONF={self.configuration}; {find_program('slurmd')} -D -N {node} &"
        self.hosts[node] = Host(node, self.folder / node, self.names, network=False, start=start)

    def wait_for_nodes(self):
        count = lambda: self.run("sinfo", "-h", "-p", "normal", "-t", "idle", "-o", "%D", check=False).strip()  # noqa: E731
        wait_until(lambda: count() == str(len(self.nodes)), 120, "all nodes idle")

    def environment(self) -> dict:
        return os.environ | {
            "SLURM_CONF": str(self.configuration),
            # Open MPI does not see that there are more ranks than cores, nor that only lo is there for all.
            "OMPI_MCA_mpi_yield_when_idle": "1",
            "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
            "OMPI_MCA_btl_tcp_if_include": "lo",
        }

    def run(self, *command, check=True, environment=None) -> str:
        """One of Slurm's commands; what it prints."""
        environment = self.environment() | (environment or {})
        result = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0 or not check, f"{command}: {result.stderr}"
        return result.stdout

    def submit(self, *arguments, environment=None) -> str:
        return self.run("sbatch", "--parsable", *arguments, environment=environment).strip()

    def job(self, job: str) -> dict:
        """What `scontrol show job` says."""
        return dict(word.split("=", 1) for word in self.run("scontrol", "show", "job", job).split() if "=" in word)

    def wait_for(self, job: str, *states: str, seconds: float) -> dict:
        return wait_until(lambda: (shown := self.job(job))["JobState"] in states and shown, seconds, f"job {job} {states}: {self.job(job)}")

    def crash(self, node: str):
        self.hosts[node].crash()

    def stop(self):
        for host in self.hosts.values():
            host.crash()
        for process in reversed(self.daemons):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
