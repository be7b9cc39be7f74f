#include "commands/usage_table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string_view>

#include "support/host_data.h"

namespace hcsmoe {
namespace {

std::string percent(double share, int digits) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f %%", digits, 100 * share);
  return text;
}

double gini_of(std::vector<int64_t> counts) {
  std::sort(counts.begin(), counts.end());
  double sum = 0, weighted = 0;  // of the sorted, sum_ij |c_i - c_j| = 2 sum_i (2 i + 1 - E) c_i
  const auto E = static_cast<double>(counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    sum += static_cast<double>(counts[i]);
    weighted += (2 * static_cast<double>(i) + 1 - E) * static_cast<double>(counts[i]);
  }
  return sum > 0 ? weighted / (E * sum) : 0;
}

std::optional<LayerUsage::Alike> alike_of(const ExpertStatistics& statistics) {
  const int64_t E = statistics.experts;
  if (!statistics.output_sum.defined() || E < 2) return std::nullopt;
  const at::Tensor sums = statistics.output_sum.contiguous();  // [E, D]
  const int64_t D = sums.size(1);
  const double* row = const_data<double>(sums);
  const auto norm = [&](int64_t e) {
    double squares = 0;
    for (int64_t d = 0; d < D; ++d) squares += row[e * D + d] * row[e * D + d];
    return std::sqrt(squares);
  };
  std::vector<double> norms;
  for (int64_t e = 0; e < E; ++e) norms.push_back(norm(e));
  LayerUsage::Alike alike{INFINITY, {0, 0}, 0};
  std::vector<bool> has_like(static_cast<size_t>(E), false);
  for (int64_t i = 0; i < E; ++i) {
    for (int64_t j = i + 1; j < E; ++j) {
      double squares = 0;
      for (int64_t d = 0; d < D; ++d) {
        const double difference = row[i * D + d] - row[j * D + d];
        squares += difference * difference;
      }
      const double larger = std::max(norms[i], norms[j]), distance = larger > 0 ? std::sqrt(squares) / larger : 0;
      if (distance < alike.nearest) alike.nearest = distance, alike.pair = {i, j};
      if (distance < alike_below) has_like[i] = has_like[j] = true;
    }
  }
  alike.experts = std::count(has_like.begin(), has_like.end(), true);
  return alike;
}

}  // namespace

LayerUsage usage_of(const ExpertStatistics& statistics) {
  LayerUsage usage;
  usage.layer = statistics.layer;
  usage.experts = statistics.experts;
  usage.tokens = statistics.tokens;
  const at::Tensor counted = statistics.routed_count.contiguous();
  const int64_t* first = const_data<int64_t>(counted);
  const std::vector<int64_t> counts(first, first + statistics.experts);
  double all = 0;
  for (const int64_t count : counts) all += static_cast<double>(count);
  const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
  usage.busiest_expert = std::max_element(counts.begin(), counts.end()) - counts.begin();
  usage.least_expert = least - counts.begin();
  if (all > 0) {
    usage.busiest = static_cast<double>(*most) / all;
    usage.least = static_cast<double>(*least) / all;
  }
  usage.unused = std::count(counts.begin(), counts.end(), int64_t{0});
  usage.gini = gini_of(counts);
  usage.alike = alike_of(statistics);
  return usage;
}

std::vector<std::string> usage_table(const std::vector<LayerUsage>& layers) {
  char line[160];
  std::snprintf(line, sizeof line, "  %5s %7s %17s %17s %6s %6s %6s  %s", "layer", "experts", "busiest", "least", "unused", "Gini", "alike",
                "nearest outputs");
  std::vector<std::string> lines = {line};
  for (const LayerUsage& u : layers) {
    const auto of = [](double share, int64_t expert) { return percent(share, 2) + " (" + std::to_string(expert) + ")"; };
    std::string nearest = "-", alike = "-";
    if (u.alike) {
      alike = std::to_string(u.alike->experts);
      nearest =
          percent(u.alike->nearest, 1) + " (" + std::to_string(u.alike->pair.first) + ", " + std::to_string(u.alike->pair.second) + ")";
    }
    std::snprintf(line, sizeof line, "  %5lld %7lld %17s %17s %6lld %6.3f %6s  %s", static_cast<long long>(u.layer),
                  static_cast<long long>(u.experts), of(u.busiest, u.busiest_expert).c_str(), of(u.least, u.least_expert).c_str(),
                  static_cast<long long>(u.unused), u.gini, alike.c_str(), nearest.c_str());
    lines.emplace_back(line);
  }
  return lines;
}

std::vector<std::vector<int64_t>> equal_experts(const Checkpoint& checkpoint, const ModelDescription& model, int64_t layer) {
  const auto bytes = [&](int64_t expert, ExpertPart part) {
    const auto span = checkpoint.bytes(expert_tensor_name(model, layer, expert, part));
    return std::string_view(reinterpret_cast<const char*>(span.data()), span.size());
  };
  std::map<std::vector<size_t>, std::vector<int64_t>> by_hash;
  for (int64_t e = 0; e < model.experts; ++e) {
    std::vector<size_t> hashes;
    for (const ExpertPart part : expert_parts) {
      hashes.push_back(std::hash<std::string_view>()(bytes(e, part)));
      checkpoint.done_with(expert_tensor_name(model, layer, e, part));
    }
    by_hash[hashes].push_back(e);
  }
  std::vector<std::vector<int64_t>> groups;
  for (const auto& [hashes, experts] : by_hash) {  // equal hashes are likely, equal bytes are certain
    std::vector<std::vector<int64_t>> equal;
    for (const int64_t e : experts) {
      const auto same = std::find_if(equal.begin(), equal.end(), [&](const std::vector<int64_t>& group) {
        return std::all_of(std::begin(expert_parts), std::end(expert_parts),
                           [&](ExpertPart part) { return bytes(group.front(), part) == bytes(e, part); });
      });
      same == equal.end() ? equal.push_back({e}) : same->push_back(e);
    }
    std::copy_if(equal.begin(), equal.end(), std::back_inserter(groups), [](const auto& group) { return group.size() > 1; });
  }
  std::sort(groups.begin(), groups.end());
  return groups;
}

}  // namespace hcsmoe
