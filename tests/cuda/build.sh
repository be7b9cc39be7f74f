#!/usr/bin/env bash
# Checks the CUDA half where there is no GPU: compiles it and links the program with it against NCCL and the CUDA runtime out of pip's wheels
# (kept in .deps/cuda), starts that program, and sees it refuse `device.type: cuda` with a hint. Where there is a GPU, it is not refused, and
# only that is checked.
# usage: tests/cuda/build.sh [--libtorch | --whole]
#   --libtorch  then the same with libtorch with CUDA (4.5 GB, in .deps/cuda-torch) in place of the CPU's. Also without this option, if that
#               is there. The other objects are those of the CPU build: the headers must be the same.
#   --whole     instead compiles all of the preset `cuda`
# Ends with 77 where pip cannot bring what is needed. HCSMOE_BUILD: the folder of a finished build, whose other objects are linked (default:
# build/).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/mpi_environment.sh

fetch() { launch/fetch_cuda.sh "$@" || { printf 'tests/cuda: without NCCL and CUDA nothing can be checked: skipped\n' >&2; exit 77; }; }
fail() {
  printf 'tests/cuda: %s\n' "$1" >&2
  exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/config.yaml" <<END
model: $PWD/tests/data/demo/model
output: $work/output
calibration: {files: [$PWD/tests/data/demo/data/calibration.jsonl], sequences: 2, length: 16}
compression: {experts: 8}
END

# check PROGRAM LIBRARY ...: it is linked with these, starts, refuses a GPU, and does without one.
check() {
  local program=$1 library ranks status words
  for library in "${@:2}"; do
    readelf --dynamic --wide "$program" | grep -q "NEEDED.*$library" || fail "$program is not linked with $library"
  done
  "$program" --version
  for ranks in 1 2; do
    status=0
    mpirun -np "$ranks" "$program" "$work/config.yaml" --set device.type=cuda >"$work/log" 2>&1 || status=$?
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then continue; fi
    cat "$work/log"
    ((status == 2)) || fail "exit code $status instead of 2"
    for words in 'device.type is cuda, but this program sees no GPU' 'hint: .*nvidia-smi.*device.type: cpu'; do
      grep -q "$words" "$work/log" || fail "the message lacks: $words"
    done
    [[ ! -e $work/output ]] || fail 'there is an output'
  done
  # The same program without GPUs in its configuration.
  "$program" inspect "$work/config.yaml" >/dev/null
  printf 'tests/cuda: %s compiles, links, starts and refuses\n' "$program"
}

if [[ ${1:-} == --whole ]]; then
  fetch "$PWD/.deps/cuda-torch" --torch
  launch/build.sh --no-apt --preset cuda
  check "$PWD/build-cuda/hcsmoe_dist" libnccl libtorch_cuda
  exit
fi

build=$(realpath "${HCSMOE_BUILD:-build}")
# As the build compiles no_cuda.cpp and links hcsmoe_dist. The object comes before the libraries, so its open_device is the one taken.
compile=$(ninja -C "$build" -t commands src/libranks.a | grep -m1 /no_cuda.cpp) || true
[[ -n $compile ]] || { printf 'tests/cuda: %s is not a finished build (launch/build.sh)\n' "$build" >&2; exit 2; }
compile=$(sed -E 's# -M[DFT]( [^ ]+\.(o|d))?##g; s# -o [^ ]+##' <<<"$compile")
link=$(ninja -C "$build" -t commands hcsmoe_dist | tail -n 1)
link=${link#: && } link=${link% && :}

# build_with NAME NVIDIA: the object and the program of that name, with what lies in the folder of NVIDIA's wheels. LINK: the command.
build_with() {
  local name=$1 nvidia=$2 command=${LINK/-o hcsmoe_dist /$1.o -o hcsmoe_dist_$1 }
  (
    cd "$build"
    ${compile//no_cuda.cpp/cuda_link.cpp} -isystem "$nvidia/cu13/include" -isystem "$nvidia/nccl/include" -o "$name.o"
    $command "$nvidia/nccl/lib/libnccl.so.2" "$nvidia/cu13/lib/libcudart.so.13" "-Wl,-rpath,$nvidia/nccl/lib:$nvidia/cu13/lib"
  )
}

fetch "$PWD/.deps/cuda"
LINK=$link build_with cuda "$PWD/.deps/cuda/nvidia"
check "$build/hcsmoe_dist_cuda" libnccl

wheels=$PWD/.deps/cuda-torch
[[ ${1:-} == --libtorch || -e $wheels/installed.txt ]] || exit 0
fetch "$wheels" --torch
cpu=$(sed -nE 's#.* ([^ ]*)/lib/libtorch_cpu\.so.*#\1#p' <<<"$link")
for header in "$wheels"/torch/include/{ATen,c10,torch}; do
  [[ -d $cpu/include/${header##*/} && -d $header ]] || fail "no headers of libtorch in $cpu/include or $header"
  differing=$(diff -rq "$cpu/include/${header##*/}" "$header" | grep -v '^Only in' || true)
  [[ -z $differing ]] || fail "the libtorch of $build has other headers than the one with CUDA, so its objects do not fit: $(head -n 1 <<<"$differing")"
done
LINK="${link//"$cpu/lib"/"$wheels/torch/lib"} -Wl,--no-as-needed $wheels/torch/lib/libtorch_cuda.so $wheels/torch/lib/libc10_cuda.so -Wl,--as-needed" \
  build_with cuda_libtorch "$wheels/nvidia"
check "$build/hcsmoe_dist_cuda_libtorch" libnccl libtorch_cuda libc10_cuda
