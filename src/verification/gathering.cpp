#include "verification/gathering.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace hcsmoe {

std::vector<std::string> gather_placed(const Ranks& ranks, const std::vector<Placed>& mine) {
  // Names of files may be of any bytes.
  const std::string text = nlohmann::json(mine).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::vector<Placed> all;
  for (const std::string& of_a_rank : ranks.gather(text, 0)) {
    for (Placed& placed : nlohmann::json::parse(of_a_rank).get<std::vector<Placed>>()) all.push_back(std::move(placed));
  }
  std::stable_sort(all.begin(), all.end(), [](const Placed& a, const Placed& b) { return a.first < b.first; });
  std::vector<std::string> deviations;
  for (Placed& placed : all) deviations.push_back(std::move(placed.second));
  return deviations;
}

}  // namespace hcsmoe
