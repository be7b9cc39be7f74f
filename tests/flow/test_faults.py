"""A rank that fails ends the others within seconds, with a message and an exit code of its own; no wait is without a limit."""

import os
import re
import signal

import pytest
from interrupted import Run, saved
from test_resume import job

pytestmark = pytest.mark.slow


def test_a_rank_that_hangs(tmp_path):
    """Stopped by SIGSTOP, as good as hanging: the others give up after device.wait_limit."""
    run = Run(tmp_path, 3, job(tmp_path), sets=["device.wait_limit=3"])
    assert run.wait_until(saved(tmp_path / "output.work", 0, 3))
    os.kill(run.ranks()[1], signal.SIGSTOP)
    assert run.end() == 1 and run.seconds < 18, run.said()
    assert re.search(r"rank \d has waited 3 s for the other ranks", run.said())


@pytest.mark.parametrize("whom", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rank_that_dies(tmp_path, number, whom):
    run = Run(tmp_path, 3, job(tmp_path))
    assert run.wait_until(saved(tmp_path / "output.work", 0, 3))
    os.kill(run.ranks()[whom], number)
    assert run.end() not in (0, 75) and run.seconds < 15, run.said()
    assert f"signal {number.value}" in run.said()


def test_mpirun_dies(tmp_path):
    """Its ranks end by themselves."""
    run = Run(tmp_path, 2, job(tmp_path))
    assert run.wait_until(saved(tmp_path / "output.work", 0, 2))
    ranks = run.ranks()
    os.kill(run.process.pid, signal.SIGKILL)
    run.end()
    end = run.seconds
    while any(os.path.exists(f"/proc/{rank}") for rank in ranks):
        assert end < 15, "ranks without mpirun still run"
        signal.sigtimedwait([], 0.1)
        end += 0.1


def test_a_work_folder_that_vanishes(tmp_path):
    """What one rank meets in the background ends all."""
    run = Run(tmp_path, 2, job(tmp_path))
    assert run.wait_until(saved(tmp_path / "output.work", 0, 2))
    os.rename(tmp_path / "output.work", tmp_path / "elsewhere")
    (tmp_path / "output.work").touch()  # a file: nothing can be made in it
    assert run.end() == 2 and run.seconds < 15, run.said()
    assert run.said().count("hcsmoe_dist: error:") == 1 and "output.work" in run.said()
    assert not (tmp_path / "output").exists()
