// The flow of the program, and the only catch. Stages throw; here an error becomes a message and an exit code, on all ranks.

#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>

#include "config/command_line.h"
#include "hcsmoe/commands.h"
#include "hcsmoe/config.h"
#include "hcsmoe/device_link.h"
#include "hcsmoe/error.h"
#include "hcsmoe/log.h"
#include "hcsmoe/ranks.h"
#include "hcsmoe/stop.h"
#include "support/lost_pages.h"

namespace {

using namespace hcsmoe;

/// With --json: in place of the result.
void print_error(const std::string& what, int exit_code) {
  const nlohmann::ordered_json json = {{"error", what}, {"exit_code", exit_code}};
  std::printf("%s\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

/// An error that all ranks share ends them in order, and rank 0 prints it. One that a single rank met ends the others by force: they may
/// wait for that rank in a collective.
int report(const CommandLine& line, const Ranks& ranks, Log& log, StopRequest& stop, const std::string& what, ExitCode code,
           bool collective) {
  const int exit_code = static_cast<int>(code);
  if (!collective || ranks.is_root()) {
    code == ExitCode::interrupted ? log.warn(what) : log.error(what);
    if (line.json) print_error(what, exit_code);
  }
  if (!collective && ranks.size() > 1) {
    stop.failing(exit_code);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
  }
  return exit_code;
}

/// The trace of a run that failed, where all ranks are here to write it.
void keep_trace(const Trace* trace, const CommandLine& line, const Ranks& ranks, Log& log) {
  try {
    write_trace(trace, line.trace, ranks);
  } catch (const Error& error) {
    if (ranks.is_root()) log.warn(std::string("no trace: ") + error.what());
  }
}

int run(const CommandLine& line, const std::optional<UserError>& mistake, pid_t parent) {
  Ranks ranks(MPI_COMM_WORLD);
  Log log(ranks.rank(), ranks.is_root());
  StopRequest stop(ranks.rank(), ranks.local_processes(), ranks.size() > 1 ? parent : 0);
  report_lost_pages(ranks.rank(), ranks.size());
  std::unique_ptr<Trace> trace;
  try {
    if (mistake) throw CollectiveError(mistake->what(), mistake->exit_code());
    Config config;
    const auto read = [&] { config = read_config(line.config, line.overrides, line.command); };
    ranks.on_root(read);  // first there, so that a mistake is told once
    ranks.on_all(read);
    ranks.set_wait_limit(std::chrono::seconds(config.device.wait_limit));
    if (config.device.type == DeviceType::cuda && computes(line.command)) ranks.use_device(open_device(ranks));
    trace = start_trace(line.trace, ranks);
    ranks.use_trace(trace.get());
    run_command(line, config, ranks, log, trace.get(), stop);
    write_trace(trace.get(), line.trace, ranks);
    return static_cast<int>(ExitCode::success);
  } catch (const Error& error) {
    if (error.collective() || ranks.size() == 1) keep_trace(trace.get(), line, ranks, log);
    return report(line, ranks, log, stop, error.what(), error.exit_code(), error.collective());
  } catch (const std::bad_alloc&) {
    return report(line, ranks, log, stop, "out of memory", ExitCode::failure, false);
  } catch (const std::exception& error) {
    return report(line, ranks, log, stop, error.what(), ExitCode::failure, false);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const pid_t parent = getppid();
  block_stop_signals();
  CommandLine line;
  std::optional<UserError> mistake;  // told by rank 0 under MPI: mpirun kills all ranks when the first one ends with an error
  try {
    if (!read_command_line(argc, argv, speaks_before_mpi(), line)) return static_cast<int>(ExitCode::success);
  } catch (const UserError& error) {
    mistake = error;
  }

  int provided = MPI_THREAD_SINGLE;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
  if (provided < MPI_THREAD_FUNNELED) {
    std::fprintf(stderr, "hcsmoe_dist: error: this MPI library allows no threads (MPI_THREAD_FUNNELED is needed)\n");
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(ExitCode::failure));
  }
  const int exit_code = run(line, mistake, parent);
  MPI_Finalize();
  // After an error no library cleans up: HDF5 crashes at exit over a file that it could not close.
  if (exit_code != 0) {
    std::fflush(nullptr);
    std::_Exit(exit_code);
  }
  return exit_code;
}
