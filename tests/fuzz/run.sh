#!/usr/bin/env bash
# Builds the fuzz targets (build-fuzz/) and runs each of them, as many at a time as there are cores, at most two. A line for each is printed.
# usage: tests/fuzz/run.sh [--seconds N] [TARGET ...]
#   --seconds N   for each target (default 30)
#   TARGET        safetensors, yaml, ... (default: all)
# The exit status is 1 if one of them found something. The input that did it is then named, and `build-fuzz/fuzz_TARGET FILE` shows it again
# (with HCSMOE_FUZZ_SHOW=1 also what the parser says).
# What a run has found worth keeping is kept in build-fuzz/corpus/ for the next. 77: clang is not here and cannot be installed.
set -euo pipefail

seconds=30
while (($#)); do
  case $1 in
    --seconds)
      seconds=${2:?--seconds needs a number}
      shift
      ;;
    -*)
      sed -n '2,8s/^# //p' "$0" >&2
      exit 2
      ;;
    *) break ;;
  esac
  shift
done
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=build-fuzz

# clang with its runtime for sanitizers: any version from 14 on; where there is none, Debian's 14.
find_clang() {
  local candidate trial
  for candidate in ${HCSMOE_CLANG:-} clang++-14 clang++ clang++-15 clang++-16 clang++-17 clang++-18 clang++-19; do
    trial=$(mktemp -d)
    printf 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }\n' >"$trial/a.cpp"
    if "$candidate" -fsanitize=fuzzer,address,undefined -o "$trial/a" "$trial/a.cpp" &>/dev/null; then
      rm -r "$trial"
      clang=$candidate
      return 0
    fi
    rm -r "$trial"
  done
  return 1
}
if ! find_clang; then
  as_root=()
  ((EUID == 0)) || as_root=(sudo -n)
  printf 'fuzz: installing clang-14 and libclang-rt-14-dev\n' >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
    clang-14 libclang-rt-14-dev >&2 || true
  find_clang || {
    printf 'fuzz: skipped: no clang with libFuzzer here (Debian: clang-14 libclang-rt-14-dev)\n' >&2
    exit 77
  }
fi

export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$PWD} CCACHE_NOHASHDIR=${CCACHE_NOHASHDIR:-1}
mkdir -p "$build"
exec 9>"$build/lock"
flock 9
cmake -S tests/fuzz -B "$build" -G Ninja -D CMAKE_BUILD_TYPE=None -D CMAKE_C_COMPILER="${clang/++/}" -D CMAKE_CXX_COMPILER="$clang" \
  ${HCSMOE_TORCH:+-D Torch_ROOT="$HCSMOE_TORCH"} >"$build/configure.log" || {
  cat "$build/configure.log" >&2
  exit 1
}
if (($#)); then
  targets=("$@")
else
  mapfile -t targets < <(for source in tests/fuzz/fuzz_*.cpp; do basename "$source" .cpp; done | sed 's/^fuzz_//')
fi
cmake --build "$build" --target "${targets[@]/#/fuzz_}" >"$build/build.log" || {
  cat "$build/build.log" >&2
  exit 1
}

# libstdc++'s containers are compiled into libtorch without annotations; MPI and HDF5 keep what they allocate until the end.
export ASAN_OPTIONS=detect_leaks=0:detect_container_overflow=0:allocator_may_return_null=0
export UBSAN_OPTIONS=print_stacktrace=1
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
HCSMOE_FUZZ_FOLDER=$(mktemp -d "$([[ -w /dev/shm ]] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/hcsmoe-fuzz-XXXXXX")
export HCSMOE_FUZZ_FOLDER
trap 'rm -rf "$HCSMOE_FUZZ_FOLDER"' EXIT
# A line: what was executed, how many edges are covered at the end and at the start, and how it ended.
fuzz() {
  local target=$1 log=$build/$1.log corpus=$build/corpus/$1 found=$build/found/$1 status=0 result=passed
  mkdir -p "$corpus" "$found"
  "$build/fuzz_$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2560 -malloc_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="$found/" "$corpus" "tests/fuzz/seeds/$target" &>"$log" 9>&- || status=$?
  ((status == 0)) || result="FAILED: $(grep -oE "$found/[a-z]+-[0-9a-f]+" "$log" | tail -n 1) (log: $log)"
  printf '%-13s %9s executions, coverage %5s (%s at the start): %s\n' "$target" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
    "$(grep -oE 'cov: [0-9]+' "$log" | tail -n 1 | cut -d ' ' -f 2)" "$(grep -E 'INITED' "$log" | grep -oE 'cov: [0-9]+' | cut -d ' ' -f 2)" "$result"
  return "$status"
}

status=0 running=0
for target in "${targets[@]}"; do
  fuzz "$target" &
  ((++running < 2 && running < $(nproc))) && continue
  wait -n || status=1
  running=$((running - 1))
done
while ((running-- > 0)); do wait -n || status=1; done
((status == 0)) || printf 'FAILED: an input is shown by %s/fuzz_TARGET FILE\n' "$build"
exit "$status"
