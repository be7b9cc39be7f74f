#pragma once
// Mapped files whose bytes go away. The kernel answers a touch of a page that it cannot bring (the file has become shorter, its disk or
// network file system fails) with SIGBUS, on whatever thread touched it: there is nobody to throw to. The handler says which file it was
// and ends the process, and with it the job.

#include <cstddef>

namespace hcsmoe {

/// From here on such a signal is a message on the standard error and the end, with ExitCode::user. `rank` is named unless there is only
/// one. Other causes of SIGBUS end as they did before. Call it after MPI_Init, which sets handlers of its own.
void report_lost_pages(int rank, int ranks);

/// What the handler knows; called by MappedFile. Beyond some thousand mappings the message names no file.
void watch_mapping(const std::byte* begin, size_t size, const char* path) noexcept;
void forget_mapping(const std::byte* begin) noexcept;

}  // namespace hcsmoe
