#include "commands/evaluation_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

constexpr size_t widest_line = 160;  // a table that is wider goes on below itself

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

size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

struct Column {
  std::string head;
  std::vector<std::string> cells;  // of each model
};

size_t width_of(const Column& column) {
  size_t width = width_of(column.head);
  for (const std::string& cell : column.cells) width = std::max(width, width_of(cell));
  return width;
}

std::string padded(const std::string& text, size_t width) { return std::string(width - width_of(text), ' ') + text; }

/// A row a model: its name to the left, groups of columns to the right. What a line has no room for follows below, with the names again.
void append_table(std::vector<std::string>& lines, const std::vector<MeasuredModel>& models,
                  const std::vector<std::vector<Column>>& groups) {
  const std::string gap = "   ";
  std::vector<std::string> names = {""};
  for (const MeasuredModel& model : models) names.push_back(model.name);
  size_t name_width = 0;
  for (const std::string& name : names) name_width = std::max(name_width, width_of(name));
  for (std::string& name : names) name.append(name_width - width_of(name), ' ');

  std::vector<std::string> block = names;
  const auto make_room = [&](size_t width) {
    if (width_of(block.front()) == name_width || width_of(block.front()) + width <= widest_line) return;
    lines.insert(lines.end(), block.begin(), block.end());
    block = names;
  };
  for (const std::vector<Column>& group : groups) {
    size_t together = 0;
    for (const Column& column : group) together += gap.size() + width_of(column);
    make_room(together);
    for (const Column& column : group) {
      const size_t width = width_of(column);
      make_room(gap.size() + width);
      block.front() += gap + padded(column.head, width);
      for (size_t m = 0; m < models.size(); ++m) block[m + 1] += gap + padded(column.cells[m], width);
    }
  }
  lines.insert(lines.end(), block.begin(), block.end());
}

template <typename Cell>
Column column_of(const std::string& head, const std::vector<MeasuredModel>& models, const Cell& cell) {
  Column column{head, {}};
  for (const MeasuredModel& model : models) column.cells.push_back(cell(model));
  return column;
}

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
  std::vector<Column> sizes = {
      column_of("experts", models, [](const MeasuredModel& model) { return std::to_string(model.experts); }),
      column_of("size", models, [](const MeasuredModel& model) { return megabytes(model.bytes); }),
  };
  std::vector<std::vector<Column>> groups = {std::move(sizes)};
  for (size_t t = 0; t < first.texts.size(); ++t) {
    const TextMeasures& text = first.texts[t];
    const std::string name = text.file.filename().string();
    lines.push_back(name + ": " + std::to_string(text.windows) + " windows of " + std::to_string(text.length) + " tokens");
    if (t > 0) groups.emplace_back();
    const auto add = [&](const std::string& head, const Estimate TextMeasures::*value, int digits) {
      groups.back().push_back(
          column_of(head, models, [&](const MeasuredModel& model) { return text_of(model.measures.texts[t].*value, digits); }));
    };
    add(first.texts.size() > 1 ? name + ": perplexity" : "perplexity", &TextMeasures::perplexity, 4);
    if (models.size() > 1) add("KL (nats)", &TextMeasures::divergence, 4);
    if (models.size() > 1) add("top-1", &TextMeasures::agreement, 3);
  }
  const auto task_columns = [&](const Estimate TaskMeasures::*value, const Estimate ModelMeasures::*mean) {
    std::vector<Column> columns;
    for (size_t t = 0; t < first.tasks.size(); ++t) {
      if (std::isnan((first.tasks[t].*value).value)) continue;
      columns.push_back(
          column_of(first.tasks[t].name, models, [&](const MeasuredModel& model) { return text_of(model.measures.tasks[t].*value, 3); }));
    }
    if (first.tasks.size() > 1 && !std::isnan((first.*mean).value)) {
      columns.push_back(column_of("average", models, [&](const MeasuredModel& model) { return text_of(model.measures.*mean, 3); }));
    }
    return columns;
  };
  if (!first.tasks.empty()) {
    std::string questions = "acc of each task (questions):";
    for (const TaskMeasures& task : first.tasks) {
      questions += (&task == &first.tasks.front() ? " " : ", ") + task.name + " (" + std::to_string(task.items) + ")";
    }
    lines.push_back(questions);
    groups.push_back(task_columns(&TaskMeasures::accuracy, &ModelMeasures::mean_accuracy));
  }
  append_table(lines, models, groups);
  const auto normalised = task_columns(&TaskMeasures::normalised_accuracy, &ModelMeasures::mean_normalised_accuracy);
  if (normalised.empty()) return lines;
  lines.push_back("acc_norm");
  append_table(lines, models, {normalised});
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
      ordered_json measured = {{"name", task.name}, {"file", task.file.string()}, {"items", task.items}, {"acc", json_of(task.accuracy)}};
      if (!std::isnan(task.normalised_accuracy.value)) measured["acc_norm"] = json_of(task.normalised_accuracy);
      entry["tasks"].push_back(measured);
    }
    const ModelMeasures& measures = model.measures;
    if (!measures.tasks.empty()) {
      entry["mean"] = {{"acc", json_of(measures.mean_accuracy)}};
      if (!std::isnan(measures.mean_normalised_accuracy.value)) entry["mean"]["acc_norm"] = json_of(measures.mean_normalised_accuracy);
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
