# Sourced by quickstart.sh and tests/run.sh: Open MPI on one machine of any kind (a laptop, a container, a virtual machine with one core).
# A run on a real cluster needs none of this.

# Inside a container one is root, which mpirun refuses by default.
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
# More ranks than cores are allowed; waiting ranks then leave their core to the others.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
# Two ranks would be bound to one core each, and all threads of a rank would share it.
export OMPI_MCA_hwloc_base_binding_policy=none
# Containers may forbid one process to read another's memory; messages go through shared memory instead.
export OMPI_MCA_btl_vader_single_copy_mechanism=none
# Threads that wait sleep instead of spinning on cores that others need.
export OMP_WAIT_POLICY=passive
