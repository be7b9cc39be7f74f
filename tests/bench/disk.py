#!/usr/bin/env python3
"""Reading and assembly against the disk, in turns: dd on the same files, and dd of as many bytes with fsync.

    HCSMOE_BUILD=build tests/bench/disk.py FOLDER [--layers 2] [--reads 20] [--writes 8]

FOLDER is on the disk to be measured and needs 2.5 times the checkpoint: 1.1 GB a layer of Qwen1.5-MoE-A2.7B's shapes, random values. Before a
file is read it leaves the page cache (posix_fadvise), so that the disk is read. Reading is that of a sweep without its computing (bench_reading);
assembly is the stage of `run` in run.json, on shards that are there, with the peak memory that a rank held itself.

A shared disk's rate changes by factors within seconds. So each comparison is a pair of two runs, one right after the other, of which every other
pair begins with dd: what drifts, and what the second one finds in a cache below, falls on both alike. Of the pairs' ratios the median is printed, the
quartiles, the medians of those that dd began and ended, and the interval that holds the median of such pairs with 95 % (from the order of the ratios).
"""
import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess

import torch

from random_checkpoint import environment, make_checkpoint
from rank_memory import wait_and_watch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder")
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--reads", type=int, default=20, help="pairs")
parser.add_argument("--writes", type=int, default=8, help="pairs")
args = parser.parse_args()
build = os.environ.get("HCSMOE_BUILD", "build")
folder = os.path.join(os.path.abspath(args.folder), "hcsmoe-disk-bench")
model, output, scratch = (os.path.join(folder, name) for name in ("model", "output", "scratch"))
shutil.rmtree(folder, ignore_errors=True)
os.makedirs(model)
make_checkpoint(model, 2048, 60, 1408, args.layers, torch.bfloat16, 1, 64)
weights = os.path.join(model, "model.safetensors")


def forget(file):
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def dd(*words):
    """MB/s."""
    done = subprocess.run(["dd", "bs=8M", *words], capture_output=True, text=True, check=True, env=dict(os.environ, LC_ALL="C"))
    size, seconds = re.search(r"(\d+) bytes.* ([\d.e-]+) s,", done.stderr).groups()
    return float(size) / float(seconds) / 1e6


def assembly():
    shutil.rmtree(output, ignore_errors=True)
    config = os.path.join(folder, "config.yaml")
    with open(config, "w") as out:
        json.dump({"model": model, "output": output, "calibration": {"files": [os.path.join(model, "ids.npy")], "sequences": 1, "length": 64},
                   "compression": {"method": "hc-smoe", "experts": 30}, "output_shard_size": "500MB"}, out)
    process = subprocess.Popen(["mpirun", "-np", "2", os.path.join(build, "hcsmoe_dist"), "run", config], env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    held, _ = wait_and_watch(process)
    if process.returncode:
        raise SystemExit(process.stderr.read())
    run = json.load(open(os.path.join(output + ".work", "run.json")))
    return run["bytes"]["output"] / run["seconds"]["assembly"] / 1e6, run["bytes"]["output"], max(held.values())


def read_by_dd():
    forget(weights)
    return dd(f"if={weights}", "of=/dev/null")


def read_by_us():
    forget(weights)
    return float(subprocess.run([os.path.join(build, "bench_reading"), model], capture_output=True, text=True, check=True).stdout.split()[0])


def write_by_dd():
    rate = dd("if=/dev/zero", f"of={scratch}", f"count={size // (8 << 20)}", "conv=fsync")
    os.remove(scratch)
    return rate


def in_turns(ours, by_dd, pairs):
    """Rows (our rate, dd's rate)."""
    rows = []
    for pair in range(pairs):
        if pair % 2 == 0:
            rate = by_dd()
            rows.append((ours(), rate))
        else:
            rate = ours()
            rows.append((rate, by_dd()))
    return rows


def interval_of_median(ordered):
    """The closest pair of order statistics that holds the median with 95 %: each value is above it as often as below."""
    n, below, first = len(ordered), 0.0, 0
    for k in range(n // 2):
        below += math.comb(n, k) / 2**n
        if below > 0.025:
            break
        first = k
    return ordered[first], ordered[n - 1 - first]


_, size, _ = assembly()  # makes the shards
read = in_turns(read_by_us, read_by_dd, args.reads)
written = in_turns(lambda: assembly()[0], write_by_dd, args.writes)
for name, rows in (("reading", read), ("assembly", written)):
    ours, by_dd = (statistics.median(column) for column in zip(*rows))
    ratios = [row[0] / row[1] for row in rows]
    ordered = sorted(ratios)
    low, high = interval_of_median(ordered)
    quartiles = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    print(f"{name:9} {ours:6.0f} MB/s, dd {by_dd:6.0f} MB/s; ratio: median {statistics.median(ratios):.2f} (95 %: {low:.2f} to {high:.2f}) of {len(rows)} pairs, "
          f"quartiles {quartiles[0]:.2f} and {quartiles[1]:.2f}, dd first {statistics.median(ratios[::2]):.2f}, dd second {statistics.median(ratios[1::2]):.2f}")
_, _, held = assembly()
print(f"a rank that assembled {size / 2e9:.1f} GB from its shards held at most {held / 1e6:.0f} MB itself")
shutil.rmtree(folder)
