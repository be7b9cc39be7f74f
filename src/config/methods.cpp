#include "hcsmoe/config.h"

namespace hcsmoe {

const std::vector<Method>& methods() {
  using enum Feature;
  static const std::vector<Method> all = {
      {.name = "hc-smoe", .features = {expert_output, router_logits}, .metric = true, .linkage = true, .max_cluster_size = true},
      {.name = "kmeans", .features = {expert_output}, .metric = true, .init = true},
      {.name = "m-smoe"},
      {.name = "f-prune"},
      {.name = "s-prune"},
      {.name = "reap"},
      {.name = "ean"},
      {.name = "random"},
  };
  return all;
}

}  // namespace hcsmoe
