#pragma once
// The command line: [COMMAND] config.yaml and options. Read before MPI starts, so that --help and --version need no mpirun.

#include "hcsmoe/commands.h"

namespace hcsmoe {

/// Fills `line`. False: help or version was asked for and is printed (where `speaks`), so there is nothing to do.
/// Throws UserError, with the usage, where the arguments are wrong.
bool read_command_line(int argc, const char* const* argv, bool speaks, CommandLine& line);

/// Whether this process is the one that speaks, from what mpirun or srun set, before MPI_Init: all but ranks above 0.
bool speaks_before_mpi();

}  // namespace hcsmoe
