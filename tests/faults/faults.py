"""Kills a rank, or what started the ranks, at a random moment of a run; starts the run again, on another number of ranks; compares every byte of
the result with that of a run in one go. As often as it is told.
usage: faults.py [FAULTS] [SEED]     (run.sh sets the environment)"""

import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "flow"), str(ROOT / "tests" / "golden")]

from checkpoints import DEMO_MODEL  # noqa: E402
from conftest import job_digests, run_job  # noqa: E402
from interrupted import Run  # noqa: E402

LONGEST_END = 15  # seconds from the fault to the end of the last process


def job(folder: Path) -> dict:
    return {
        "model": str(DEMO_MODEL),
        "output": str(folder / "output"),
        "output_shard_size": "1MB",
        "calibration": {"files": [str(DEMO_MODEL.parent / "data" / "calibration.jsonl")], "sequences": 16, "length": 64},
        "compression": {"method": "hc-smoe", "experts": 8, "reconstruction": "full", "propagate": "compressed"},
        "device": {"dtype": "float32"},
    }


def strike(folder: Path, pick: random.Random, moment: float) -> str | None:
    """One fault `moment` seconds after the start. None: the run had ended before. Else what was done."""
    ranks = pick.randint(1, 3)
    run = Run(folder, ranks, job(folder))
    launcher = pick.random() < 0.2
    rank = pick.randrange(ranks)
    when = time.monotonic() + moment
    if run.wait_until(lambda: time.monotonic() > when):
        processes = run.ranks()
        if launcher or rank >= len(processes):
            target, what = run.process.pid, f"mpirun of {ranks}"
        else:
            target, what = processes[rank], f"rank {rank} of {ranks}"
        try:
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:
            run.end()
            return None
        code = run.end(LONGEST_END)
        left = [process for process in processes if Path(f"/proc/{process}").exists()]
        while left and run.seconds < LONGEST_END:  # ranks that lost their mpirun end by themselves
            time.sleep(0.05)
            run.seconds += 0.05
            left = [process for process in left if Path(f"/proc/{process}").exists()]
        if left:
            sys.exit(f"processes {left} still run {LONGEST_END} s after the fault\n{run.said()}")
        if code == 0:
            return None
        return f"{what} killed after {moment:.2f} s, all ended after {run.seconds:.2f} s"
    run.end()
    return None


def main():
    faults, seed = (int(sys.argv[1]) if len(sys.argv) > 1 else 50), (int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    pick = random.Random(seed)
    base = Path(tempfile.mkdtemp(prefix="faults_"))
    whole = base / "whole"
    whole.mkdir()
    took = run_job(whole, 2, job(whole)).seconds
    expected = job_digests(whole / "output", whole / "output.work")
    done = resumed = identical = gone_on = 0
    tries = 0
    while done < faults:
        tries += 1
        if tries > 4 * faults:
            sys.exit("most runs end before they are killed: this machine's speed changes too much")
        folder = base / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        what = strike(folder, pick, pick.uniform(0.2, took))
        if what is None:
            continue
        done += 1
        again = run_job(folder, pick.randint(1, 3), job(folder), timeout=300)
        resumed += 1
        after = re.search(r"going on after layer (\d+)", again.stderr)
        gone_on += after is not None
        same = job_digests(folder / "output", folder / "output.work") == expected
        identical += same
        print(f"{done:3}: {what}; " + (f"went on after layer {after[1]}" if after else "no layer was saved, or all were") + ("" if same else "; NOT IDENTICAL"), flush=True)
    shutil.rmtree(base)
    print(f"{done} faults, {resumed} resumed, {identical} identical")
    if identical != done or gone_on == 0:
        sys.exit(1)


main()
