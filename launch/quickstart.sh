#!/usr/bin/env bash
# Builds the program, compresses the small trained model of tests/data/demo from 16 to 8 experts a layer on two ranks, and measures it beside the
# original, the paper's merge and the best published pruning. Everything it makes is in quickstart/. Call it again at any time: where nothing changed
# it only shows the result again, else all is made anew.
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

# Enough of the texts and questions to see what there is to see.
mkdir -p "$folder/tasks"
head -n 400 "$demo/data/validation.jsonl" >"$folder/validation.jsonl"
for file in "$demo"/tasks/*.jsonl; do head -n 40 "$file" >"$folder/tasks/${file##*/}"; done
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
  perplexity: ["$folder/validation.jsonl"]
  tasks: [$(printf '"%s", ' "$folder"/tasks/*.jsonl | sed 's/, $//')]
END

made_from=$(cat "$program" "$folder/config.yaml" "$demo"/model/* "$demo"/data/* | sha256sum)
if [[ -f $folder/published/evaluation.json && $(cat "$folder/made_from.sha256" 2>/dev/null) == "$made_from" ]]; then
  say "$name/compressed is there, made by this program from these files (rm -r $name: the next call makes it anew)"
else
  if [[ -e $folder/compressed ]]; then
    say "removing $name/compressed of an earlier call"
    rm -r "$folder/compressed" "$folder/compressed.work"
  fi
  say "mpirun -np 2 ${program#"$root"/} $name/config.yaml"
  mpirun -np 2 "$program" "$folder/config.yaml"

  say "beside it: the paper's merge (hc-smoe) and the best published pruning (s-prune), planned from the same statistics and measured without exporting"
  rm -rf "$folder/published"
  mkdir "$folder/published"
  cp -r "$folder/compressed.work/statistics" "$folder/published"
  published=(--set "output=null" --set "work=$folder/published")
  for method in hc-smoe s-prune; do
    "$program" plan "$folder/config.yaml" "${published[@]}" --set "compression.method=$method"
    mv "$folder/published/plan.json" "$folder/published/$method.json"
  done
  mpirun -np 2 "$program" evaluate "$folder/config.yaml" "${published[@]}" --plan "$folder/published/hc-smoe.json" --plan "$folder/published/s-prune.json"
  echo "$made_from" >"$folder/made_from.sha256"
fi

# The image has no Python; what the table holds has been printed above.
if command -v python3 >/dev/null; then
  python3 - "$folder/compressed.work/evaluation.json" "$folder/published/evaluation.json" <<'END'
import json
import sys

ours, published = (json.load(open(file))["models"] for file in sys.argv[1:])
names = ["original", "hcsmoe_dist", "hc-smoe as published", "s-prune as published"]
print(f"\n{'':22}{'experts':>8}{'weights':>10}{'perplexity':>16}{'KL (nats)':>18}{'accuracy':>18}")
for name, model in zip(names, [*ours, *published[1:]]):
    text, accuracy = model["perplexity"][0], model["mean"]["acc"]
    divergence = text.get("kl_divergence")
    distance = f"{divergence['value']:.3f} ± {divergence['standard_error']:.3f}" if divergence else "-"
    print(
        f"{name:22}{model['experts']:>8}{model['bytes'] / 1e6:>7.2f} MB{text['perplexity']:>9.2f} ± {text['perplexity_standard_error']:.2f}"
        f"{distance:>18}{accuracy['value']:>10.3f} ± {accuracy['standard_error']:.3f}"
    )
END
fi
printf '\nThe compressed model is in %s/compressed, with a report for people in report.html; its plan and statistics are in %s/compressed.work.\n' "$name" "$name"
