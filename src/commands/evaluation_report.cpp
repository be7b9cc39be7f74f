#include "commands/evaluation_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

constexpr size_t most_models_side_by_side = 4;

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

/// "2.572 ± 0.014", "2.572" where the error is not known, "-" where the value is not.
std::string text_of(const Estimate& estimate, int digits) {
  if (std::isnan(estimate.value)) return "-";
  return fixed(estimate.value, digits) + (std::isnan(estimate.error) ? "" : " ± " + fixed(estimate.error, digits));
}

/// accuracy and normalised accuracy: "0.836 / 0.829 ± 0.009"
std::string text_of(const Estimate& accuracy, const Estimate& normalised) {
  return fixed(accuracy.value, 3) + " / " + text_of(normalised, 3);
}

size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

/// Rows of cells as lines: the first column to the left, the others to the right.
std::vector<std::string> aligned(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> width(rows.front().size());
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], width_of(row[c]));
  }
  std::vector<std::string> lines;
  for (const auto& row : rows) {
    std::string line = row[0] + std::string(width[0] - width_of(row[0]), ' ');
    for (size_t c = 1; c < row.size(); ++c) line += "   " + std::string(width[c] - width_of(row[c]), ' ') + row[c];
    lines.push_back(line);
  }
  return lines;
}

void append(std::vector<std::string>& lines, const std::vector<std::string>& more) { lines.insert(lines.end(), more.begin(), more.end()); }

std::string megabytes(uint64_t bytes) { return format_bytes(static_cast<double>(bytes)); }

ordered_json json_of(const Estimate& estimate) { return {{"value", estimate.value}, {"standard_error", estimate.error}}; }

ordered_json json_of(const TextMeasures& text) {
  ordered_json json = {{"file", text.file.string()},
                       {"windows", text.windows},
                       {"length", text.length},
                       {"tokens", text.tokens},
                       {"positions", text.positions},
                       {"negative_log_likelihood", text.negative_log_likelihood},
                       {"perplexity", text.perplexity.value},
                       {"perplexity_standard_error", text.perplexity.error}};
  if (!std::isnan(text.divergence.value)) {
    json["kl_divergence"] = json_of(text.divergence);
    json["top1_agreement"] = json_of(text.agreement);
  }
  return json;
}

}  // namespace

std::vector<std::string> evaluation_table(const std::vector<MeasuredModel>& models) {
  std::vector<std::string> lines;
  const ModelMeasures& first = models.front().measures;
  for (size_t t = 0; t < first.texts.size(); ++t) {
    const TextMeasures& text = first.texts[t];
    lines.push_back(text.file.filename().string() + ": " + std::to_string(text.windows) + " windows of " + std::to_string(text.length) +
                    " tokens");
    std::vector<std::vector<std::string>> rows = {{"", "experts", "size", "perplexity"}};
    if (models.size() > 1) rows[0].insert(rows[0].end(), {"KL (nats)", "top-1 agreement"});
    for (const MeasuredModel& model : models) {
      const TextMeasures& measured = model.measures.texts[t];
      rows.push_back({model.name, std::to_string(model.experts), megabytes(model.bytes), text_of(measured.perplexity, 4)});
      if (models.size() > 1) rows.back().insert(rows.back().end(), {text_of(measured.divergence, 4), text_of(measured.agreement, 3)});
    }
    append(lines, aligned(rows));
  }
  if (first.tasks.empty()) return lines;

  lines.push_back("multiple choice: acc / acc_norm");
  std::vector<std::vector<std::string>> rows;
  if (models.size() <= most_models_side_by_side) {
    rows.push_back({""});
    for (const MeasuredModel& model : models) rows[0].push_back(model.name);
    for (size_t t = 0; t < first.tasks.size(); ++t) {
      rows.push_back({first.tasks[t].name + " (" + std::to_string(first.tasks[t].items) + ")"});
      for (const MeasuredModel& model : models) {
        rows.back().push_back(text_of(model.measures.tasks[t].accuracy, model.measures.tasks[t].normalised_accuracy));
      }
    }
    rows.push_back({"mean"});
    for (const MeasuredModel& model : models) {
      rows.back().push_back(text_of(model.measures.mean_accuracy, model.measures.mean_normalised_accuracy));
    }
  } else {
    rows.push_back({"", "mean of " + std::to_string(first.tasks.size())});
    for (const MeasuredModel& model : models) {
      rows.push_back({model.name, text_of(model.measures.mean_accuracy, model.measures.mean_normalised_accuracy)});
    }
  }
  append(lines, aligned(rows));
  return lines;
}

ordered_json evaluation_json(const std::vector<MeasuredModel>& models, const std::string& dtype) {
  ordered_json json = {{"format", "hcsmoe-evaluation/1"}, {"dtype", dtype}, {"models", ordered_json::array()}};
  for (const MeasuredModel& model : models) {
    ordered_json entry = {{"name", model.name}, {"folder", model.folder}};
    if (!model.plan.empty()) entry["plan"] = model.plan;
    entry["experts"] = model.experts;
    entry["bytes"] = model.bytes;
    entry["perplexity"] = ordered_json::array();
    for (const TextMeasures& text : model.measures.texts) entry["perplexity"].push_back(json_of(text));
    entry["tasks"] = ordered_json::array();
    for (const TaskMeasures& task : model.measures.tasks) {
      entry["tasks"].push_back({{"name", task.name},
                                {"file", task.file.string()},
                                {"items", task.items},
                                {"acc", json_of(task.accuracy)},
                                {"acc_norm", json_of(task.normalised_accuracy)}});
    }
    if (!model.measures.tasks.empty()) {
      entry["mean"] = {{"acc", json_of(model.measures.mean_accuracy)}, {"acc_norm", json_of(model.measures.mean_normalised_accuracy)}};
    }
    json["models"].push_back(entry);
  }
  return json;
}

std::string evaluation_items(const std::vector<MeasuredModel>& models) {
  std::string lines;
  for (const MeasuredModel& model : models) {
    for (const TaskMeasures& task : model.measures.tasks) {
      for (size_t i = 0; i < task.log_likelihoods.size(); ++i) {
        const ordered_json line = {{"model", model.name}, {"task", task.name}, {"item", i}, {"log_likelihoods", task.log_likelihoods[i]}};
        lines += line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
      }
    }
  }
  return lines;
}

}  // namespace hcsmoe
