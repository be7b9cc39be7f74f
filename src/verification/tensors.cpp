#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "hcsmoe/log.h"
#include "hcsmoe/verification.h"
#include "support/text.h"
#include "verification/gathering.h"
#include "verification/merged.h"

namespace hcsmoe {
namespace {

std::string describe(const TensorInfo& tensor) { return tensor.dtype.name + " " + shape_text(tensor.shape); }

void append(std::vector<std::string>& to, std::vector<std::string> more) { to.insert(to.end(), more.begin(), more.end()); }

/// The output, or nothing on all ranks: what is wrong with it is a deviation.
std::optional<Checkpoint> open_output(const Ranks& ranks, const std::filesystem::path& folder, Findings& findings) {
  std::optional<Checkpoint> output;
  std::string wrong;
  ranks.on_root([&] {
    try {
      output.emplace(Checkpoint::open(folder));
    } catch (const UserError& error) {
      findings.deviations.emplace_back(error.what());
      wrong = "wrong";
    }
  });
  ranks.broadcast(wrong, 0);
  if (!wrong.empty()) return std::nullopt;
  ranks.on_all([&] {
    if (!output) output.emplace(Checkpoint::open(folder));
  });
  ranks.require_same("the output " + folder.string(), output->tensor_lines());
  return output;
}

/// Names of tensors that are there with the expected type and shape. Every rank checks them all: headers are in memory.
std::set<std::string> verify_listing(const Checkpoint& output, const std::vector<OutputTensor>& expected, Findings& findings) {
  std::set<std::string> names, sound;
  std::vector<std::string> deviations;
  for (const OutputTensor& tensor : expected) {
    const std::string& name = tensor.info.name;
    names.insert(name);
    if (!output.has(name)) {
      deviations.push_back("tensor " + name_text(name) + " is missing");
      continue;
    }
    const TensorInfo& found = output.info(name);
    if (found.dtype == tensor.info.dtype && found.shape == tensor.info.shape) {
      sound.insert(name);
    } else {
      deviations.push_back("tensor " + name_text(name) + " is " + describe(found) + ", expected " + describe(tensor.info));
    }
  }
  for (const TensorInfo& tensor : output.tensors()) {
    if (!names.contains(tensor.name))
      deviations.push_back("tensor " + name_text(tensor.name) + " is none of this model with so many experts");
  }
  findings.checked.push_back("tensors: " + std::to_string(sound.size()) + " of " + std::to_string(expected.size()) +
                             " have the names, types and shapes that the original and the plan give");
  append(findings.deviations, std::move(deviations));
  return sound;
}

void verify_untouched(const Ranks& ranks, const Checkpoint& original, const Checkpoint& output, const std::vector<OutputTensor>& expected,
                      const std::set<std::string>& sound, Trace* trace, Findings& findings) {
  std::vector<Placed> deviations;
  std::vector<int64_t> counts = {0, 0, 0};  // tensors that are equal, their bytes, tensors compared
  ranks.on_all([&] {
    for (size_t i = 0; i < expected.size(); ++i) {
      const std::string& name = expected[i].info.name;
      if (expected[i].from_shard || !sound.contains(name)) continue;
      if (ranks.owner_of(output.info(name).file) != ranks.rank()) continue;
      const Span span(trace, Activity::reading, "untouched tensor");
      const auto is = output.bytes(name), was = original.bytes(name);
      const auto differ = std::mismatch(is.begin(), is.end(), was.begin(), was.end());
      ++counts[2];
      if (differ.first == is.end()) {
        ++counts[0];
        counts[1] += static_cast<int64_t>(is.size());
      } else {
        deviations.emplace_back(static_cast<int64_t>(i), "tensor " + name_text(name) + " differs from the original's from byte " +
                                                             std::to_string(differ.first - is.begin()) + " on");
      }
      output.done_with(name);
      original.done_with(name);
    }
  });
  ranks.all_reduce_sum(counts);
  append(findings.deviations, gather_placed(ranks, deviations));
  findings.checked.push_back("untouched tensors: " + std::to_string(counts[0]) + " of " + std::to_string(counts[2]) +
                             " equal the original's bit by bit (" + format_bytes(static_cast<double>(counts[1])) + ")");
}

}  // namespace

void verify_tensors(const Ranks& ranks, const OutputToVerify& given, Trace* trace, Findings& findings) {
  const std::optional<Checkpoint> output = open_output(ranks, given.output, findings);
  if (!output) {
    findings.unchecked.emplace_back("tensors: the output cannot be read");
    return;
  }
  std::vector<OutputTensor> expected;
  for (const OutputFile& file : output_layout(given.original, given.model, given.experts_kept(), INT64_MAX)) {
    expected.insert(expected.end(), file.tensors.begin(), file.tensors.end());
  }
  const std::set<std::string> sound = verify_listing(*output, expected, findings);
  verify_untouched(ranks, given.original, *output, expected, sound, trace, findings);
  verify_merged(ranks, given, *output, sound, trace, findings);
  ranks.on_all([&] {
    given.original.require_unchanged();
    output->require_unchanged();
  });
}

}  // namespace hcsmoe
