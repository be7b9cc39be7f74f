#include <algorithm>
#include <string>

#include "hcsmoe/error.h"
#include "hcsmoe/families.h"
#include "hcsmoe/plan.h"

namespace hcsmoe {

void check_plan(const Plan& plan, const ModelDescription& model, const std::string& source_name) {
  const std::vector<int64_t> expected = model.moe_layers();
  for (const int64_t index : expected) {
    if (std::none_of(plan.layers.begin(), plan.layers.end(), [&](const LayerPlan& l) { return l.layer == index; })) {
      throw UserError(source_name + ": layer " + std::to_string(index) + " has experts, but is not in the plan",
                      "every MoE layer needs its clusters, because a checkpoint has one number of experts for all of them");
    }
  }
  for (const LayerPlan& layer : plan.layers) {
    const std::string where = source_name + ": layer " + std::to_string(layer.layer);
    if (std::find(expected.begin(), expected.end(), layer.layer) == expected.end()) {
      throw UserError(
          where + " is in the plan, but is no MoE layer of this model (" + model.family + ", " + std::to_string(model.layers) + " layers)",
          "the plan is of another model");
    }
    if (layer.experts != model.experts) {
      throw UserError(
          where + " has " + std::to_string(layer.experts) + " experts in the plan, " + std::to_string(model.experts) + " in the model",
          "the plan is of another model");
    }
    const size_t kept = layer.clusters.size(), first = plan.layers[0].clusters.size();
    if (kept != first) {
      throw UserError(where + " has " + std::to_string(kept) + " clusters, layer " + std::to_string(plan.layers[0].layer) + " has " +
                          std::to_string(first),
                      "a checkpoint has one number of experts for all layers");
    }
    if (static_cast<int64_t>(kept) < model.routing.top_k) {
      throw UserError(where + " keeps " + std::to_string(kept) + " experts, but a token goes to the best " +
                          std::to_string(model.routing.top_k) + " (the model's top-k)",
                      "keep at least " + std::to_string(model.routing.top_k) + " experts a layer (compression.experts)");
    }
  }
}

}  // namespace hcsmoe
