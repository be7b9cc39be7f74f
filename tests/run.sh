#!/usr/bin/env bash
# Does the set-up of the tests, builds everything and runs all tests: ctest (C++), then pytest (Python). Can be called again at any time.
# usage: tests/run.sh [--quick] [--preset NAME | --ci] [arguments of ctest ...]
#   --quick        leaves out what is labelled or marked `slow`
#   --preset NAME  a preset of CMakePresets.json (default: cpu)
#   --ci           the preset cpu with warnings as errors, in build-ci/
# With arguments of ctest (-R forward, -L unit, ...) only ctest runs.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
quick=0 build=$PWD/build kind=(--preset cpu)
while (($#)); do
  case $1 in
    --quick) quick=1 ;;
    --preset)
      kind=(--preset "${2:?--preset needs a name}")
      build=$PWD/build
      [[ $2 == cpu ]] || build+=-$2
      shift
      ;;
    --ci) kind=(--ci) build=$PWD/build-ci ;;
    *) break ;;
  esac
  shift
done

# The reference implementations, in a virtual environment of the project's own. It is made before the build, whose tests call its Python.
python=$PWD/.deps/python/bin/python
make_environment() {
  local stamp=.deps/python/requirements.sha256 hash
  hash=$(sha256sum <tests/requirements.txt)
  if [[ $(cat "$stamp" 2>/dev/null) == "$hash" ]] && "$python" -c '' 2>/dev/null; then return; fi
  printf 'tests: installing tests/requirements.txt in .deps/python\n' >&2
  "$python" -m pip --version &>/dev/null || python3 -m venv --clear .deps/python
  "$python" -m pip install --quiet --disable-pip-version-check --retries 10 -r tests/requirements.txt || {
    printf 'tests: pip could not install tests/requirements.txt (its messages are above)\n' >&2
    exit 2
  }
  printf '%s\n' "$hash" >"$stamp"
}

launch/build.sh --tests "${kind[@]}" --packages-only
make_environment
launch/build.sh --tests "${kind[@]}"
source launch/mpi_environment.sh

export HCSMOE_BUILD=$build HCSMOE_PYTHON=$python
ctest_arguments=(--test-dir "$build" --output-on-failure --parallel "$(nproc)")
# Three files at a time: a test waits for ranks, or for Slurm and cut links.
pytest_arguments=(-q --durations=10 --numprocesses 3 --dist loadfile --no-loadscope-reorder tests)
if ((quick)); then
  ctest_arguments+=(--label-exclude slow)
  pytest_arguments+=(-m "not slow")
fi

# Runs a command with its output on the terminal and in a log; its status decides that of the whole.
status=0
logged() {
  local log=$1
  shift
  "$@" 2>&1 | tee "$log" || status=1
}
logged "$build/ctest.log" ctest "${ctest_arguments[@]}" "$@"
summary=("ctest:  $(grep -E 'tests passed|No tests were found' "$build/ctest.log" | tail -n 1)")
if (($# == 0)); then
  logged "$build/pytest.log" "$python" -m pytest "${pytest_arguments[@]}"
  summary+=("pytest: $(tail -n 1 "$build/pytest.log")")
fi
printf '\n'
printf '%s\n' "${summary[@]}"
((status == 0)) || printf 'FAILED: the logs are %s/ctest.log and pytest.log\n' "$build"
exit "$status"
