#!/usr/bin/env bash
# Checks the CUDA half where there is no GPU: compiles it and links the program with it against NCCL and the CUDA runtime out of pip's wheels
# (kept in .deps/cuda), starts that program, and sees it refuse `device.type: cuda` with a hint. Where there is a GPU, it is not refused, and
# only that is checked.
# usage: tests/cuda/build.sh [--whole]
#   --whole   the preset `cuda` instead: the whole program against libtorch with CUDA (4.5 GB in .deps/cuda-torch)
# Ends with 77 where pip cannot bring them. HCSMOE_BUILD: the folder of a finished build, whose other objects are linked (default: build/).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/mpi_environment.sh

if [[ ${1:-} == --whole ]]; then
  launch/build.sh --no-apt --preset cuda
  program=$PWD/build-cuda/hcsmoe_dist
else
  build=$(realpath "${HCSMOE_BUILD:-build}")
  launch/fetch_cuda.sh "$PWD/.deps/cuda" || { printf 'tests/cuda: without NCCL and CUDA nothing can be checked: skipped\n' >&2; exit 77; }
  nvidia=$PWD/.deps/cuda/nvidia
  program=$build/hcsmoe_dist_cuda
  # As the build compiles no_cuda.cpp and links hcsmoe_dist. The object comes before the libraries, so its open_device is the one taken.
  compile=$(ninja -C "$build" -t commands src/libranks.a | grep -m1 /no_cuda.cpp) || true
  [[ -n $compile ]] || { printf 'tests/cuda: %s is not a finished build (launch/build.sh)\n' "$build" >&2; exit 2; }
  compile=$(sed -E 's# -M[DFT]( [^ ]+\.(o|d))?##g; s# -o [^ ]+##' <<<"$compile")
  cd "$build"
  ${compile//no_cuda.cpp/cuda_link.cpp} -isystem "$nvidia/cu13/include" -isystem "$nvidia/nccl/include" -o cuda_link.o
  link=$(ninja -t commands hcsmoe_dist | tail -n 1)
  link=${link#: && } link=${link% && :}
  link=${link/-o hcsmoe_dist /cuda_link.o -o hcsmoe_dist_cuda }
  $link "$nvidia/nccl/lib/libnccl.so.2" "$nvidia/cu13/lib/libcudart.so.13" "-Wl,-rpath,$nvidia/nccl/lib:$nvidia/cu13/lib"
  cd - >/dev/null
fi

readelf --dynamic --wide "$program" | grep -q 'NEEDED.*libnccl' || { printf 'tests/cuda: %s is not linked with NCCL\n' "$program" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/config.yaml" <<END
model: $PWD/tests/data/demo/model
output: $work/output
calibration: {files: [$PWD/tests/data/demo/data/calibration.jsonl], sequences: 2, length: 16}
compression: {experts: 8}
END
"$program" --version
for ranks in 1 2; do
  status=0
  mpirun -np "$ranks" "$program" "$work/config.yaml" --set device.type=cuda >"$work/log" 2>&1 || status=$?
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then continue; fi
  cat "$work/log"
  ((status == 2)) || { printf 'tests/cuda: exit code %s instead of 2\n' "$status" >&2; exit 1; }
  for words in 'device.type is cuda, but this program sees no GPU' 'hint: .*nvidia-smi.*device.type: cpu'; do
    grep -q "$words" "$work/log" || { printf 'tests/cuda: the message lacks: %s\n' "$words" >&2; exit 1; }
  done
  [[ ! -e $work/output ]] || { printf 'tests/cuda: there is an output\n' >&2; exit 1; }
done
# The same program without GPUs in its configuration.
"$program" inspect "$work/config.yaml" >/dev/null
printf 'tests/cuda: %s compiles, links, starts and refuses\n' "$program"
