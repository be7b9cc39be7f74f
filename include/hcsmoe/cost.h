#pragma once
// A model of what a run costs, by arithmetic alone: operations, bytes moved, and the seconds they take on a given machine, with the
// resource that limits each stage. `inspect` prints it; docs/performance.md has it for published models and holds a measured run against
// it. Letters: D hidden size, F expert intermediate size, E experts, K kept, k top-k, L layers, S sequences of T tokens, N = S T, P ranks.

#include <cstdint>
#include <string>
#include <vector>

#include "hcsmoe/config.h"
#include "hcsmoe/families.h"
#include "hcsmoe/statistics.h"

namespace hcsmoe {

/// What of a model the cost depends on. Attention is given by its products, so that every kind of it can be.
struct ModelSizes {
  std::string name;
  int64_t layers = 0, moe_layers = 0;
  int64_t hidden = 0;               // D
  double attention_weights = 0;     // of a layer's projections: multiply-adds a token
  double attention_pair = 0;        // multiply-adds of a query that sees a key: heads x (channels of keys + of values)
  int64_t dense_intermediate = 0;   // of the L - moe_layers other layers
  int64_t shared_intermediate = 0;  // 0: no shared expert
  int64_t experts = 0, top_k = 0;   // E, k
  int64_t expert_intermediate = 0;  // F
  double expert_bytes = 0;          // of one expert, as stored
  double router_row_bytes = 0;      // of one row, as stored
  double total_bytes = 0;           // of all tensors, as stored
};
ModelSizes sizes_of(const ModelDescription&, double total_bytes, double bytes_a_weight);

/// What is done to it.
struct Workload {
  int64_t sequences = 32, length = 2048;  // S, T: full causal attention
  int64_t kept = 0;                       // K
  StatisticSet statistics;                // collected; empty: sums of the routed tokens only
  int64_t sample = 0;                     // tokens of the statistics of single tokens
  Recipe recipe;                          // reconstruction, router, rounds, propagate; method auto
};

/// Rates of a node. The default is a node of eight A100 (SXM, 40 or 80 GB). Peaks of the GPU and the width of its links are NVIDIA's
/// figures; what is reached of them, and the disks, are assumptions that a user replaces by what they measured.
struct Machine {
  int64_t ranks = 8;
  double half = 312;        // TFLOP/s a rank, dense products of bfloat16
  double single = 19.5;     // of float32: what reconstruction solves in
  double efficiency = 0.6;  // share of these that is reached
  double read = 10;         // GB/s of the node's disks
  double write = 5;
  double copy = 20;        // GB/s a rank, host to device: PCIe 4.0 x16 has 32
  double broadcast = 200;  // GB/s into each rank: NVLink has 300
  double reduce = 100;     // GB/s of sums a rank
};
/// Sets one rate: "read=3.5". UserError: no such name, or not a positive number.
void set_rate(Machine&, const std::string& assignment);
/// "8 ranks of 312 TFLOP/s, 10 GB/s read, 5 GB/s written"
std::string machine_text(const Machine&);

/// All ranks together, whatever their number. Operations: a multiply-add is two.
struct Cost {
  double sweep_operations = 0;           // attention, routers, experts on all tokens: what run.json calls operations
  double sample_operations = 0;          // outputs of all experts on the sampled tokens
  double reconstruction_operations = 0;  // docs/reconstruction.md, "Cost": products in the type of computation; dealt over the ranks
  double solving_operations = 0;         // of its equations, in float32; dealt over the ranks
  double factorisations = 0;             // of its equations, which are waited for on every rank
  double read_bytes = 0;                 // the checkpoint, once
  double reduced_bytes = 0;              // int64 sums, on each rank
  double shard_bytes = 0;                // compressed layers in WORK
  double output_bytes = 0;
};
Cost cost_of(const ModelSizes&, const Workload&);

/// Seconds that a resource is busy in the sweep. Weights are copied by their owners, L / P layers each, and broadcast to all. On one rank
/// nothing is broadcast or reduced.
struct StageTime {
  std::string resource;  // "reading", "copying", "broadcast", "computing and reducing" (which take turns), "writing shards"
  double seconds = 0;
};
struct RunEstimate {
  std::vector<StageTime> sweep;  // which overlap
  std::string limit;             // the longest of them
  double sweep_seconds = 0;      // the longest, and the first layer's reading, copying and broadcast, which overlap nothing
  double assembly_seconds = 0;   // writing the output; shards come from the page cache
  double total() const { return sweep_seconds + assembly_seconds; }
  double floor = 0;  // reading the checkpoint once, then writing the output once
};
RunEstimate estimate(const ModelSizes&, const Cost&, const Machine&);

}  // namespace hcsmoe
