"""Runs that are ended in the middle: at a moment that files in the work folder tell, by a signal to mpirun or to one rank."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import MPI_ENVIRONMENT, job_command, write_config


def children(process: int) -> list[int]:
    """Of a process, and theirs."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            for child in map(int, task.read_text().split()):
                found += [child, *children(child)]
        except OSError:
            pass  # ended meanwhile
    return found


def name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


class Run:
    """The program under mpirun, or without it for one rank."""

    def __init__(self, folder: Path, ranks: int, config, command=None, sets=(), arguments=(), threads=1, launcher=True):
        file = write_config(folder, config)
        parts = job_command(ranks, file, command, sets, threads, arguments)
        self.launcher = launcher
        self.log = folder / f"run_{time.monotonic_ns()}.txt"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [str(part) for part in parts[0 if launcher else 3 :]], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, env=os.environ | MPI_ENVIRONMENT,
            )  # fmt: skip

    def ranks(self) -> list[int]:
        if not self.launcher:
            return [self.process.pid]
        return sorted(child for child in children(self.process.pid) if name_of(child) == "hcsmoe_dist")

    def wait_until(self, happened, limit=120) -> bool:
        """Whether it happened before the run ended by itself."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if happened():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        self.kill()
        pytest.fail(f"nothing happened within {limit} s:\n{self.said()}", pytrace=False)

    def end(self, limit=60) -> int:
        """Waits; the exit code, minus the signal that ended it. `seconds` is how long that took."""
        start = time.monotonic()
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"no end after {limit} s:\n{self.said()}", pytrace=False)
        self.seconds = time.monotonic() - start
        return code

    def kill(self):
        """mpirun and every rank, at once; returns when they are gone."""
        ranks = self.ranks()
        for end in [lambda: os.killpg(self.process.pid, signal.SIGKILL), *(lambda rank=rank: os.kill(rank, signal.SIGKILL) for rank in ranks)]:
            try:
                end()
            except ProcessLookupError:
                pass  # it has ended by itself
        self.process.wait()
        while any(name_of(rank) == "hcsmoe_dist" for rank in ranks):
            time.sleep(0.001)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def saved(work: Path, layer: int, ranks: int):
    """happened() of the streams after a layer being saved by that many ranks."""
    return lambda: len(list((work / "resume").glob(f"streams_{layer:04d}_*.h5"))) >= ranks
