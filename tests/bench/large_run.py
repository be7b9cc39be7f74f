#!/usr/bin/env python3
"""A published model's true shapes through the program: time, memory of all ranks together, and where the time goes.

    HCSMOE_BUILD=build tests/bench/large_run.py qwen1.5-moe FOLDER [--command run] [--layers N] [--ranks 2] [--sequences 2 --length 512] [--set key=value ...]

FOLDER keeps the sparse checkpoint (large_checkpoint.py) for the next time. The output is measured and deleted: what is not a hole there takes
disk, 15 GB for 30 of 60 experts. Memory is RssAnon, what the process holds itself: mapped weights are the page cache's. Exit code 1 if the
ranks together ever hold more than --limit.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time

from large_checkpoint import MODELS, make_large_checkpoint
from random_checkpoint import environment
from rank_memory import wait_and_watch
from trace_table import print_table

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", choices=MODELS)
parser.add_argument("folder")
parser.add_argument("--command", default="run", choices=("run", "collect"))
parser.add_argument("--layers", type=int, help="fewer than the model has: memory does not depend on their number")
parser.add_argument("--ranks", type=int, default=2)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--sequences", type=int, default=2)
parser.add_argument("--length", type=int, default=512)
parser.add_argument("--experts", default="0.5")
parser.add_argument("--limit", type=float, default=6, help="GB of all ranks together")
parser.add_argument("--set", action="append", default=[], metavar="key=value")
args = parser.parse_args()
name, config = args.model, MODELS[args.model]
if args.layers:
    name, config = f"{name}.{args.layers}", config | {"num_hidden_layers": args.layers}
folder, model = os.path.abspath(args.folder), os.path.join(os.path.abspath(args.folder), name)
if not os.path.exists(os.path.join(model, "config.json")):
    shutil.rmtree(model, ignore_errors=True)
    make_large_checkpoint(model, config)
run = os.path.join(folder, name + ".run")
shutil.rmtree(run, ignore_errors=True)
os.makedirs(run)
job = {"model": model, "output": os.path.join(run, "output"), "work": os.path.join(run, "work"),
       "calibration": {"files": [os.path.join(model, "ids.npy")], "sequences": args.sequences, "length": args.length},
       "compression": {"method": "hc-smoe", "experts": json.loads(args.experts)}, "device": {"threads": args.threads}}
with open(os.path.join(run, "config.yaml"), "w") as out:
    json.dump(job, out)
program = os.path.join(os.environ.get("HCSMOE_BUILD", "build"), "hcsmoe_dist")
command = ["mpirun", "-np", str(args.ranks), program, args.command, os.path.join(run, "config.yaml"), "--trace", os.path.join(run, "trace.json")]
for override in args.set:
    command += ["--set", override]
started = time.monotonic()
process = subprocess.Popen(command, env=environment())
of_each, of_all = wait_and_watch(process)
if process.returncode:
    raise SystemExit(process.returncode)
print(f"\n{name}, {args.command}, {args.ranks} rank(s) x {args.threads} thread(s), {args.sequences} x {args.length} tokens: "
      f"{time.monotonic() - started:.0f} s")
print(f"RssAnon: ranks {', '.join(f'{held / 1e9:.2f}' for held in of_each.values())} GB, together at most {of_all / 1e9:.2f} GB")
print_table(os.path.join(run, "trace.json"))
if args.command == "run":
    files = [os.stat(os.path.join(job["output"], file)) for file in os.listdir(job["output"]) if file.endswith(".safetensors")]
    print(f"output: {sum(file.st_size for file in files) / 1e9:.1f} GB, {sum(file.st_blocks * 512 for file in files) / 1e9:.1f} GB of them on disk")
    shutil.rmtree(job["output"])
shutil.rmtree(os.path.join(run, "work", "shards"), ignore_errors=True)
if of_all > args.limit * 1e9:
    sys.exit(f"the ranks together held more than {args.limit} GB")
