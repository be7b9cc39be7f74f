# Sourced by the sbatch scripts with the arguments of the job: runs hcsmoe_dist on the ranks that Slurm gave. When it was told to stop and
# has saved (exit code 75), the job is put back into the queue and goes on from there when its turn comes again.
# environment of sbatch:
#   HCSMOE_PROGRAM   the program (default: build-cuda/hcsmoe_dist where that is built, else build/hcsmoe_dist)
#   HCSMOE_IMAGE     an Apptainer image to run it in instead; APPTAINER_BIND names folders that it shall see
#   HCSMOE_RETRIES   how often a job that failed for no fault of its user is started again (default: 2)
#   SLURM_MPI_TYPE   how Slurm starts ranks of MPI (default: pmix; `srun --mpi=list` says what there is)
set -euo pipefail

say() { printf 'slurm_job: %s\n' "$*" >&2; }
(($#)) || {
  say "usage: sbatch launch/${SLURM_JOB_NAME:-slurm}.sbatch [COMMAND] CONFIG [OPTION ...]"
  exit 2
}

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mpi_hosts=several
source "$launch/mpi_environment.sh"
if [[ -n ${HCSMOE_IMAGE:-} ]]; then
  command=(apptainer exec)
  [[ ! -e /dev/nvidiactl ]] || command+=(--nv)
  command+=("$HCSMOE_IMAGE" hcsmoe_dist)
else
  source "$launch/program.sh"
  command=("$program")
fi

export SLURM_MPI_TYPE=${SLURM_MPI_TYPE:-pmix}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not take it over from sbatch
say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_NTASKS ranks on $SLURM_JOB_NODELIST: ${command[*]} $*"

# The signals that say "save and leave" are for the ranks: srun and this script wait for them.
trap : USR1
code=0
# Ranks that leave do so together; one that is gone alone takes the others with it after 10 s.
srun --kill-on-bad-exit=0 --wait=10 "${command[@]}" "$@" || code=$?

# Back into the queue. A failure may be that of a node, which Slurm notices late or never, so it is tried again, a few times in all: the
# job's comment counts them.
again() {
  if scontrol requeue "$SLURM_JOB_ID"; then
    say "$1; the job is back in the queue"
  else
    say "$1, and Slurm does not take the job back; submit the same command to go on"
  fi
}
case $code in
  0 | 2) ;;  # done, or a mistake that only the user can mend
  75) again "saved" ;;
  *)
    failures=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%k | sed -n 's/^failures: \([0-9]*\)$/\1/p')
    failures=$((${failures:-0} + 1))
    if ((failures <= ${HCSMOE_RETRIES:-2})) && scontrol update "JobId=$SLURM_JOB_ID" "Comment=failures: $failures"; then
      again "failed with code $code"
    fi
    ;;
esac
exit "$code"
