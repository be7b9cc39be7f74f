#!/usr/bin/env bash
# The optional stage: clients from pip, each in an environment of its own, and their logits of our output folders.
# usage: tests/clients/run.sh [FOLDER]   (environments are made there once; default: .deps/clients)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/.deps/clients}
mkdir -p "$folder"
clients=()
for version in 4 5; do
  python=$folder/transformers$version/bin/python
  if ! "$python" -c 'import transformers, torch' 2>/dev/null; then
    python3 -m venv --clear "$folder/transformers$version"
    "$python" -m pip install --quiet --disable-pip-version-check torch "transformers>=$version,<$((version + 1))"
  fi
  clients+=("transformers$version=$python")
done
source "$root/launch/mpi_environment.sh"
HCSMOE_CLIENTS="${clients[*]}" "$root/.deps/python/bin/python" -m pytest -q -s "$root/tests/clients"
