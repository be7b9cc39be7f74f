#pragma once

#include <cstdint>

namespace hcsmoe {

/// Bytes of memory that this process may still take without driving out others: of the machine, or of the container where that is less.
uint64_t free_memory();

}  // namespace hcsmoe
