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

constexpr int64_t most_experts = 1'000'000;

enum class Rows { experts, sample };
enum class Columns { none, hidden, experts, pairs };  // one a row, D, E, E(E+1)/2

struct Field {
  const char* name;  // of the dataset
  at::Tensor ExpertStatistics::*tensor;
  at::ScalarType dtype;
  Rows rows;
  Columns columns;
};
constexpr Field fields[] = {
    {"routed_count", &ExpertStatistics::routed_count, at::kLong, Rows::experts, Columns::none},
    {"routed_weight_sum", &ExpertStatistics::routed_weight_sum, at::kDouble, Rows::experts, Columns::none},
    {"router_probability_sum", &ExpertStatistics::router_probability_sum, at::kDouble, Rows::experts, Columns::none},
    {"output_sum", &ExpertStatistics::output_sum, at::kDouble, Rows::experts, Columns::hidden},
    {"routed_output_norm_sum", &ExpertStatistics::routed_output_norm_sum, at::kDouble, Rows::experts, Columns::none},
    {"weighted_output_norm_sum", &ExpertStatistics::weighted_output_norm_sum, at::kDouble, Rows::experts, Columns::none},
    {"router_logit_sum", &ExpertStatistics::router_logit_sum, at::kDouble, Rows::experts, Columns::none},
    {"router_logit_gram", &ExpertStatistics::router_logit_gram, at::kDouble, Rows::experts, Columns::experts},
    {"sample_input", &ExpertStatistics::sample_input, at::kFloat, Rows::sample, Columns::hidden},
    {"sample_logits", &ExpertStatistics::sample_logits, at::kFloat, Rows::sample, Columns::experts},
    {"token_output_gram", &ExpertStatistics::token_output_gram, at::kFloat, Rows::sample, Columns::pairs},
    {"output_cka", &ExpertStatistics::output_cka, at::kDouble, Rows::experts, Columns::experts},
    {"weight_gram", &ExpertStatistics::weight_gram, at::kDouble, Rows::experts, Columns::experts},
    {"weight_cka", &ExpertStatistics::weight_cka, at::kDouble, Rows::experts, Columns::experts},
};

std::string dtype_name(const Field& field) { return field.dtype == at::kLong ? "I64" : field.dtype == at::kFloat ? "F32" : "F64"; }

/// What a field's shape must be; -1 where it may be anything above 0.
std::vector<int64_t> shape_of(const Field& field, const ExpertStatistics& statistics) {
  const int64_t E = statistics.experts, S = statistics.sample_input.defined() ? statistics.sample_input.size(0) : -1;
  const int64_t rows = field.rows == Rows::experts ? E : S;
  switch (field.columns) {
    case Columns::none:
      return {rows};
    case Columns::hidden:
      return {rows, -1};
    case Columns::experts:
      return {rows, E};
    case Columns::pairs:
      return {rows, E * (E + 1) / 2};
  }
  throw Error("a statistic has no shape");
}

bool shape_fits(const std::vector<int64_t>& expected, const std::vector<int64_t>& shape) {
  return std::equal(expected.begin(), expected.end(), shape.begin(), shape.end(),
                    [](int64_t wanted, int64_t found) { return wanted == found || (wanted == -1 && found > 0); });
}

std::string expected_text(const Field& field, const std::vector<int64_t>& shape) {
  std::string text;
  for (size_t i = 0; i < shape.size(); i++) {
    const std::string any = i == 0 ? "sampled tokens" : "hidden size";
    text += (i == 0 ? "" : ", ") + (shape[i] == -1 ? any : std::to_string(shape[i]));
  }
  return dtype_name(field) + " [" + text + "]";
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

template <class T>
void check_finite(const std::filesystem::path& file, const Field& field, const at::Tensor& tensor) {
  const std::span values(tensor.const_data_ptr<T>(), static_cast<size_t>(tensor.numel()));
  const auto bad = std::find_if(values.begin(), values.end(), [](T value) { return !std::isfinite(value); });
  if (bad != values.end()) {
    refuse(file, std::string(field.name) + ": value " + std::to_string(bad - values.begin()) + " is not finite");
  }
}

void check_values(const std::filesystem::path& file, const Field& field, const at::Tensor& tensor, int64_t tokens) {
  if (field.dtype == at::kLong) {
    const std::span counts(tensor.const_data_ptr<int64_t>(), static_cast<size_t>(tensor.numel()));
    const auto bad = std::find_if(counts.begin(), counts.end(), [&](int64_t count) { return count < 0 || count > tokens; });
    if (bad == counts.end()) return;
    refuse(file, std::string(field.name) + "[" + std::to_string(bad - counts.begin()) + "] is " + std::to_string(*bad) +
                     ", expected 0 to the number of tokens, " + std::to_string(tokens));
  }
  field.dtype == at::kFloat ? check_finite<float>(file, field, tensor) : check_finite<double>(file, field, tensor);
}

}  // namespace

std::string to_string(Statistic statistic) {
  switch (statistic) {
    case Statistic::output_sum:
      return "output_sum";
    case Statistic::sample_input:
      return "sample_input";
    case Statistic::token_output_gram:
      return "token_output_gram";
    case Statistic::output_cka:
      return "output_cka";
    case Statistic::weight_gram:
      return "weight_gram";
    case Statistic::weight_cka:
      return "weight_cka";
  }
  throw Error("a statistic has no name");
}

StatisticSet StatisticSet::all() {
  StatisticSet set;
  for (const Statistic statistic : optional_statistics) set |= {statistic};
  return set;
}

std::string StatisticSet::names() const {
  std::string text;
  for (const Statistic statistic : optional_statistics) {
    if (has(statistic)) text += (text.empty() ? "" : ", ") + to_string(statistic);
  }
  return text;
}

StatisticSet collected(const ExpertStatistics& statistics) {
  StatisticSet set;
  if (statistics.output_sum.defined()) set |= {Statistic::output_sum};
  if (statistics.sample_input.defined()) set |= {Statistic::sample_input};
  if (statistics.token_output_gram.defined() && statistics.sample_logits.defined()) set |= {Statistic::token_output_gram};
  if (statistics.output_cka.defined()) set |= {Statistic::output_cka};
  if (statistics.weight_gram.defined()) set |= {Statistic::weight_gram};
  if (statistics.weight_cka.defined()) set |= {Statistic::weight_cka};
  return set;
}

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
    const at::Tensor& values = statistics.*field.tensor;
    if (!values.defined()) continue;
    const std::vector<int64_t> shape = values.sizes().vec();
    const std::vector<int64_t> expected = shape_of(field, statistics);
    if (values.scalar_type() != field.dtype || !shape_fits(expected, shape)) {
      throw Error("statistics of layer " + std::to_string(statistics.layer) + ": " + field.name + " is " + shape_text(shape) +
                  ", expected " + expected_text(field, expected));
    }
    const at::Tensor tensor = values.contiguous();
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
  if (statistics.layer < 0 || statistics.experts < 1 || statistics.experts > most_experts || statistics.tokens < 0) {
    refuse(file, "layer " + std::to_string(statistics.layer) + ", experts " + std::to_string(statistics.experts) + ", tokens " +
                     std::to_string(statistics.tokens) + ": not possible");
  }
  if (origin) *origin = {reader.text("checkpoint"), reader.text("calibration"), reader.text("dtype")};

  for (const Field& field : fields) {
    if (!reader.has(field.name)) continue;
    const Hdf5Dataset& dataset = reader.info(field.name);
    const std::vector<int64_t> expected = shape_of(field, statistics);
    if (dataset.dtype != dtype_name(field) || !shape_fits(expected, dataset.shape)) {
      refuse(file, std::string(field.name) + " is " + dataset.dtype + " " + shape_text(dataset.shape) + ", expected " +
                       expected_text(field, expected));
    }
    statistics.*field.tensor = read_tensor(reader, dataset, field.dtype);
    check_values(file, field, statistics.*field.tensor, statistics.tokens);
  }
  return statistics;
}

}  // namespace hcsmoe
