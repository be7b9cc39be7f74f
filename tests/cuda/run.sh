#!/usr/bin/env bash
# Where there is a GPU: the main job on it, compared with the CPU (compare.py has the bounds). Needs build-cuda/ (launch/build.sh --preset
# cuda) and the Python of the tests (tests/run.sh). Without a GPU it says so and ends with 77.
# usage: tests/cuda/run.sh [RANKS]      RANKS: at most one a GPU (default: 1)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/mpi_environment.sh

if ! { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; then
  printf 'tests/cuda: no GPU here (nvidia-smi lists none): skipped\n' >&2
  exit 77
fi
program=build-cuda/hcsmoe_dist
[[ -x $program ]] || { printf 'tests/cuda: %s is not built: launch/build.sh --preset cuda; skipped\n' "$program" >&2; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/config.yaml" <<END
model: $PWD/tests/data/demo/model
output: $work/output
calibration: {files: [$PWD/tests/data/demo/data/calibration.jsonl], sequences: 16, length: 256}
compression: {method: hc-smoe, experts: 8}
END
for dtype in float32 bfloat16; do
  for device in cpu cuda; do
    mpirun -np "${1:-1}" "$program" "$work/config.yaml" --set device.type=$device --set device.dtype=$dtype --set output="$work/$device-$dtype"
  done
  "${HCSMOE_PYTHON:-.deps/python/bin/python}" tests/cuda/compare.py "$work/cpu-$dtype.work" "$work/cuda-$dtype.work" $dtype
done
