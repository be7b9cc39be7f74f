#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "hcsmoe/error.h"
#include "hcsmoe/statistics.h"
#include "support/files.h"
#include "support/hdf5_file.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

constexpr const char* format = "hcsmoe-statistics/1";

enum class Columns { none, hidden, experts };  // shape [E], [E, D] or [E, E]

struct Field {
  const char* name;  // of the dataset
  at::Tensor ExpertStatistics::*tensor;
  Columns columns;
};
constexpr Field fields[] = {
    {"routed_count", &ExpertStatistics::routed_count, Columns::none},
    {"routed_weight_sum", &ExpertStatistics::routed_weight_sum, Columns::none},
    {"router_probability_sum", &ExpertStatistics::router_probability_sum, Columns::none},
    {"output_sum", &ExpertStatistics::output_sum, Columns::hidden},
    {"routed_output_norm_sum", &ExpertStatistics::routed_output_norm_sum, Columns::none},
    {"weighted_output_norm_sum", &ExpertStatistics::weighted_output_norm_sum, Columns::none},
    {"router_logit_sum", &ExpertStatistics::router_logit_sum, Columns::none},
    {"router_logit_gram", &ExpertStatistics::router_logit_gram, Columns::experts},
};

bool is_count(const Field& field) { return field.tensor == &ExpertStatistics::routed_count; }
std::string dtype_name(const Field& field) { return is_count(field) ? "I64" : "F64"; }
at::ScalarType dtype(const Field& field) { return is_count(field) ? at::kLong : at::kDouble; }

bool shape_fits(const Field& field, const std::vector<int64_t>& shape, int64_t experts) {
  if (shape.size() != (field.columns == Columns::none ? 1 : 2) || shape[0] != experts) return false;
  if (field.columns == Columns::experts) return shape[1] == experts;
  return field.columns == Columns::none || shape[1] > 0;
}

std::string expected_shape(const Field& field, int64_t experts) {
  const std::string rows = std::to_string(experts);
  if (field.columns == Columns::none) return "[" + rows + "]";
  return "[" + rows + ", " + (field.columns == Columns::experts ? rows : "hidden size") + "]";
}

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& what) {
  throw UserError(file.string() + ": " + what, "delete the file, so that the statistics are collected again");
}

at::Tensor read_tensor(const Hdf5Reader& reader, const Hdf5Dataset& dataset, at::ScalarType type) {
  at::Tensor tensor = at::empty(dataset.shape, type);
  auto* out = static_cast<std::byte*>(tensor.data_ptr());
  reader.read(dataset.name, [&](std::span<const std::byte> piece) {
    std::memcpy(out, piece.data(), piece.size());
    out += piece.size();
  });
  return tensor;
}

void check_values(const std::filesystem::path& file, const Field& field, const at::Tensor& tensor, int64_t tokens) {
  if (is_count(field)) {
    const std::span counts(tensor.const_data_ptr<int64_t>(), static_cast<size_t>(tensor.numel()));
    const auto bad = std::find_if(counts.begin(), counts.end(), [&](int64_t count) { return count < 0 || count > tokens; });
    if (bad == counts.end()) return;
    refuse(file, std::string(field.name) + "[" + std::to_string(bad - counts.begin()) + "] is " + std::to_string(*bad) +
                     ", expected 0 to the number of tokens, " + std::to_string(tokens));
  }
  const std::span values(tensor.const_data_ptr<double>(), static_cast<size_t>(tensor.numel()));
  const auto bad = std::find_if(values.begin(), values.end(), [](double value) { return !std::isfinite(value); });
  if (bad != values.end()) {
    refuse(file, std::string(field.name) + ": value " + std::to_string(bad - values.begin()) + " is not finite");
  }
}

}  // namespace

std::filesystem::path statistics_file(const std::filesystem::path& work, int64_t layer) {
  char name[40];
  std::snprintf(name, sizeof name, "layer_%04lld.h5", static_cast<long long>(layer));
  return work / "statistics" / name;
}

void save_statistics(const std::filesystem::path& file, const ExpertStatistics& statistics, const StatisticsOrigin& origin) {
  make_folder(file.parent_path());
  Hdf5Writer writer(file, format);
  writer.attribute("layer", statistics.layer);
  writer.attribute("experts", statistics.experts);
  writer.attribute("tokens", statistics.tokens);
  writer.attribute("checkpoint", origin.checkpoint);
  writer.attribute("calibration", origin.calibration);
  writer.attribute("dtype", origin.dtype);
  for (const Field& field : fields) {
    const at::Tensor& collected = statistics.*field.tensor;
    if (!collected.defined()) continue;
    const std::vector<int64_t> shape = collected.sizes().vec();
    if (collected.scalar_type() != dtype(field) || !shape_fits(field, shape, statistics.experts)) {
      throw Error("statistics of layer " + std::to_string(statistics.layer) + ": " + field.name + " is " + shape_text(shape) +
                  ", expected " + dtype_name(field) + " " + expected_shape(field, statistics.experts));
    }
    const at::Tensor tensor = collected.contiguous();
    writer.dataset(field.name, dtype_name(field), shape, {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()});
  }
  writer.finish();
}

ExpertStatistics load_statistics(const std::filesystem::path& file, StatisticsOrigin* origin) {
  const Hdf5Reader reader(file, format);
  ExpertStatistics statistics;
  statistics.layer = reader.integer("layer");
  statistics.experts = reader.integer("experts");
  statistics.tokens = reader.integer("tokens");
  if (statistics.layer < 0 || statistics.experts < 1 || statistics.tokens < 0) {
    refuse(file, "layer " + std::to_string(statistics.layer) + ", experts " + std::to_string(statistics.experts) + ", tokens " +
                     std::to_string(statistics.tokens) + ": not possible");
  }
  if (origin) *origin = {reader.text("checkpoint"), reader.text("calibration"), reader.text("dtype")};

  for (const Field& field : fields) {
    if (!reader.has(field.name)) continue;
    const Hdf5Dataset& dataset = reader.info(field.name);
    if (dataset.dtype != dtype_name(field) || !shape_fits(field, dataset.shape, statistics.experts)) {
      refuse(file, std::string(field.name) + " is " + dataset.dtype + " " + shape_text(dataset.shape) + ", expected " + dtype_name(field) +
                       " " + expected_shape(field, statistics.experts));
    }
    statistics.*field.tensor = read_tensor(reader, dataset, dtype(field));
    check_values(file, field, statistics.*field.tensor, statistics.tokens);
  }
  return statistics;
}

}  // namespace hcsmoe
