#!/usr/bin/env bash
# The optional stage: clients from pip, each in an environment of its own, and what they make of our output folders (docs/clients.md).
# usage: tests/clients/run.sh [FOLDER] [arguments of pytest ...]   (environments are made in FOLDER once; default: .deps/clients)
# Needs what tests/run.sh makes: the program, its test tools and .deps/python. A client that pip cannot install is named, and left out.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/.deps/clients}
mkdir -p "$folder"
folder=$(realpath "$folder")
torch=$(grep '^torch==' "$root/tests/requirements.txt")
clients=() missing=()

# environment NAME MODULES REQUIREMENT ...: makes FOLDER/NAME, unless MODULES can be imported there.
environment() {
  local name=$1 modules=$2 python=$folder/$1/bin/python
  shift 2
  if ! "$python" -c "import $modules" &>/dev/null; then
    printf '%s: installing %s\n' "$name" "$*" >&2
    python3 -m venv --clear "$folder/$name"
    if ! "$python" -m pip install --quiet --disable-pip-version-check --retries 10 "$@"; then
      missing+=("$name")
      return
    fi
  fi
  clients+=("$name=$python")
}
environment transformers4 torch,transformers "$torch" 'transformers>=4.57,<5'
environment transformers5 torch,transformers "$torch" 'transformers>=5,<6'
environment mlx mlx_lm 'mlx[cpu]' mlx-lm
environment lm_eval torch,lm_eval,accelerate "$torch" 'transformers>=4.57,<5' 'lm_eval[hf]>=0.4.13'
environment llama_cpp torch,transformers,xllamacpp "$torch" 'transformers>=4.57,<5' sentencepiece pyyaml xllamacpp

# llama.cpp's converter comes in no wheel; the source distribution of llama-cpp-python holds llama.cpp's sources.
sources=$folder/llama_cpp_sources
if [[ " ${clients[*]} " == *" llama_cpp="* && ! -f $sources/convert_hf_to_gguf.py ]]; then
  mkdir -p "$sources.partial"
  if python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python --dest "$sources.partial" llama-cpp-python; then
    archive=$(ls "$sources.partial"/llama_cpp_python-*.tar.gz)
    tar --extract --file "$archive" --directory "$sources.partial" --strip-components 3 --wildcards '*/vendor/llama.cpp/*'
    rm -rf "$sources" "$archive"
    mv "$sources.partial" "$sources"
  else
    missing+=("llama.cpp's converter")
  fi
fi

source "$root/launch/mpi_environment.sh"
status=0
HCSMOE_CLIENTS="${clients[*]}" HCSMOE_LLAMA_CPP=$sources "$root/.deps/python/bin/python" -m pytest -q -s "$root/tests/clients" "${@:2}" || status=$?
for name in "${missing[@]}"; do printf 'not tested: %s, which pip could not install (its messages are above)\n' "$name"; done
exit "$status"
