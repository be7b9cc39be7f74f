#!/usr/bin/env bash
# The entry point of the images: runs a command with the settings that Open MPI needs in a container.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/mpi_environment.sh"
exec "$@"
