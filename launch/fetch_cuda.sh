#!/usr/bin/env bash
# Brings what a build with CUDA needs out of pip's wheels into a folder: NCCL and the CUDA runtime with their headers, and with --torch also
# libtorch with CUDA and all libraries that it is linked with. What is there already is kept.
# usage: launch/fetch_cuda.sh FOLDER [--torch]      253 MB on the disk, with --torch 4.5 GB
set -euo pipefail

folder=${1:?fetch_cuda.sh needs a folder}
# The versions that torch 2.13.0 pins, and the headers that it does not ask for.
wheels=(nvidia-nccl-cu13==2.29.7 nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85)
dependencies=(--no-deps)
if [[ ${2:-} == --torch ]]; then
  wheels+=("${HCSMOE_TORCH_REQUIREMENT:-torch===2.13.0}")  # ===: not 2.13.0+cpu
  dependencies=()
fi

if [[ $(cat "$folder/installed.txt" 2>/dev/null) == "${wheels[*]}" ]]; then exit 0; fi
mkdir -p "$(dirname "$folder")"
partial=$(mktemp -d "$folder.partial-XXXXXX")
trap 'rm -rf "$partial"' EXIT
printf 'build: pip install %s\n' "${wheels[*]}" >&2
# pip's temporary files go where the space is.
mkdir "$partial/tmp"
TMPDIR=$partial/tmp python3 -m pip install --quiet --disable-pip-version-check --no-input --no-compile --only-binary=:all: \
  "${dependencies[@]}" --target "$partial/tree" "${wheels[@]}" >&2 || {
  printf 'build: pip could not install these (its messages are above). Is the network reachable, and is the disk large enough?\n' >&2
  exit 2
}
printf '%s\n' "${wheels[*]}" >"$partial/tree/installed.txt"
rm -rf "$folder"
mv "$partial/tree" "$folder"
