# Sourced by the launchers: sets `program` to the hcsmoe_dist to run, $HCSMOE_PROGRAM or what is built here.
program=${HCSMOE_PROGRAM:-}
if [[ -z $program ]]; then
  repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  for program in "$repository/build-cuda/hcsmoe_dist" "$repository/build/hcsmoe_dist"; do
    [[ ! -x $program ]] || break
  done
fi
[[ -x $program ]] || {
  printf '%s is not there: launch/build.sh makes it, HCSMOE_PROGRAM=FILE names another\n' "$program" >&2
  exit 2
}
