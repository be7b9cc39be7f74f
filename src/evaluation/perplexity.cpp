#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"
#include "hcsmoe/evaluation.h"

namespace hcsmoe {

double Perplexity::value() const { return std::exp(negative_log_likelihood / static_cast<double>(tokens)); }

std::vector<Perplexity> evaluate_perplexity(const Config& config, const Checkpoint& checkpoint, const ModelDescription& model,
                                            const Compute& compute, const Ranks& ranks, const std::function<void(int64_t)>& after_layer) {
  const int64_t length = config.evaluation.length > 0 ? config.evaluation.length : config.calibration.length;
  std::vector<Perplexity> results;
  std::vector<at::Tensor> windows;
  std::vector<size_t> file_of_window;
  ranks.on_all([&] {
    for (const auto& file : config.evaluation.perplexity) {
      const at::Tensor ids = token_stream({file}, config.calibration.text_key, config.calibration.add_bos, config.model, model.vocabulary);
      if (ids.numel() < 2) throw UserError(file.string() + ": has " + std::to_string(ids.numel()) + " tokens, perplexity needs at least 2");
      Perplexity result{file, 0, length, 0, 0};
      for (int64_t begin = 0; begin + 1 < ids.numel(); begin += length) {  // a last window of one token has nothing to predict
        windows.push_back(ids.narrow(0, begin, std::min(length, ids.numel() - begin)));
        file_of_window.push_back(results.size());
        ++result.windows;
        result.tokens += windows.back().numel() - 1;
      }
      results.push_back(result);
    }
  });

  const Share share = share_of(static_cast<int64_t>(windows.size()), ranks);
  LayerSweep sweep(checkpoint, model, compute, {windows.begin() + share.first, windows.begin() + share.first + share.number});
  while (sweep.next_layer() < model.layers) {
    sweep.run_layer();
    after_layer(sweep.tokens());
  }
  // Every window's value goes to its own place, so that the sum is taken in one order on every rank.
  const std::vector<double> mine = sweep.negative_log_likelihoods();
  std::vector<int64_t> bits(windows.size(), 0);
  std::memcpy(bits.data() + share.first, mine.data(), mine.size() * sizeof(double));
  ranks.all_reduce_sum(bits);
  for (size_t w = 0; w < windows.size(); ++w) {
    double value = 0;
    std::memcpy(&value, &bits[w], sizeof value);
    results[file_of_window[w]].negative_log_likelihood += value;
  }
  return results;
}

Share share_of(int64_t count, const Ranks& ranks) {
  const int64_t P = ranks.size(), r = ranks.rank(), each = count / P, more = count % P;
  return {r * each + std::min(r, more), each + (r < more ? 1 : 0)};
}

}  // namespace hcsmoe
