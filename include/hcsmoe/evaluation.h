#pragma once
// Evaluation by the same layer sweep that compresses, on the same ranks: a model larger than memory can be measured where it was made
// smaller. Several models are measured in one go on the same tokens; the first of them is the reference of the others.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "hcsmoe/config.h"
#include "hcsmoe/forward.h"
#include "hcsmoe/log.h"
#include "hcsmoe/merging.h"
#include "hcsmoe/plan.h"
#include "hcsmoe/ranks.h"

namespace hcsmoe {

/// A measured value and its standard error; the error is NaN where there are not two items to estimate it from.
struct Estimate {
  double value = NAN, error = NAN;
};

/// sum(numerators) / sum(denominators), with the error of a ratio of sums over independent items (here: windows):
/// sqrt(n / (n - 1) * sum_i (numerator_i - ratio * denominator_i)^2) / sum(denominators). No item: NaN.
Estimate ratio_of_sums(const std::vector<double>& numerators, const std::vector<double>& denominators);
/// The mean of right (1) and wrong (0) answers, with the error sqrt(p (1 - p) / (n - 1)), as lm-evaluation-harness gives it.
Estimate share_of_right(int64_t right, int64_t items);
/// The unweighted mean of independent values.
Estimate mean_of(const std::vector<Estimate>&);

/// A model on a text. The text's documents are joined as calibration text is (BOS as the tokenizer does, EOS after each) in file order and
/// cut into disjoint windows of `length` tokens, the last one shorter; a window is read on its own.
struct TextMeasures {
  std::filesystem::path file;
  int64_t windows = 0;
  int64_t length = 0;
  int64_t tokens = 0;                  // that count for perplexity: every token of a window but its first
  double negative_log_likelihood = 0;  // summed over them, natural logarithm
  Estimate perplexity;                 // exp(negative_log_likelihood / tokens)
  int64_t positions = 0;               // that count for the next two: every token, so also the last one's prediction
  Estimate divergence;                 // mean of KL(reference || model) of the next token, in nats. NaN: this is the reference
  Estimate agreement;                  // share of positions at which both find the same token the likeliest; of equals the smaller id
};

/// A model on multiple-choice questions, as EleutherAI's lm-evaluation-harness measures `acc` and `acc_norm`: the choice of the highest
/// log-likelihood given the context is the answer; for acc_norm the log-likelihoods are divided by the choices' lengths in characters. Of
/// equals the first. Where a question's choices have contexts of their own, the task has no acc_norm (NaN), as lm_eval's winogrande.
struct TaskMeasures {
  std::filesystem::path file;
  std::string name;  // the file's, without .jsonl
  int64_t items = 0;
  Estimate accuracy, normalised_accuracy;
  std::vector<std::vector<double>> log_likelihoods;  // of each item's choices
};

struct ModelMeasures {
  std::vector<TextMeasures> texts;                   // of evaluation.perplexity
  std::vector<TaskMeasures> tasks;                   // of evaluation.tasks
  Estimate mean_accuracy, mean_normalised_accuracy;  // of all tasks; the latter NaN if a task has none
};

/// A checkpoint, or what a plan would make of it: then every layer is merged in memory while it runs, on every rank. All must outlive the
/// evaluation.
struct EvaluatedModel {
  const Checkpoint& checkpoint;
  const ModelDescription& model;
  const Plan* plan = nullptr;
  const std::vector<LayerUnits>* units = nullptr;  // of the plan's layers; may be empty (merging.h)
};

/// Measures the models on config.evaluation. Texts are tokenised with the first model's tokenizer. Sequences are dealt to the ranks; a rank
/// holds the hidden states of evaluation.batch_tokens tokens at a time. The result is on every rank and the same for any number of them.
/// UserErrors: a file (with the line), vocabularies or tokenizers that differ between the models. Collective.
std::vector<ModelMeasures> evaluate_models(const Config&, const std::vector<EvaluatedModel>&, const Compute&, const Ranks&, Log&);

/// This rank's contiguous share of `count` items: [first, first + number).
struct Share {
  int64_t first = 0, number = 0;
};
Share share_of(int64_t count, const Ranks&);

}  // namespace hcsmoe
