#include "hcsmoe/cost.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

// docs/reconstruction.md
constexpr double most_sampled = 8192, most_sampled_early = 4096;  // tokens whose outputs step 3 computes
constexpr double training = 0.8, held_out = 0.2;                  // of the tokens
constexpr double early_share = 0.25, fewest_early = 1024;         // of the tokens that the first round sees, where that leaves enough
constexpr double block = 512;                                     // units of a block of S
constexpr double ridges = 3, ridge_outputs = 256;                 // tried in a fit of down projections, on so many outputs

double of(int64_t n) { return static_cast<double>(n); }

/// Multiply-adds of reconstruction in one layer, in units of D x F x N. docs/reconstruction.md, "Cost".
struct Units {
  double typed = 0;           // products in the type of computation, dealt over the ranks
  double single = 0;          // products and solutions in float32, dealt
  double factorisations = 0;  // the longest of those that are made at one time
  Units operator*(double times) const { return {typed * times, single * times, factorisations * times}; }
  Units& operator+=(const Units& other) {
    typed += other.typed;
    single += other.single;
    factorisations += other.factorisations;
    return *this;
  }
};

struct Layer {
  double D, F, K, k, N;
  double sampled_outputs;  // tokens, of step 3
  double u() const { return std::min(F, block); }
  double sampled() const { return std::min(1.0, sampled_outputs / N); }
  double ridge_share() const { return D > ridge_outputs ? ridges * ridge_outputs / D + 1 : ridges; }

  Units trial() const { return {3 * k * held_out}; }
  Units residual() const { return {3 * k}; }
  Units rows_from_members() const {
    Units units{0, 96 * K / F + training * D / (2 * F)};
    units += trial() * 2;
    return units;
  }
  Units down_fit() const {
    return {k * (training * (F / (2 * D) + 1) + held_out * ridge_share() + 1), K * ridge_share() * F / N, K * F * F / (6 * D) / N};
  }
  Units down_visit() const {
    Units units{2 * k};
    units += down_fit();
    return units;
  }
  Units router_step() const {
    Units units{3 * K * sampled(), 96 * K / F * sampled()};
    units += trial();
    return units;
  }
  Units full_visit() const {
    Units units{k * (2 + 3 * training + training / 2 * (2 * u() / D + D / (2 * F) + 3) + held_out * (1 + 1.5 * 3) + 3),
                K * (4 * u() + 2 * D + u()) / N, K * std::max(D * D * D, 8 * u() * u() * u()) / 2 / (D * F * N)};
    units += down_fit();
    return units;
  }
  Units first_steps(bool fits_rows, bool full) const {
    Units units;
    if (fits_rows) units += rows_from_members();
    if (full) {
      units += residual();
      units += down_visit();
    }
    return units;
  }

  // int64 sums of one expert.
  double down_reduced() const { return F * F + F * D; }
  double full_reduced() const { return F / u() * 4 * u() * u() + D * D + 2 * F * D + down_reduced(); }
};

/// How many candidates of a recipe go through the first steps, and how many through all.
struct Candidates {
  double first = 1, all = 1;
};

}  // namespace

ModelSizes sizes_of(const ModelDescription& m, double total_bytes, double bytes_a_weight) {
  ModelSizes sizes;
  sizes.name = m.family;
  sizes.layers = m.layers;
  sizes.moe_layers = static_cast<int64_t>(m.moe_layers().size());
  sizes.hidden = m.hidden_size;
  sizes.attention_weights = of(m.hidden_size * m.head_size * (2 * m.heads + 2 * m.key_value_heads));
  sizes.attention_pair = of(2 * m.heads * m.head_size);
  sizes.dense_intermediate = m.dense_intermediate;
  sizes.shared_intermediate = m.shared_intermediate;
  sizes.experts = m.experts;
  sizes.top_k = m.routing.top_k;
  sizes.expert_intermediate = m.expert_intermediate;
  sizes.expert_bytes = 3 * of(m.hidden_size * m.expert_intermediate) * bytes_a_weight;
  sizes.router_row_bytes = of(m.hidden_size) * bytes_a_weight;
  sizes.total_bytes = total_bytes;
  return sizes;
}

void set_rate(Machine& machine, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  const std::string name = assignment.substr(0, equals), text = equals == std::string::npos ? "" : assignment.substr(equals + 1);
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const std::string hint = "give one of ranks, half, single (TFLOP/s a rank), efficiency, read, write, copy, broadcast, reduce (GB/s)";
  if (text.empty() || *end != '\0' || !(value > 0) || !std::isfinite(value)) {
    throw UserError("--machine " + assignment + " is not NAME=NUMBER with a number above 0", hint);
  }
  if (name == "ranks") {
    if (value != std::floor(value) || value > 1e6) throw UserError("--machine " + assignment + ": ranks is a whole number", hint);
    machine.ranks = static_cast<int64_t>(value);
    return;
  }
  struct Rate {
    const char* name;
    double Machine::*rate;
  };
  for (const Rate& rate : {Rate{"half", &Machine::half}, Rate{"single", &Machine::single}, Rate{"efficiency", &Machine::efficiency},
                           Rate{"read", &Machine::read}, Rate{"write", &Machine::write}, Rate{"copy", &Machine::copy},
                           Rate{"broadcast", &Machine::broadcast}, Rate{"reduce", &Machine::reduce}}) {
    if (name != rate.name) continue;
    machine.*rate.rate = value;
    return;
  }
  throw UserError("--machine " + assignment + ": there is no rate '" + name + "'", hint);
}

std::string machine_text(const Machine& machine) {
  char text[160];
  std::snprintf(text, sizeof text, "%lld rank%s of %g TFLOP/s (float32: %g; %g %% of it), %g GB/s read, %g GB/s written",
                static_cast<long long>(machine.ranks), machine.ranks == 1 ? "" : "s", machine.half, machine.single,
                100 * machine.efficiency, machine.read, machine.write);
  return text;
}

Cost cost_of(const ModelSizes& m, const Workload& work) {
  const double D = of(m.hidden), F = of(m.expert_intermediate), E = of(m.experts), k = of(m.top_k), K = of(work.kept);
  const double N = of(work.sequences * work.length), moe = of(m.moe_layers), dense = of(m.layers) - moe;
  const bool on_all = work.statistics.has(Statistic::output_sum);
  const double attention = N * m.attention_weights + of(work.sequences) * of(work.length) * (of(work.length) + 1) / 2 * m.attention_pair;
  const double around =
      of(m.layers) * attention + dense * N * 3 * D * of(m.dense_intermediate) + moe * N * 3 * D * of(m.shared_intermediate);
  const double experts = on_all ? 2 * E + k : 3 * k;

  Cost cost;
  cost.sweep_operations = 2 * (around + moe * N * D * (E + experts * F));
  if (work.statistics.has(Statistic::token_output_gram) || work.statistics.has(Statistic::output_cka)) {
    const double sample = std::min(N, of(work.sample));
    cost.sample_operations = 2 * moe * sample * E * (3 * D * F + D * E / 2);
  }
  cost.read_bytes = m.total_bytes;
  cost.reduced_bytes = moe * 8 * (1 + E + 2 * (5 * E + E * E + (on_all ? E * F : 0)));
  cost.shard_bytes = moe * K * (m.expert_bytes + m.router_row_bytes);
  cost.output_bytes = m.total_bytes - moe * (E - K) * (m.expert_bytes + m.router_row_bytes);
  if (!needs_tokens(work.recipe)) return cost;

  const bool full = work.recipe.reconstruction == Reconstruction::full, fits_rows = work.recipe.router == RouterMerge::fitted;
  const double share = full && N * early_share >= fewest_early ? early_share : 1;
  const Layer layer{D, F, K, k, N, most_sampled}, early{D, F, K, k, N * share, most_sampled_early};
  const double rounds = of(work.recipe.rounds);
  const Candidates candidates = work.recipe.method == "auto" ? Candidates{6, 2} : Candidates{};  // four ranked, two of them made
  Units first = layer.trial(), all;
  double first_reduced = (fits_rows ? D * D + K * D : 0) + (full ? K * layer.down_reduced() : 0), all_reduced = 0;
  first += early.first_steps(fits_rows, full) * share;
  if (share < 1) {
    Units round = early.router_step();
    round += early.residual();
    round += early.full_visit();
    first += round * share;
    first += layer.trial();
    first_reduced += 60 * K * D + K * layer.full_reduced();
  }
  if (work.recipe.reconstruction != Reconstruction::none) {
    all += layer.router_step();
    all_reduced += 60 * K * D;  // of Adam
  }
  if (full) {
    all += layer.residual();
    all += layer.full_visit() * rounds;
    all_reduced += rounds * K * layer.full_reduced();
  }
  Units units = first * candidates.first;
  units += all * candidates.all;
  const double operations = 2 * moe * D * F * N;
  cost.reconstruction_operations = operations * units.typed;
  cost.solving_operations = operations * units.single;
  cost.factorisations = operations * units.factorisations;
  cost.reduced_bytes += 8 * moe * (first_reduced * candidates.first + all_reduced * candidates.all);
  if (work.recipe.propagate == Propagate::compressed) cost.reconstruction_operations += 2 * (around + moe * N * D * (K + 3 * k * F));
  return cost;
}

RunEstimate estimate(const ModelSizes& m, const Cost& cost, const Machine& machine) {
  constexpr double tera = 1e12, giga = 1e9;
  const double P = of(machine.ranks), half = machine.half * tera * machine.efficiency, single = machine.single * tera * machine.efficiency;
  RunEstimate result;
  const double read = cost.read_bytes / (machine.read * giga), copied = cost.read_bytes / P / (machine.copy * giga);
  const double broadcast = machine.ranks > 1 ? cost.read_bytes / (machine.broadcast * giga) : 0;
  const double reduced = machine.ranks > 1 ? cost.reduced_bytes / (machine.reduce * giga) : 0;
  const double computed = (cost.sweep_operations + cost.sample_operations + cost.reconstruction_operations) / P / half +
                          (cost.solving_operations / P + cost.factorisations) / single;
  result.sweep = {{"reading", read},
                  {"copying", copied},
                  {"broadcast", broadcast},
                  {"computing and reducing", computed + reduced},
                  {"writing shards", cost.shard_bytes / (machine.write * giga)}};
  const auto longest = std::max_element(result.sweep.begin(), result.sweep.end(),
                                        [](const StageTime& a, const StageTime& b) { return a.seconds < b.seconds; });
  result.limit = longest->resource;
  // The first layer comes to all ranks before anything can be computed; its owner alone copies it.
  const double first = (read + copied * P + broadcast) / of(m.layers);
  result.sweep_seconds = longest->seconds + first;
  result.assembly_seconds = cost.output_bytes / (machine.write * giga);
  result.floor = read + result.assembly_seconds;
  return result;
}

}  // namespace hcsmoe
