#pragma once
// Evaluation of a checkpoint by the same layer sweep that compresses it, on the same ranks.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "hcsmoe/config.h"
#include "hcsmoe/forward.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {

/// Perplexity of a text: its documents are joined as calibration text is (BOS as the tokenizer does, EOS after each) in file order and cut
/// into disjoint windows of `length` tokens, the last one shorter; each window is read on its own, and every token but its first counts.
struct Perplexity {
  std::filesystem::path file;
  int64_t windows = 0;
  int64_t length = 0;
  int64_t tokens = 0;                  // that count
  double negative_log_likelihood = 0;  // summed over them, natural logarithm
  double value() const;                // exp(negative_log_likelihood / tokens)
};

/// Perplexities of config.evaluation.perplexity, all in one sweep over the layers. Windows are dealt to the ranks; the result is on every
/// rank and the same for any number of them. after_layer(tokens): called on this rank after each layer. Collective.
std::vector<Perplexity> evaluate_perplexity(const Config&, const Checkpoint&, const ModelDescription&, const Compute&, const Ranks&,
                                            const std::function<void(int64_t tokens)>& after_layer);

/// This rank's contiguous share of `count` items: [first, first + number).
struct Share {
  int64_t first = 0, number = 0;
};
Share share_of(int64_t count, const Ranks&);

}  // namespace hcsmoe
