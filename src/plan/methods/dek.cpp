#include "hcsmoe/error.h"
#include "plan/feature_distances.h"
#include "plan/methods/methods.h"

namespace hcsmoe {

LayerPlan plan_dek(const PlanInput& input) {
  const Feature feature = input.recipe.feature;
  if (feature != Feature::cka && feature != Feature::weight_cka) {
    throw UserError("dek cannot use the feature " + to_string(feature) + ": it joins experts by their CKA",
                    "dek takes the features cka and weight_cka; " + to_string(feature) + " goes with hc-smoe");
  }
  // The most similar pair of experts in different groups unites the groups: single linkage.
  return agglomerate(input, feature_distances(input.statistics, input.recipe), Linkage::single);
}

}  // namespace hcsmoe
