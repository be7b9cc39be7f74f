#!/usr/bin/env bash
# Kills runs at random moments, starts them again and compares the results: the last line is "50 faults, 50 resumed, 50 identical".
# usage: tests/faults/run.sh [FAULTS] [SEED]     after tests/run.sh has set up the machine once; default: 50 1
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/launch/mpi_environment.sh"
export HCSMOE_BUILD=${HCSMOE_BUILD:-$root/build} OMP_NUM_THREADS=1
exec "${HCSMOE_PYTHON:-$root/.deps/python/bin/python}" "$root/tests/faults/faults.py" "$@"
