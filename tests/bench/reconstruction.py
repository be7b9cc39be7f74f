#!/usr/bin/env python3
"""What the reconstruction of a layer takes, in units of the statistics pass over the same tokens in the same run.

    HCSMOE_BUILD=build tests/bench/reconstruction.py [--hidden 2048 --experts 60 --width 1408 --layers 1] [--dtype bfloat16] [--rounds 1 3]

Makes a random Qwen2-MoE checkpoint of these sizes whose experts come in pairs that are alike, and runs `run` on it with half of the experts and
reconstruction: full, for each type and number of rounds. The statistics pass is the time of the experts' pass in run.json (all experts on all
tokens); the steps are those of run.json's "reconstruction", all layers together. Ratios compare times of one run, because the machine's speed
drifts. The errors show whether the fits went on to the end: a step that does not help on held-out tokens ends early, and is cheaper.

    tests/bench/reconstruction.py --processor-time [--shapes qwen --divide 2] [--dtype bfloat16] [--rounds 1 3] [--rows frequency]

--processor-time: instead, one thread's processor time in one process (bench_reconstruction), in which other work on the machine counts for
little. --shapes qwen: Qwen1.5-MoE-A2.7B's D=2048 and F=1408 and the default 32 x 2048 tokens. --divide divides its 60 experts, 4 experts a
token and the shared expert's width, so that each expert's tokens and the shares stay as they are (of 15 experts 8 are kept). Attention is not
divided: "of its routed experts alone" leaves it out.
"""
import argparse
import json
import os
import subprocess
import tempfile

import torch

from random_checkpoint import environment, make_checkpoint

parser = argparse.ArgumentParser()
parser.add_argument("--hidden", type=int, default=256)
parser.add_argument("--experts", type=int, default=16)
parser.add_argument("--width", type=int, default=176)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--length", type=int, default=512)
parser.add_argument("--sequences", type=int, default=16)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--ranks", type=int, default=1)
parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=("bfloat16", "float32"))
parser.add_argument("--rounds", type=int, nargs="+", default=[1, 3])
parser.add_argument("--top-k", type=int, default=4)
parser.add_argument("--rows", choices=("frequency", "fitted"), default="fitted", help="compression.router")
parser.add_argument("--processor-time", action="store_true")
parser.add_argument("--shared", type=int, default=0, help="the shared expert's width; 0: an expert's")
parser.add_argument("--shapes", choices=("qwen",))
parser.add_argument("--divide", type=int, choices=(1, 2, 4), default=1)
args = parser.parse_args()
if args.shapes:
    args.hidden, args.width, args.layers, args.sequences, args.length = 2048, 1408, 1, 32, 2048
    args.experts, args.top_k, args.shared = 60 // args.divide, 4 // args.divide, 5632 // args.divide
program = os.path.join(os.environ.get("HCSMOE_BUILD", "build"), "hcsmoe_dist")


def run(parent, dtype, rounds):
    work = os.path.join(parent, f"{dtype}.{rounds}")
    job = {"model": os.path.join(parent, dtype), "output": work + ".output", "work": work,
           "calibration": {"files": [os.path.join(parent, dtype, "ids.npy")], "sequences": args.sequences, "length": args.length},
           "compression": {"method": "hc-smoe", "experts": 0.5, "router": args.rows, "reconstruction": "full", "rounds": rounds},
           "device": {"dtype": dtype, "threads": args.threads}}
    with open(work + ".yaml", "w") as out:
        json.dump(job, out)
    done = subprocess.run(["mpirun", "-np", str(args.ranks), program, "run", work + ".yaml"], env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.load(open(os.path.join(work, "run.json")))


def report(dtype, rounds, result):
    statistics = result["experts_pass"]["seconds"]
    steps = {}  # what -> seconds, all layers and rounds
    for layer in result["reconstruction"]:
        for step in layer["steps"]:
            steps[step["step"]] = steps.get(step["step"], 0) + step["seconds"]
    total = sum(steps.values())
    errors = ", ".join(f"{layer['start_error']:.3f} -> {layer['error']:.3f}" for layer in result["reconstruction"])
    peak = max(result["peak_memory_bytes"]) / 2**20
    print(f"{dtype}, {rounds} round{'s' if rounds > 1 else ''}: statistics pass {statistics:.2f} s ({result['experts_pass']['gflops']:.1f} GFLOP/s), "
          f"reconstruction {total:.2f} s = {total / statistics:.2f} of it; error {errors}; peak memory {peak:.0f} MiB")
    for what, seconds in steps.items():
        print(f"  {what:40}{seconds:9.2f} s {seconds / statistics:7.2f}")


print(f"D={args.hidden} E={args.experts} F={args.width} K={args.experts // 2}, {args.layers} layers, {args.sequences} x {args.length} tokens, "
      f"top {args.top_k}, {args.rows} rows, {args.ranks} rank(s) x {args.threads} thread(s)")
with tempfile.TemporaryDirectory() as parent:
    for dtype in args.dtype:
        os.mkdir(os.path.join(parent, dtype))
        make_checkpoint(os.path.join(parent, dtype), args.hidden, args.experts, args.width, args.layers, getattr(torch, dtype), args.sequences,
                        args.length, alike=args.experts // 2, top_k=args.top_k, shared=args.shared)
        if args.processor_time:
            bench = [os.path.join(os.path.dirname(program), "bench_reconstruction"), os.path.join(parent, dtype), args.sequences, args.length,
                     dtype, args.rows, *args.rounds]
            subprocess.run([str(part) for part in bench], env=dict(environment(), OMP_NUM_THREADS="1"), check=True)
            continue
        for rounds in args.rounds:
            report(dtype, rounds, run(parent, dtype, rounds))
