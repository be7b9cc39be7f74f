#pragma once
// The results of an evaluation as a table for the terminal and as JSON.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "hcsmoe/evaluation.h"

namespace hcsmoe {

struct MeasuredModel {
  std::string name;
  std::string folder, plan;  // plan: empty, or the file that says how the folder's model is compressed in memory
  int64_t experts = 0;       // a layer
  uint64_t bytes = 0;        // of weights
  ModelMeasures measures;
};

/// Lines: what was measured on, then a table of one row a model (size, texts, accuracy of each task, average), then one of acc_norm.
std::vector<std::string> evaluation_table(const std::vector<MeasuredModel>&);
/// {"format": "hcsmoe-evaluation/1", "dtype", "models": [...]}; docs/configuration.md shows it.
nlohmann::ordered_json evaluation_json(const std::vector<MeasuredModel>&, const std::string& dtype);
/// A line for every question of every task and model, with the log-likelihoods of the choices.
std::string evaluation_items(const std::vector<MeasuredModel>&);

}  // namespace hcsmoe
