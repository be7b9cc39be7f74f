#!/usr/bin/env bash
# Brings what is missing on a Debian or Ubuntu machine and builds build/hcsmoe_dist. Can be called again at any time: what is there is kept.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/build.sh [--tests] [--preset NAME | --ci] [--no-apt] [--packages-only | --libraries-only]
  --tests          also install what the tests need, and build them
  --preset NAME    a configure preset of CMakePresets.json (default: cpu, which builds in build/; cuda: for GPUs, in build-cuda/)
  --ci             the preset cpu with warnings as errors, in build-ci/
  --no-apt         do not look for Debian packages (compilers and libraries come from modules, Spack, ...)
  --packages-only  stop after the Debian packages
  --libraries-only stop after libtorch
environment:
  HCSMOE_TORCH              a folder with include/ and lib/ of libtorch to use (an installed Python package torch is one): nothing is downloaded
  HCSMOE_TORCH_REQUIREMENT  what pip is asked for otherwise (default: torch==2.13.0); pip's own settings say from where
END
}

say() { printf 'build: %s\n' "$*" >&2; }
fail() {
  say "$1"
  exit "${2:-1}"
}

tests=0 apt=1 packages_only=0 libraries_only=0 preset=cpu build='' strict=()
while (($#)); do
  case $1 in
    --tests) tests=1 ;;
    --preset)
      (($# > 1)) || fail "--preset needs a name" 2
      preset=$2 build='' strict=()
      shift
      ;;
    --ci) preset=cpu build=build-ci strict=(-D CMAKE_COMPILE_WARNING_AS_ERROR=ON) ;;
    --no-apt) apt=0 ;;
    --packages-only) packages_only=1 ;;
    --libraries-only) libraries_only=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      fail "unknown argument: $1" 2
      ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
torch_requirement=${HCSMOE_TORCH_REQUIREMENT:-torch==2.13.0}

packages=(g++ cmake ninja-build pkg-config libopenmpi-dev openmpi-bin libhdf5-dev libyaml-cpp-dev nlohmann-json3-dev libcli11-dev
  libspdlog-dev libpcre2-dev libicu-dev zlib1g-dev libxxhash-dev liblbfgs-dev)
test_packages=(libgtest-dev libbenchmark-dev)

# Debian packages that are not installed. Python may come from elsewhere, so there the ability counts and not the package.
missing_packages() {
  local wanted=("${packages[@]}") name
  ((!tests)) || wanted+=("${test_packages[@]}")
  for name in "${wanted[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || echo "$name"
  done
  if ! command -v python3 >/dev/null; then echo python3; fi
  if [[ -z ${HCSMOE_TORCH:-} ]] && ! python3 -m pip --version &>/dev/null; then echo python3-pip; fi
  if ((tests)) && ! python3 -c 'import ensurepip, venv' &>/dev/null; then echo python3-venv; fi
}

install_packages() {
  local missing as_root=()
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]})) || return 0
  if ((EUID != 0)); then
    if ! sudo -n true 2>/dev/null; then
      say "packages are missing, and installing them needs root. Please ask the administrator for:"
      printf '\n    apt-get install --no-install-recommends %s\n\n' "${missing[*]}" >&2
      fail "(then call this again; if compilers and libraries come from elsewhere, use --no-apt)" 2
    fi
    as_root=(sudo -n)
  fi
  say "installing ${#missing[@]} packages: ${missing[*]}"
  local get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
  "${get[@]}" update >&2 || say "apt-get update failed; trying with the package lists that are there"
  "${get[@]}" install --no-install-recommends "${missing[@]}" >&2 ||
    fail "apt-get could not install the packages (its messages are above). Is the network reachable, and /etc/apt/sources.list right?" 2
}

# A browser for the tests of the report's page, where the distribution has one as a package; they are skipped without.
install_browser() {
  local name as_root=()
  for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    ! command -v "$name" >/dev/null || return 0
  done
  ((EUID == 0)) || as_root=(sudo -n)
  if apt-cache show chromium-headless-shell &>/dev/null; then
    say "installing chromium-headless-shell"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
      chromium-headless-shell >&2 && return 0
  fi
  say "no Chromium: the tests of the report's page in a browser will be skipped"
}

if ((apt)); then
  if command -v dpkg-query >/dev/null; then
    install_packages
    ((!tests)) || install_browser
  else
    say "no Debian package manager here; needed are the equivalents of: ${packages[*]}"
  fi
fi

((!packages_only)) || exit 0

mkdir -p .deps
exec 9>.deps/lock
flock -n 9 || { say "another build is running in this folder; waiting for it" && flock 9; }

# libtorch, and the CMake argument that says where it is.
if [[ -n ${HCSMOE_TORCH:-} ]]; then
  for file in include/ATen/core/Tensor.h lib/libtorch_cpu.so lib/libc10.so; do
    [[ -f $HCSMOE_TORCH/$file ]] || fail "HCSMOE_TORCH=$HCSMOE_TORCH holds no $file: it must be a libtorch folder, or a Python package torch" 2
  done
  torch_root=(-D "Torch_ROOT=$(realpath "$HCSMOE_TORCH")")
else
  torch_root=(-U Torch_ROOT)
  if [[ $preset == cuda ]]; then
    launch/fetch_cuda.sh .deps/cuda-torch --torch
    torch_root=()
  elif [[ $(head -n 1 .deps/libtorch/installed.txt 2>/dev/null) != "$torch_requirement" ]]; then
    python3 launch/fetch_libtorch.py "$torch_requirement" .deps/libtorch
  fi
fi

((!libraries_only)) || exit 0

# A fresh clone finds in ccache what another one compiled.
export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$PWD} CCACHE_NOHASHDIR=${CCACHE_NOHASHDIR:-1}

# Jobs: one a core, but no more than memory allows (a translation unit takes up to 1 GB).
if [[ -z ${CMAKE_BUILD_PARALLEL_LEVEL:-} ]]; then
  memory_gb=$(awk '/^MemAvailable:/ {print int($2 / 1e6)}' /proc/meminfo)
  jobs=$(nproc)
  export CMAKE_BUILD_PARALLEL_LEVEL=$((memory_gb < 1 ? 1 : memory_gb < jobs ? memory_gb : jobs))
fi

log=.deps/configure.log
[[ -n $build ]] || build=build$([[ $preset == cpu ]] || printf -- '-%s' "$preset")
if ! cmake --preset "$preset" -B "$build" "${strict[@]}" "${torch_root[@]}" &>"$log"; then
  cat "$log" >&2
  fail "CMake could not configure the build (its messages are above)"
fi
target=(--target hcsmoe_dist)
((!tests)) || target=()
cmake --build "$build" "${target[@]}" >&2 9>&-
