// Calibration sequences in groups that no number of ranks divides.

#include <algorithm>

#include "hcsmoe/reconstruction.h"

namespace hcsmoe {
namespace {

constexpr int64_t most_groups = 96;  // divisible by many numbers of ranks
constexpr int64_t held_out_every = 5;

}  // namespace

SequenceShare deal_sequences(int64_t sequences, int64_t length, const Ranks& ranks) {
  const int64_t G = std::min(sequences, most_groups), P = ranks.size(), r = ranks.rank();
  const auto first_sequence = [&](int64_t group) { return group * sequences / G; };
  const auto first_group = [&](int64_t rank) { return rank * G / P; };
  SequenceShare share;
  share.first = first_sequence(first_group(r));
  share.number = first_sequence(first_group(r + 1)) - share.first;
  share.groups.first_token = share.first * length;
  for (int64_t g = first_group(r); g < first_group(r + 1); ++g) {
    share.groups.end.push_back((first_sequence(g + 1) - share.first) * length);
  }
  const bool few = sequences < held_out_every;
  for (int64_t s = share.first; s < share.first + share.number; ++s) {
    for (int64_t t = 0; t < length; ++t) {
      const bool held = few ? t * held_out_every >= length * (held_out_every - 1) : s % held_out_every == held_out_every - 1;
      share.groups.held_out.push_back(held ? 1 : 0);
    }
  }
  return share;
}

}  // namespace hcsmoe
