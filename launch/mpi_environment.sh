# Sourced by everything that starts mpirun or srun: settings of Open MPI. What is set already is kept.
#   source launch/mpi_environment.sh                       one machine of any kind (a laptop, a container, a virtual machine with one core)
#   mpi_hosts=several source launch/mpi_environment.sh     the hosts of a cluster

# Inside a container one is root, which mpirun refuses by default.
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
# Two ranks would be bound to one core each, and all threads of a rank would share it.
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}
# Threads that wait sleep instead of spinning on cores that others need.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

if [[ ${mpi_hosts:-one} == several ]]; then
  # A host that says nothing for 3 s is asked every 2 s, and is gone after 3 questions: mpirun then ends the job on all others. The
  # defaults take 8 minutes.
  export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-3}
  export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-2}
  export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-3}
else
  # More ranks than cores are allowed; waiting ranks then leave their core to the others.
  export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}
  export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
  # Containers may forbid one process to read another's memory; messages go through shared memory instead.
  export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
fi
