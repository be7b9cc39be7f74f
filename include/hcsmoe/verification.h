#pragma once
// Verification: whether an output folder is what its plan makes of the original. Nothing of what made it is trusted: names, types and
// shapes come from the original and the plan, untouched bytes are compared with the original's, merged ones are made again. Every function
// is collective; what it finds is on rank 0, in an order that does not depend on the number of ranks.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/families.h"
#include "hcsmoe/plan.h"
#include "hcsmoe/ranks.h"
#include "hcsmoe/trace.h"

namespace hcsmoe {

struct Findings {
  std::vector<std::string> checked;     // what was compared with what, and how much of it
  std::vector<std::string> unchecked;   // what could not be checked, and why
  std::vector<std::string> deviations;  // each names its file or tensor
};

struct OutputToVerify {
  const Checkpoint& original;
  const ModelDescription& model;  // of the original
  const Plan& plan;               // check_plan has passed
  std::filesystem::path output;
  std::filesystem::path work;  // its shards stand for what cannot be made again; may be empty
  int64_t sample = 0;          // merged experts of a layer that are made again; 0: all of a small model, else a few
  uint64_t seed = 0;           // of the draw
  int64_t experts_kept() const { return static_cast<int64_t>(plan.layers.front().clusters.size()); }
};

/// Every file against checksums.xxh128: changed, missing, not listed. Files are dealt to the ranks.
void verify_files(const Ranks&, const std::filesystem::path& output, Trace*, Findings&);
/// That config.json is the original's but for what the plan changes, and that the files which a model has besides are the original's.
void verify_companions(const Ranks&, const OutputToVerify&, Trace*, Findings&);
/// Name, type and shape of every tensor; the bytes of those that are not compressed, and of merged ones.
void verify_tensors(const Ranks&, const OutputToVerify&, Trace*, Findings&);

}  // namespace hcsmoe
