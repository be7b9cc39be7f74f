#!/usr/bin/env python3
"""The model of the cost (`inspect`) held against a run on this machine's processors.

    HCSMOE_BUILD=build tests/bench/cost_model.py FOLDER [--hidden 2048 --experts 60 --width 1408 --layers 2] [--sequences 4 --length 512] [--repeats 3]

Each time: products alone on both ranks at once, dd to and from FOLDER's disk, then `inspect` with these rates and `run`, and products alone again.
Prints measured over estimated seconds of the sweep and of assembly. 1 would be a run that loses no time to anything but products and disk.
"""
import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys

import torch

from random_checkpoint import environment, make_checkpoint

RANKS = 2
PRODUCT = """
import sys, time, torch
torch.set_num_threads(1)
T, D, F = 1024, int(sys.argv[1]), int(sys.argv[2])
x, w, out = torch.randn(T, D).bfloat16(), torch.randn(F, D).bfloat16(), torch.empty(T, F, dtype=torch.bfloat16)
start, n = time.perf_counter(), 0
while time.perf_counter() - start < 3:
    torch.mm(x, w.t(), out=out)
    n += 1
print(2 * T * D * F * n / (time.perf_counter() - start) / 1e12)
"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder")
parser.add_argument("--hidden", type=int, default=2048)
parser.add_argument("--experts", type=int, default=60)
parser.add_argument("--width", type=int, default=1408)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--sequences", type=int, default=4)
parser.add_argument("--length", type=int, default=512)
parser.add_argument("--repeats", type=int, default=3)
args = parser.parse_args()
program = os.path.join(os.environ.get("HCSMOE_BUILD", "build"), "hcsmoe_dist")
folder = os.path.join(os.path.abspath(args.folder), "hcsmoe-cost-bench")
model, output, scratch = (os.path.join(folder, name) for name in ("model", "output", "scratch"))
shutil.rmtree(folder, ignore_errors=True)
os.makedirs(model)
make_checkpoint(model, args.hidden, args.experts, args.width, args.layers, torch.bfloat16, args.sequences, args.length)
weights = os.path.join(model, "model.safetensors")


def product_rate():
    """TFLOP/s a rank, of products on all ranks' cores at once."""
    command = [sys.executable, "-c", PRODUCT, str(args.hidden), str(args.width)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1")) for _ in range(RANKS)]
    return statistics.mean(float(process.communicate()[0]) for process in running)


def dd(*words):
    """GB/s."""
    done = subprocess.run(["dd", "bs=8M", *words], capture_output=True, text=True, check=True, env=dict(os.environ, LC_ALL="C"))
    size, seconds = re.search(r"(\d+) bytes.* ([\d.e-]+) s,", done.stderr).groups()
    return float(size) / float(seconds) / 1e9


def forget(file):
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def estimated(text, stage):
    """Seconds: "12.3 s", "140 ms" or "3 min 05 s"."""
    value = re.search(rf"^  {stage} +([^,\n]+)", text, re.MULTILINE)[1]
    unit = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600}
    return sum(float(number) * unit[name] for number, name in re.findall(r"([\d.]+) (ms|min|s|h)", value))


config = os.path.join(folder, "config.yaml")
with open(config, "w") as out:
    json.dump({"model": model, "output": output, "device": {"threads": 1, "dtype": "bfloat16"},
               "calibration": {"files": [os.path.join(model, "ids.npy")], "sequences": args.sequences, "length": args.length},
               "compression": {"method": "hc-smoe", "experts": args.experts // 2}}, out)
rows = []
for _ in range(args.repeats):
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(output + ".work", ignore_errors=True)
    before = product_rate()
    forget(weights)
    read = dd(f"if={weights}", "of=/dev/null")
    write = dd("if=/dev/zero", f"of={scratch}", "count=64", "conv=fsync")
    os.remove(scratch)
    forget(weights)
    run = subprocess.run(["mpirun", "-np", str(RANKS), program, "run", config], env=environment(), capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    measured = json.load(open(os.path.join(output + ".work", "run.json")))
    shutil.rmtree(output)
    rates = dict(ranks=RANKS, half=(before + product_rate()) / 2, efficiency=1, read=read, write=write, copy=1e6, broadcast=1e6, reduce=1)
    flags = [part for rate, value in rates.items() for part in ("--machine", f"{rate}={value:.6g}")]
    text = subprocess.run([program, "inspect", config, *flags], capture_output=True, text=True, check=True, env=environment()).stdout
    times = measured["seconds"]
    sweep, assembly = estimated(text, "sweep"), estimated(text, "assembly")
    rows.append(((times["sweep"] + times["merge"]) / sweep, times["assembly"] / assembly, times["total"] / (sweep + assembly)))
    print(f"products {rates['half'] * 1e3:.0f} GFLOP/s a rank, read {read:.2f} GB/s, write {write:.2f} GB/s: sweep and merge "
          f"{times['sweep'] + times['merge']:.1f} s measured, {sweep:.1f} s estimated; assembly {times['assembly']:.1f} s, {assembly:.1f} s; "
          f"total {rows[-1][2]:.2f} of the estimate")
print("medians: sweep {:.2f}, assembly {:.2f}, total {:.2f} of the estimate".format(*(statistics.median(column) for column in zip(*rows))))
shutil.rmtree(folder)
