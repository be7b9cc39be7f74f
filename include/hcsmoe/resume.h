#pragma once
// What a sweep over layers goes on from: the residual streams after a layer, in WORK/resume. Each rank writes those of its own tokens as a
// file; the files of a layer are complete when they cover all tokens, whoever wrote them, so no rank has to tell another that it is done.
// The files of the last two layers are kept.
// Letters: N tokens of this rank, T calibration tokens of all ranks, D hidden size.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace hcsmoe {

struct ResidualStreams {
  int64_t first_token = 0;  // of these N, among all T
  at::Tensor original;      // float32 [N, D], on the CPU
  at::Tensor compressed;    // the same through the compressed layers; undefined where there is no such stream
};

std::filesystem::path resume_folder(const std::filesystem::path& work);
/// Atomic: temporary name, fsync, rename. job: what the run is asked to do; streams of another job are not found. Nothing where N = 0.
void save_streams(const std::filesystem::path& work, int64_t layer, const std::string& job, const ResidualStreams&);
/// Layers after which the streams of all `tokens` tokens are there, the last layer first. Files that are damaged or of another job do not
/// count; checksums of the streams themselves are checked when they are read.
std::vector<int64_t> saved_layers(const std::filesystem::path& work, const std::string& job, int64_t tokens);
/// Those of `tokens` tokens from first_token on, from the files of any number of ranks. UserError: damaged, or not there.
ResidualStreams load_streams(const std::filesystem::path& work, int64_t layer, const std::string& job, int64_t first_token, int64_t tokens);
/// Removes the streams after layers before this one; of all layers by default.
void drop_streams(const std::filesystem::path& work, int64_t before_layer = INT64_MAX);

}  // namespace hcsmoe
