#!/usr/bin/env python3
"""The calibration pass against the machine's own matrix products of the same shapes, in one run; or the cost of each statistic.

    HCSMOE_BUILD=build tests/bench/statistics_pass.py [--hidden 512 --experts 60 --width 352 | --shapes qwen] [--dtype bfloat16] [--repeats 5]
                                                      [--processor-time | --each]

Makes a random Qwen2-MoE checkpoint of these sizes, runs `collect` on it as 1 rank x 2 threads and 2 ranks x 1 thread, and, between the runs,
times torch's product of the same shapes on 2 threads. Prints tokens/s of the whole sweep, and GFLOP/s of the experts' pass (operations of its
matrix products over all its time, so everything else counts as lost time) with the ratios, as medians over the repeats, because the machine's
speed drifts. Attention, which has other shapes, counts in tokens/s only.

--processor-time: instead, one thread's processor time in one process (bench_statistics_pass), in which other work on the machine counts for little.

--each: tokens/s of the whole sweep of 1 rank x 2 threads with each statistic that is collected on request, and with none and all of them.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time

import torch

from random_checkpoint import environment, make_checkpoint

parser = argparse.ArgumentParser()
parser.add_argument("--hidden", type=int, default=512)
parser.add_argument("--experts", type=int, default=60)
parser.add_argument("--width", type=int, default=352)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--length", type=int, default=1024)
parser.add_argument("--sequences", type=int, default=8)
parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--each", action="store_true")
parser.add_argument("--processor-time", action="store_true")
parser.add_argument("--shapes", choices=("qwen",), help="Qwen1.5-MoE-A2.7B's: D=2048 E=60 F=1408, one layer")
args = parser.parse_args()
if args.shapes:
    args.hidden, args.experts, args.width, args.layers = 2048, 60, 1408, 1
D, E, F, L = args.hidden, args.experts, args.width, args.layers
dtype = getattr(torch, args.dtype)
program = os.path.join(os.environ.get("HCSMOE_BUILD", "build"), "hcsmoe_dist")


def product_rate(seconds=1.5):
    """GFLOP/s of [T, D] x [D, F] and [T, F] x [F, D], in the proportion in which the pass needs them (2 E : k)."""
    torch.set_num_threads(2)
    x, h = torch.randn(args.length, D).to(dtype), torch.randn(args.length, F).to(dtype)
    up, down = torch.randn(F, D).to(dtype), torch.randn(D, F).to(dtype)
    times = []
    for a, w in ((x, up), (h, down)):
        a @ w.t()
        start, n = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 2:
            a @ w.t()
            n += 1
        times.append((time.perf_counter() - start) / n)
    share = 4 / (2 * E + 4)
    return 2 * args.length * D * F / ((1 - share) * times[0] + share * times[1]) / 1e9


def collect(folder, ranks, threads, *arguments):
    work = folder + ".work"
    shutil.rmtree(work, ignore_errors=True)
    config = folder + ".yaml"
    with open(config, "w") as out:
        json.dump({"model": folder, "work": work, "calibration": {"files": [os.path.join(folder, "ids.npy")], "sequences": args.sequences,
                                                                  "length": args.length},
                   "compression": {"method": "hc-smoe"}, "device": {"dtype": args.dtype, "threads": threads}}, out)
    done = subprocess.run(["mpirun", "-np", str(ranks), program, "collect", config, *arguments], env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    run = json.load(open(os.path.join(work, "run.json")))
    return run["tokens_per_second"], run["experts_pass"]["gflops"], run["gflops"]


with tempfile.TemporaryDirectory() as parent:
    folder = os.path.join(parent, "model")
    os.mkdir(folder)
    make_checkpoint(folder, D, E, F, L, dtype, args.sequences, args.length)
    if args.processor_time:
        bench = [os.path.join(os.path.dirname(program), "bench_statistics_pass"), folder, args.sequences, args.length, args.dtype, args.repeats]
        raise SystemExit(subprocess.run([str(part) for part in bench], env=dict(environment(), OMP_NUM_THREADS="1")).returncode)
    if args.each:
        recipes = {"none": ["method=f-prune"], "output_sum": ["method=hc-smoe"], "token_output_gram": ["method=o-prune"],
                   "output_cka": ["method=dek"], "weight_gram": ["feature=weight"], "weight_cka": ["feature=weight_cka"], "all": ["--all"]}
        rates = {name: [] for name in recipes}
        for _ in range(args.repeats):
            for name, (setting,) in recipes.items():
                arguments = [setting] if setting == "--all" else ["--set", f"compression.{setting}"]
                rates[name].append(collect(folder, 1, 2, *arguments)[0])
        print(f"D={D} E={E} F={F} {args.dtype}, {L} layers, {args.sequences} x {args.length} tokens, 2 threads, medians of {args.repeats}")
        without = statistics.median(rates["none"])
        for name, found in rates.items():
            rate = statistics.median(found)
            layer_ms = 1e3 * args.sequences * args.length * (1 / rate - 1 / without) / L
            print(f"{name:18}{rate:9.0f} tokens/s" + ("" if name == "none" else f"   {layer_ms:8.0f} ms a layer more"))
        raise SystemExit
    rows = []
    for _ in range(args.repeats):
        before = product_rate()
        one = collect(folder, 1, 2)
        between = product_rate()
        two = collect(folder, 2, 1)
        after = product_rate()
        rows.append((one[0], one[1], one[1] / ((before + between) / 2), two[1], two[1] / one[1], two[1] / ((between + after) / 2), between))
    median = [statistics.median(column) for column in zip(*rows)]
    print(f"D={D} E={E} F={F} {args.dtype}, {L} layers, {args.sequences} x {args.length} tokens, medians of {args.repeats}")
    print(f"products alone, 2 threads   {median[6]:8.1f} GFLOP/s")
    print(f"1 rank x 2 threads          {median[1]:8.1f} GFLOP/s  {median[0]:9.1f} tokens/s  {median[2]:.2f} of the products alone")
    print(f"2 ranks x 1 thread          {median[3]:8.1f} GFLOP/s  {median[4]:.2f} of 1 rank x 2 threads  {median[5]:.2f} of the products alone")
    print("ratios of each repeat       ", " ".join(f"{r[2]:.2f}/{r[4]:.2f}" for r in rows))
