#pragma once
// The model card: README.md of an output folder, with the metadata that the Hugging Face hub reads. It holds no time, no path and no number
// of ranks: the same job makes the same card anywhere.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "hcsmoe/plan.h"

namespace hcsmoe {

struct CardFacts {
  std::string version;        // of the program
  std::string model, family;  // model: the name of the original's folder
  std::string base_model;     // its name on the hub (hub_name)
  std::string original_card;  // the text of its README.md; may be empty
  int64_t top_k = 0;
  uint64_t model_bytes = 0, output_bytes = 0;    // of weights
  std::optional<CalibrationConfig> calibration;  // where it is known to be what the plan was made on
};

/// The name of a model on the hub, as far as its folder tells: OWNER/NAME of a folder of the hub's cache; `_name_or_path` of config.json
/// (name_or_path) if it ends in the folder's name; else the folder's name; empty if the hub allows no such name.
std::string hub_name(const std::string& absolute_folder, const std::string& name_or_path);

/// The card. evaluation: as evaluation.json has it, of the original and the output, or null. What comes from files and names is text in it,
/// never markup. Of the original card's metadata the licence, languages, tags, data sets and pipeline_tag are carried over; a card whose
/// metadata cannot be read gives none.
std::string model_card(const CardFacts&, const Plan&, const nlohmann::ordered_json& evaluation);

}  // namespace hcsmoe
