#pragma once
// Random numbers that depend on nothing but the seed, the layer and the expert.

#include <cstdint>
#include <vector>

namespace hcsmoe {

/// The first output of SplitMix64 (Steele, Lea, Flood 2014) started at `state`.
inline uint64_t split_mix(uint64_t state) {
  uint64_t z = state + 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

/// split_mix(m ^ i) for i from 0, with m = split_mix(state).
inline std::vector<uint64_t> numbered_draws(uint64_t state, int64_t count) {
  const uint64_t start = split_mix(state);
  std::vector<uint64_t> draws;
  for (int64_t i = 0; i < count; i++) draws.push_back(split_mix(start ^ static_cast<uint64_t>(i)));
  return draws;
}

/// A number for each expert: split_mix(split_mix(split_mix(seed) ^ layer) ^ expert).
inline std::vector<uint64_t> expert_draws(uint64_t seed, int64_t layer, int64_t experts) {
  return numbered_draws(split_mix(seed) ^ static_cast<uint64_t>(layer), experts);
}

}  // namespace hcsmoe
