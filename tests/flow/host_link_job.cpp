// hcsmoe_dist on devices that are memory of the host (support/host_link.h): weights come over the link, as on GPUs, and the computation is
// the CPU's; HOST_LINK_DEVICE: it is that of devices, on the device of host_device.h. HOST_LINK_FAILS=N: the link of the last rank fails at
// its N-th collective. For tests/flow/test_host_link.py.

#include <mpi.h>

#include <cstdlib>

#include "config/command_line.h"
#include "hcsmoe/commands.h"
#include "hcsmoe/config.h"
#include "host_device.h"
#include "support/host_link.h"

int main(int argc, char** argv) {
  using namespace hcsmoe;
  CommandLine line;
  if (!read_command_line(argc, argv, true, line)) return 0;
  block_stop_signals();
  int provided = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  int exit_code = 0;
  {
    Ranks ranks(MPI_COMM_WORLD);
    Log log(ranks.rank(), ranks.is_root());
    const auto link = std::make_shared<HostLink>(std::getenv("HOST_LINK_DEVICE") ? host_device : c10::Device(c10::kCPU));
    link->copy_takes = std::chrono::milliseconds(1);
    if (const char* number = std::getenv("HOST_LINK_FAILS"); number && ranks.rank() == ranks.size() - 1)
      link->async_error_at = std::atoi(number);
    ranks.use_device(link);
    try {
      StopRequest stop(ranks.rank(), ranks.local_processes(), 0);
      const auto trace = start_trace(line.trace, ranks);
      ranks.use_trace(trace.get());
      run_command(line, read_config(line.config, line.overrides, line.command), ranks, log, trace.get(), stop);
      write_trace(trace.get(), line.trace, ranks);
      ranks.use_trace(nullptr);
    } catch (const Error& error) {
      log.error(error.what());
      exit_code = static_cast<int>(error.exit_code());
      if (!error.collective()) MPI_Abort(MPI_COMM_WORLD, exit_code);
    }
  }
  MPI_Finalize();
  return exit_code;
}
