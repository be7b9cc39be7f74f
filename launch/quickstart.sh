#!/usr/bin/env bash
# Builds the program and compresses the small trained model of tests/data/demo from 16 to 8 experts a layer, on two ranks.
# Everything it makes is in quickstart/. Call it again at any time: where nothing changed it only shows the result again, else the compressed model
# is made anew, from statistics that are still valid.
# environment: HCSMOE_PROGRAM, a program that is built already; HCSMOE_QUICKSTART, another folder than quickstart/.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -n ${HCSMOE_PROGRAM:-} ]] || "$root/launch/build.sh"
source "$root/launch/mpi_environment.sh"

folder=${HCSMOE_QUICKSTART:-$root/quickstart}
demo=$root/tests/data/demo
program=${HCSMOE_PROGRAM:-$root/build/hcsmoe_dist}
name=${folder#"$root"/}
say() { printf '\n== %s\n' "$*"; }

mkdir -p "$folder"
cat >"$folder/config.yaml" <<END
model: "$demo/model"
output: compressed # beside this file
calibration:
  files: ["$demo/data/calibration.jsonl"]
  sequences: 64
  length: 256
compression:
  experts: 8
evaluation:
  perplexity: ["$demo/data/validation.jsonl"]
END

made_from=$(cat "$program" "$folder/config.yaml" "$demo"/model/* "$demo"/data/* | sha256sum)
if [[ -d $folder/compressed && $(cat "$folder/made_from.sha256" 2>/dev/null) == "$made_from" ]]; then
  say "$name/compressed is there, made by this program from these files (rm -r $name: the next call makes it anew)"
else
  if [[ -e $folder/compressed ]]; then
    say "removing $name/compressed of an earlier call"
    rm -r "$folder/compressed"
  fi
  say "mpirun -np 2 ${program#"$root"/} $name/config.yaml"
  mpirun -np 2 "$program" "$folder/config.yaml"
  echo "$made_from" >"$folder/made_from.sha256"
fi

# `run` has measured both models on evaluation.perplexity, and written what it measured to run.json. The image has no Python.
if command -v python3 >/dev/null; then
  python3 - "$demo/model" "$folder/compressed" "$folder/compressed.work/run.json" <<'END'
import json
import pathlib
import sys


def row(name, model, results):
    experts = json.loads((model / "config.json").read_text())["num_experts"]
    size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
    return f"{name:12}{experts:>16}{size / 1e6:>17.2f} MB{results[0]['perplexity']:>14.3f}"


original, compressed, run = map(pathlib.Path, sys.argv[1:])
measured = {entry["name"]: entry["perplexity"] for entry in json.loads(run.read_text())["evaluation"]["models"]}
print(f"\n{'':12}{'experts a layer':>16}{'checkpoint folder':>20}{'perplexity':>14}")
print(row("original", original, measured["original"]))
print(row("compressed", compressed, measured["compressed"]))
END
fi
printf '\nThe compressed model is in %s/compressed; its plan and statistics are in %s/compressed.work.\n' "$name" "$name"
