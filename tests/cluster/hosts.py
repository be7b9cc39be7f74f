"""Hosts h1, h2, ... with addresses of their own and sshd, joined by a bridge, and `head`, from which mpirun starts ranks on them.

Nothing is added to the machine's own network, and no packet leaves it.
"""

import os
import shlex
import subprocess
from pathlib import Path

from namespaces import Host, need_packages, wait_until

SUBNET = "10.77.0"
SSHD = """
HostKey {0}/host_key
AuthorizedKeysFile {0}/user_key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
UseDNS no
"""
SSH = """
Host *
  IdentityFile {0}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {0}/known_hosts
  GlobalKnownHostsFile /dev/null
  BatchMode yes
  ConnectTimeout 5
"""


class Hosts:
    """serve: the sshd that each host runs, if not one for root on port 22."""

    def __init__(self, folder: Path, count: int, slots: int, serve=None, port=22):
        need_packages("openssh-server", "openssh-client", "iproute2", program="sshd")
        self.folder, self.hosts = folder, {}
        self.names = [f"h{number}" for number in range(1, count + 1)]
        addresses = {name: f"{SUBNET}.{number}" for number, name in enumerate([*self.names, "head"], 1)}
        folder.mkdir(parents=True, exist_ok=True)
        self.hostfile = folder / "hostfile"
        self.hostfile.write_text("".join(f"{name} slots={slots}\n" for name in self.names))
        self.table = folder / "etc_hosts"
        self.table.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items()))
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text("".join(f"{name},{address} {host_key}\n" for name, address in addresses.items()))
        (folder / "sshd_config").write_text(SSHD.format(folder))
        (folder / "ssh_config").write_text(SSH.format(folder))
        serve = serve or ["/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config"]
        serve = shlex.join(map(str, serve)) + " &"
        try:
            self.switch = self.start("switch", "")
            self.switch.run("ip", "link", "add", "bridge", "type", "bridge")
            self.switch.run("ip", "link", "set", "bridge", "up")
            for name, address in addresses.items():
                self.connect(self.start(name, serve), address)
            for name in self.names:
                call = self.head.command(["bash", "-c", f"exec 3<>/dev/tcp/{name}/{port}"])
                wait_until(lambda: subprocess.run(call, capture_output=True).returncode == 0, 15, f"sshd of {name}")  # noqa: B023
        except BaseException:
            self.stop()
            raise

    def start(self, name: str, commands: str) -> Host:
        self.hosts[name] = Host(name, self.folder / name, self.table, network=True, start=commands)
        return self.hosts[name]

    def connect(self, host: Host, address: str):
        """A cable from the host's eth0 to a port of the bridge."""
        port = f"port-{host.name}"
        into_switch = ["nsenter", "--target", str(self.switch.first), "--net", "ip", "link"]  # process ids are those of this machine
        subprocess.run([*into_switch, "add", port, "type", "veth", "peer", "name", f"to-{host.name}"], check=True)
        subprocess.run([*into_switch, "set", f"to-{host.name}", "netns", str(host.first)], check=True)
        self.switch.run("ip", "link", "set", port, "master", "bridge", "up")
        host.run("ip", "link", "set", f"to-{host.name}", "name", "eth0")
        host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")

    @property
    def head(self) -> Host:
        return self.hosts["head"]

    @property
    def ssh(self) -> list:
        return ["ssh", "-F", str(self.folder / "ssh_config")]

    def environment(self) -> dict:
        """What a user of this network would set, and what many hosts on few cores need."""
        return {
            "OMPI_MCA_plm_rsh_agent": " ".join(self.ssh),
            "OMPI_MCA_btl_tcp_if_include": "eth0",
            "OMPI_MCA_oob_tcp_if_include": "eth0",
            "OMPI_MCA_mpi_yield_when_idle": "1",
            "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        }

    def popen(self, command: list, log: Path, environment=None) -> subprocess.Popen:
        """A command on `head`, its output in a file."""
        with open(log, "wb") as file:
            return subprocess.Popen(
                self.head.command(command), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | self.environment() | (environment or {}),
            )  # fmt: skip

    def cut(self, name: str):
        """From now on the host's packets vanish, in both directions, and its link stays up."""
        self.switch.run("ip", "link", "set", f"port-{name}", "nomaster")

    def stop(self):
        for host in self.hosts.values():
            host.crash()
