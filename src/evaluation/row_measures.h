#pragma once
// What is measured at single rows: log-probabilities of tokens, and how far a model's distribution is from the reference's.

#include <cstdint>
#include <vector>

#include "hcsmoe/forward.h"

namespace hcsmoe {

/// The tokens whose log-probabilities are asked for: of row r, tokens[first[r] .. first[r + 1]).
struct RowTargets {
  std::vector<size_t> first = {0};  // [rows + 1]
  std::vector<int32_t> tokens;
};

struct RowMeasures {
  std::vector<double> log_probability;  // of each target
  std::vector<double> divergence;       // of each row: KL(reference || model) in nats; empty without a reference
  std::vector<char> agrees;             // of each row: the same likeliest token; likewise
};

/// In one walk over the vocabulary, with running log-sum-exps in double. reference: may be nullptr.
RowMeasures measure_rows(const FinalRows& model, const FinalRows* reference, const RowTargets&, const Compute&);

}  // namespace hcsmoe
