// --trace: one clock for all ranks, and one file of their events.

#include "hcsmoe/commands.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

/// A run may take hours: a file that cannot be written is found before it.
void check_writable(const std::filesystem::path& file) {
  if (std::filesystem::is_directory(file)) {
    throw UserError("--trace " + file.string() + " is a folder", "name a file in it, such as " + (file / "trace.json").string());
  }
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  if (!std::filesystem::is_directory(folder)) {
    throw UserError("--trace " + file.string() + ": there is no folder " + folder.string(), "make it, or name another file");
  }
  std::filesystem::path trial = file;
  trial += ".tmp";
  File::create(trial).close();
  std::filesystem::remove(trial);
}

}  // namespace

std::unique_ptr<Trace> start_trace(const std::filesystem::path& file, const Ranks& ranks) {
  if (file.empty()) return nullptr;
  ranks.on_root([&] { check_writable(file); });
  ranks.barrier();
  return std::make_unique<Trace>(ranks.rank());
}

void write_trace(const Trace* trace, const std::filesystem::path& file, const Ranks& ranks) {
  if (!trace) return;
  const auto gathered = ranks.gather(trace->events(), 0);
  ranks.on_root([&] {
    std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
    for (size_t rank = 0; rank < gathered.size(); ++rank) text += (rank > 0 ? ",\n" : "") + gathered[rank];
    write_file_atomically(file, text + "\n]}\n");
  });
}

}  // namespace hcsmoe
