#pragma once
// Statistics of single tokens, which no sum over all tokens can give: collected on a sample of the calibration tokens. And statistics of
// the weights alone. Each is the same on any number of ranks and threads. Letters as in statistics.h.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "hcsmoe/forward.h"

namespace hcsmoe {

/// min(size, tokens) of the tokens 0 .. tokens, evenly spaced: i tokens / S for i in [0, S).
std::vector<int64_t> sampled_tokens(int64_t tokens, int64_t size);

/// The sampled rows of a layer's block input, on every rank. rows: float32 [N, D] of this rank's tokens, which are first_token ..
/// first_token + N of all. float32 [S, D]. Collective.
at::Tensor gather_sample(const at::Tensor& rows, int64_t first_token, const std::vector<int64_t>& sampled, const Ranks&);

/// Collects those of token_output_gram (with sample_logits) and output_cka that are asked for, from statistics.sample_input, into the
/// statistics of rank 0. Token blocks and experts are dealt to ranks. Holds outputs of all experts for a few blocks of 64 tokens (256 MiB,
/// or one block), and for output_cka a matrix of 512 x 512 an expert on rank 0. Collective.
void collect_sample_statistics(ExpertStatistics&, StatisticSet, const Checkpoint&, const ModelDescription&, const Compute&, const Ranks&);

/// What collecting these statistics takes at most, in bytes, on rank 0, which holds the most. `sample` tokens.
double sample_statistics_bytes(const ModelDescription&, StatisticSet, int64_t sample, int threads);

/// Collects those of weight_gram and weight_cka that are asked for, into the statistics of rank 0: in float64 and float32, whatever the
/// type of computation. Parts of the weights are dealt to ranks. Holds a panel of all experts' Gram matrices (256 MiB, or 64 rows) and a
/// float32 copy of one expert tensor a thread. Collective.
void collect_weight_statistics(ExpertStatistics&, StatisticSet, const Checkpoint&, const ModelDescription&, const Ranks&);

}  // namespace hcsmoe
