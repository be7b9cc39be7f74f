// How a rank computes: type of the products, and its share of the node's cores.

#include <ATen/Parallel.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "forward/kernels.h"
#include "hcsmoe/error.h"
#include "hcsmoe/forward.h"

namespace hcsmoe {
namespace {

bool processor_multiplies_bfloat16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

struct Place {
  char host[256] = {};
  cpu_set_t cores;  // that this process may run on
};

Place this_place() {
  Place place;
  gethostname(place.host, sizeof place.host - 1);
  CPU_ZERO(&place.cores);
  if (sched_getaffinity(0, sizeof place.cores, &place.cores) != 0) CPU_SET(0, &place.cores);
  return place;
}

/// The cores that the ranks of this node may run on, all together, divided by their number. mpirun may have bound each rank to cores of its
/// own, or a container all of them to the same few: the union is right for both.
int cores_of_this_rank(const Ranks& ranks) {
  const Place mine = this_place();
  const auto gathered = ranks.gather(std::string(reinterpret_cast<const char*>(&mine), sizeof mine), 0);
  std::string shares;  // one int a rank
  for (const std::string& bytes : gathered) {
    Place place, other;
    std::memcpy(&place, bytes.data(), sizeof place);
    int ranks_there = 0;
    cpu_set_t all;
    CPU_ZERO(&all);
    for (const std::string& other_bytes : gathered) {
      std::memcpy(&other, other_bytes.data(), sizeof other);
      if (std::strcmp(place.host, other.host) != 0) continue;
      ++ranks_there;
      CPU_OR(&all, &all, &other.cores);
    }
    const int share = std::max(1, CPU_COUNT(&all) / ranks_there);
    shares.append(reinterpret_cast<const char*>(&share), sizeof share);
  }
  ranks.broadcast(shares, 0);
  int share = 1;
  std::memcpy(&share, shares.data() + static_cast<size_t>(ranks.rank()) * sizeof share, sizeof share);
  return share;
}

}  // namespace

Compute choose_compute(const DeviceConfig& config, const Checkpoint& checkpoint, const ModelDescription& model, const Ranks& ranks) {
  Compute compute;
  compute.read_ahead = config.read_ahead > 0 ? static_cast<uint64_t>(config.read_ahead) : default_read_ahead();
  if (config.dtype == ComputeDtype::bfloat16) {
    compute.dtype = at::kBFloat16;
  } else if (config.dtype == ComputeDtype::automatic) {
    const std::string name = expert_tensor_name(model, model.moe_layers().front(), 0, ExpertPart::gate);
    const bool here = config.type == DeviceType::cuda || processor_multiplies_bfloat16();
    const bool lacking = ranks.all_reduce_max(here ? 0 : 1) != 0;
    if (checkpoint.info(name).dtype.name == "BF16" && !lacking) compute.dtype = at::kBFloat16;
  }
  const int share = cores_of_this_rank(ranks);
  compute.threads = config.threads > 0 ? config.threads : share;
  const Place place = this_place();
  compute.cores = CPU_COUNT(&place.cores);
  at::set_num_threads(compute.threads);
  if (ranks.device()) compute.device = ranks.device()->device();
  choose_kernels(compute);
  return compute;
}

std::string dtype_name(const Compute& compute) { return compute.dtype == at::kBFloat16 ? "bfloat16" : "float32"; }

}  // namespace hcsmoe
