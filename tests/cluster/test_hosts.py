"""launch/hosts.sh over three hosts with a network between them: the same bytes as on one, and an end on all when one is gone."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from conftest import PROGRAM, REPOSITORY, need
from hosts import Hosts
from jobs import MIDDLE, SHORT, digests_of, finished_layers, undisturbed, wait_for_layer, write_job
from namespaces import child, wait_until

pytestmark = pytest.mark.slow
LAUNCHER = REPOSITORY / "launch" / "hosts.sh"


@pytest.fixture
def hosts():
    folder = Path(tempfile.mkdtemp(prefix="hosts-"))
    running = None
    try:
        running = Hosts(folder, count=3, slots=1)
        yield running
    finally:
        if running:
            running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def start(hosts: Hosts, folder: Path, sequences: int):
    log = folder / "log"
    command = [LAUNCHER, hosts.hostfile, *write_job(folder, sequences)]
    return hosts.popen(command, log, {"HCSMOE_PROGRAM": str(need(PROGRAM))}), log


def ranks(hosts: Hosts) -> dict:
    return {name: len(hosts.hosts[name].processes("hcsmoe_dist")) for name in hosts.names}


def test_same_bytes(hosts, tmp_path):
    process, log = start(hosts, tmp_path, SHORT)
    wait_until(lambda: ranks(hosts) == {"h1": 1, "h2": 1, "h3": 1} or process.poll() is not None, 300, "a rank on each host")
    assert process.wait(900) == 0, log.read_text()
    assert digests_of(tmp_path) == undisturbed(SHORT)


@pytest.mark.parametrize("how", ["cut", "crash"])
@pytest.mark.parametrize("victim", ["h1", "h3"])
def test_a_host_disappears(hosts, tmp_path, how, victim):
    """h1 has rank 0. Its link is cut without a word, or it is gone with all its processes; the others end within 15 s."""
    process, log = start(hosts, tmp_path, MIDDLE)
    wait_for_layer(log)
    assert ranks(hosts) == {"h1": 1, "h2": 1, "h3": 1}
    begun = time.monotonic()
    if how == "cut":
        hosts.cut(victim)
    else:
        hosts.hosts[victim].crash()
    others = [name for name in hosts.names if name != victim]
    ended = lambda: process.poll() is not None and not any(ranks(hosts)[name] for name in others)  # noqa: E731
    wait_until(ended, 15, f"end of the others\n{log.read_text()}")
    print(f"the others ended {time.monotonic() - begun:.1f} s after {victim} was gone")
    assert process.returncode not in (0, 75)
    assert victim in log.read_text().split("lost communication")[-1], log.read_text()
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_stop(hosts, tmp_path, number):
    process, log = start(hosts, tmp_path, MIDDLE)
    wait_for_layer(log)
    os.kill(child(process), number)
    assert process.wait(60) == 75, log.read_text()
    assert not any(ranks(hosts).values())
    done = finished_layers(log)
    process, log = start(hosts, tmp_path, MIDDLE)
    assert process.wait(900) == 0, log.read_text()
    assert digests_of(tmp_path) == undisturbed(MIDDLE)
    assert len(done) + len(finished_layers(log)) <= 5, "done again instead of resumed"
