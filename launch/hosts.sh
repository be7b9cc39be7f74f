#!/usr/bin/env bash
# Runs hcsmoe_dist on several hosts without a scheduler: mpirun over ssh. A host that disappears ends the job on all others within 15 s.
# usage: launch/hosts.sh HOSTFILE [COMMAND] CONFIG [OPTION ...]
#   HOSTFILE: a line `NAME slots=RANKS` for each host. This folder, the model and the output must have the same path on all of them (a
#   shared file system), and ssh must reach them without a password. What follows HOSTFILE is what hcsmoe_dist takes.
# environment:
#   HCSMOE_PROGRAM   the program (default: build-cuda/hcsmoe_dist where that is built, else build/hcsmoe_dist)
#   OMPI_MCA_...     any setting of Open MPI; several networks: OMPI_MCA_btl_tcp_if_include=NAME and OMPI_MCA_oob_tcp_if_include=NAME
# exit code: that of hcsmoe_dist. 75: it was told to stop (SIGTERM or SIGUSR1 to this process) and has saved; the same call goes on.
set -euo pipefail

(($# >= 2)) || {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}
hostfile=$1
shift
[[ -r $hostfile ]] || {
  printf 'hosts: no host file %s\n' "$hostfile" >&2
  exit 2
}

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mpi_hosts=several
source "$launch/mpi_environment.sh"
source "$launch/program.sh"
mpirun --hostfile "$hostfile" -x OMP_WAIT_POLICY "$program" "$@" &
mpirun=$!
# mpirun hands SIGUSR1 on to the ranks, which save and leave. On SIGTERM it would kill them a second later.
trap 'kill -USR1 "$mpirun" 2>/dev/null || true' TERM USR1
trap 'kill -INT "$mpirun" 2>/dev/null || true' INT
code=0
wait "$mpirun" || code=$?
while kill -0 "$mpirun" 2>/dev/null; do  # a signal ended `wait`, not mpirun
  code=0
  wait "$mpirun" || code=$?
done
exit "$code"
