"""The sbatch scripts of launch/ on a real Slurm cluster of this machine: what interrupts a job, that it goes on, and that the result shows
nothing of it. Nodes pose as ones with 64 cores and eight GPUs, so the scripts run as they are; the program computes on the CPU."""

import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import PROGRAM, REPOSITORY, need
from jobs import LONG, MIDDLE, SHORT, digests_of, finished_layers, undisturbed, wait_for_layer, write_job
from namespaces import wait_until
from slurm import Slurm

pytestmark = pytest.mark.slow
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL", "DEADLINE")


@pytest.fixture(scope="module")
def started():
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = None
    try:
        cluster = Slurm(folder, nodes=3)
        yield cluster
    finally:
        if cluster:
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(started, monkeypatch):
    """The cluster with all nodes idle; jobs are submitted in the folder of the repository."""
    monkeypatch.chdir(REPOSITORY)
    yield started
    started.run("scancel", "--user=root", check=False)
    for node, host in started.hosts.items():
        if host.keeper.poll() is not None:
            started.boot(node)
    started.wait_for_nodes()


class Job:
    def __init__(self, slurm: Slurm, folder: Path, sequences: int, *options, script="slurm.sbatch", environment=None, arguments=()):
        self.slurm, self.folder = slurm, folder
        self.log = folder / "log"
        arguments = [*write_job(folder, sequences), *arguments]
        environment = {"HCSMOE_PROGRAM": str(need(PROGRAM))} | (environment or {})
        self.id = slurm.submit(f"--output={self.log}", *options, f"launch/{script}", *arguments, environment=environment)

    def end(self, seconds=900) -> dict:
        """What Slurm says of the job that has ended."""
        try:
            return self.slurm.wait_for(self.id, *ENDED, seconds=seconds)
        except TimeoutError as error:
            pytest.fail(f"{error}\n{self.log.read_text()}", pytrace=False)

    def completed(self, expected: dict, restarts: int):
        shown = self.end()
        text = self.log.read_text()
        assert shown["JobState"] == "COMPLETED", f"{shown}\n{text}"
        assert int(shown["Restarts"]) == restarts, text
        assert digests_of(self.folder) == expected
        # Resumed, not done again: at most one layer is reported twice.
        assert len(finished_layers(self.log)) <= 4 + restarts, text

    def restarted(self):
        wait_until(lambda: int(self.slurm.job(self.id)["Restarts"]) == 1, 300, f"restart of {self.id}")


def take_all_nodes(slurm) -> str:
    return slurm.submit("--partition=urgent", f"--nodes={len(slurm.nodes)}", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")


def test_one_node_as_it_is(slurm, tmp_path):
    """Eight ranks on eight GPUs' places, all options as in the file."""
    Job(slurm, tmp_path, SHORT).completed(undisturbed(SHORT), restarts=0)


def test_several_nodes(slurm, tmp_path):
    job = Job(slurm, tmp_path, SHORT, "--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=0", script="slurm_nodes.sbatch")
    job.completed(undisturbed(SHORT), restarts=0)
    assert "3 ranks on n[1-3]" in job.log.read_text()


def test_time_limit(slurm, tmp_path):
    """The signal comes four minutes before the limit, and the limit is set to four minutes; Slurm looks twice a minute."""
    job = Job(slurm, tmp_path, LONG, "--ntasks-per-node=2", "--signal=USR1@240")
    wait_for_layer(job.log)
    slurm.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=4")
    job.restarted()
    slurm.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=120")
    job.completed(undisturbed(LONG), restarts=1)


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_signal(slurm, tmp_path, signal):
    job = Job(slurm, tmp_path, MIDDLE, "--ntasks-per-node=2")
    wait_for_layer(job.log)
    slurm.run("scancel", f"--signal={signal}", job.id)
    job.restarted()
    assert not (tmp_path / "output").exists()
    job.completed(undisturbed(MIDDLE), restarts=1)


def test_preempted_with_grace_time(slurm, tmp_path):
    job = Job(slurm, tmp_path, MIDDLE, "--partition=preemptible", "--ntasks-per-node=2", script="slurm_preemptible.sbatch")
    wait_for_layer(job.log)
    urgent = take_all_nodes(slurm)
    job.restarted()
    assert "saved; the job is back in the queue" in job.log.read_text()
    slurm.wait_for(urgent, "COMPLETED", seconds=200)
    job.completed(undisturbed(MIDDLE), restarts=1)


def test_preempted_without_grace_time(slurm, tmp_path):
    job = Job(slurm, tmp_path, MIDDLE, "--partition=spot", "--ntasks-per-node=2", script="slurm_preemptible.sbatch")
    wait_for_layer(job.log)
    urgent = take_all_nodes(slurm)
    slurm.wait_for(urgent, "COMPLETED", seconds=200)
    job.completed(undisturbed(MIDDLE), restarts=1)


@pytest.mark.parametrize("victim", ["first", "last"])
def test_node_dies(slurm, tmp_path, victim):
    """The node of the batch script and rank 0, or another one; the job moves to the nodes that are left."""
    job = Job(slurm, tmp_path, MIDDLE, "--nodes=2", "--ntasks-per-node=1", script="slurm_nodes.sbatch")
    wait_for_layer(job.log)
    nodes = slurm.run("scontrol", "show", "hostnames", slurm.job(job.id)["NodeList"]).split()
    dead, left = nodes if victim == "first" else reversed(nodes)
    slurm.crash(dead)
    wait_until(lambda: not slurm.hosts[left].processes("hcsmoe_dist"), 120, "end of the other rank")
    job.restarted()
    job.completed(undisturbed(MIDDLE), restarts=1)
    assert dead not in slurm.run("scontrol", "show", "hostnames", slurm.job(job.id)["NodeList"]).split()


def test_cancelled_job_stays_so_and_goes_on_when_submitted_again(slurm, tmp_path):
    job = Job(slurm, tmp_path, MIDDLE, "--ntasks-per-node=2")
    wait_for_layer(job.log)
    slurm.run("scancel", job.id)
    assert job.end()["JobState"] == "CANCELLED"
    wait_until(lambda: not slurm.run("squeue", "-h", "-j", job.id, check=False).strip(), 60, "end of the cancelled job")
    slurm.wait_for_nodes()
    assert slurm.job(job.id)["JobState"] == "CANCELLED"
    Job(slurm, tmp_path, MIDDLE, "--nodes=3", "--ntasks-per-node=1", script="slurm_nodes.sbatch").completed(undisturbed(MIDDLE), restarts=0)


def test_what_the_user_must_mend_is_not_tried_again(slurm, tmp_path):
    job = Job(slurm, tmp_path, SHORT, "--ntasks-per-node=2", arguments=["--set", "compression.experts=17"])
    shown = job.end()
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "2:0", "0"), job.log.read_text()
    assert "experts" in job.log.read_text()


def test_other_failures_are_tried_again_twice(slurm, tmp_path):
    job = Job(slurm, tmp_path, SHORT, "--ntasks-per-node=2", environment={"HCSMOE_PROGRAM": shutil.which("false")})
    shown = job.end()
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "1:0", "2"), job.log.read_text()
