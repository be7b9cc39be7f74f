// config.json of a model, as every family reads it.

#include <nlohmann/json.hpp>

#include "fuzz.h"
#include "hcsmoe/families.h"
#include "support/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  nlohmann::ordered_json config;
  fuzz::answers([&] { config = parse_json(fuzz::text(data, size), "config.json"); });
  if (!config.is_object()) return 0;
  for (const Family& family : families()) {
    fuzz::answers([&] {
      const ModelDescription model = family.describe(config);
      fuzz::require(model.hidden_size > 0 && model.layers > 0 && model.vocabulary > 0 && model.heads > 0, "sizes are above zero");
      fuzz::require(model.experts > 0 && model.routing.top_k >= 1 && model.routing.top_k <= model.experts, "a router chooses some experts");
      fuzz::require(model.layer.size() == static_cast<size_t>(model.layers), "every layer is described");
      fuzz::require(model.expert_intermediate > 0 && model.head_size > 1, "experts and heads have channels");
      for (const int64_t layer : {int64_t{0}, model.layers - 1}) layer_tensor_names(model, layer);
    });
  }
  return 0;
}
