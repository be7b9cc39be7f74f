// Batches of passages through the layer sweep of each model, and what is measured of them.

#include <algorithm>
#include <cstring>
#include <map>

#include "evaluation/compressed_block.h"
#include "evaluation/passages.h"
#include "evaluation/row_measures.h"
#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

constexpr double bytes_of_a_batch = 4e9;  // of a rank's hidden states and the buffers of the sweep, where batch_tokens is not given

int64_t batch_tokens(const Config& config, const ModelDescription& model) {
  if (config.evaluation.batch_tokens > 0) return config.evaluation.batch_tokens;
  const double row = 4.0 * static_cast<double>(6 * model.hidden_size + 3 * model.heads * model.head_size);  // bytes of a token
  return std::max<int64_t>(1, static_cast<int64_t>(bytes_of_a_batch / row));
}

/// Passages [first, end) of each batch: as many as have `tokens` tokens together, at least one.
std::vector<std::pair<size_t, size_t>> batches_of(const std::vector<Passage>& passages, int64_t tokens) {
  std::vector<std::pair<size_t, size_t>> batches;
  int64_t filled = 0;
  for (size_t i = 0; i < passages.size(); ++i) {
    if (batches.empty() || filled + passages[i].ids.numel() > tokens) {
      batches.emplace_back(i, i);
      filled = 0;
    }
    filled += passages[i].ids.numel();
    batches.back().second = i + 1;
  }
  return batches;
}

/// The passages of a batch that this rank reads: contiguous, so that the ranks have like numbers of tokens.
std::vector<const Passage*> share_of_batch(const std::vector<Passage>& passages, std::pair<size_t, size_t> batch, const Ranks& ranks) {
  int64_t all = 0, before = 0;
  for (size_t i = batch.first; i < batch.second; ++i) all += passages[i].ids.numel();
  std::vector<const Passage*> mine;
  for (size_t i = batch.first; i < batch.second; ++i) {
    const int64_t middle = before + passages[i].ids.numel() / 2;
    if (std::min<int64_t>(middle * ranks.size() / all, ranks.size() - 1) == ranks.rank()) mine.push_back(&passages[i]);
    before += passages[i].ids.numel();
  }
  return mine;
}

/// Rows of the joined passages that are measured, and the tokens that are asked for there: at each row the passage's next token, at its
/// last row the last tokens of its continuations.
struct Questions {
  std::vector<int64_t> rows;
  RowTargets targets;

  explicit Questions(const std::vector<const Passage*>& passages) {
    int64_t first = 0;
    for (const Passage* passage : passages) {
      const int64_t length = passage->ids.numel();
      const auto* ids = static_cast<const int32_t*>(passage->ids.const_data_ptr());
      for (int64_t r = passage->first_row; r < length; ++r) {
        rows.push_back(first + r);
        if (r + 1 < length) targets.tokens.push_back(ids[r + 1]);
        if (r + 1 == length) {
          for (const Continuation& continuation : passage->continuations) targets.tokens.push_back(continuation.last);
        }
        targets.first.push_back(targets.tokens.size());
      }
      first += length;
    }
  }
};

/// Puts what the rows' measures say about each passage into its places.
void answer(const std::vector<const Passage*>& passages, const RowMeasures& measures, std::vector<double>& answers) {
  size_t row = 0, target = 0;
  for (const Passage* passage : passages) {
    const auto rows = static_cast<size_t>(passage->ids.numel() - passage->first_row);
    const double* const next = measures.log_probability.data() + target;  // of the passage's own tokens: one fewer than rows
    if (passage->window) {
      double log_likelihood = 0, divergence = 0, agreements = 0;
      for (size_t i = 0; i + 1 < rows; ++i) log_likelihood += next[i];
      for (size_t r = row; r < row + rows && !measures.divergence.empty(); ++r) {
        divergence += measures.divergence[r];
        agreements += measures.agrees[r];
      }
      answers[passage->answer + window_log_likelihood] = log_likelihood;
      answers[passage->answer + window_divergence] = divergence;
      answers[passage->answer + window_agreements] = agreements;
    }
    for (size_t c = 0; c < passage->continuations.size(); ++c) {
      const Continuation& continuation = passage->continuations[c];
      double sum = next[rows - 1 + c];
      for (size_t i = rows - static_cast<size_t>(continuation.tokens); i + 1 < rows; ++i) sum += next[i];
      answers[continuation.answer] = sum;
    }
    row += rows;
    target += rows - 1 + passage->continuations.size();
  }
}

FinalRows read_passages(const EvaluatedModel& evaluated, const Compute& compute, const std::vector<const Passage*>& passages,
                        const Questions& questions, const Ranks& ranks, const std::function<void()>& after_layer) {
  std::map<int64_t, const LayerPlan*> plan_of;
  if (evaluated.plan) {
    for (const LayerPlan& layer : evaluated.plan->layers) plan_of[layer.layer] = &layer;
  }
  std::vector<at::Tensor> sequences;
  for (const Passage* passage : passages) sequences.push_back(passage->ids);
  LayerSweep sweep(evaluated.checkpoint, evaluated.model, compute, std::move(sequences),
                   layer_weights(evaluated.checkpoint, evaluated.model, compute, ranks));
  while (sweep.next_layer() < evaluated.model.layers) {
    const auto planned = plan_of.find(sweep.next_layer());
    if (planned == plan_of.end()) {
      sweep.run_layer();
    } else {
      const bool aligned = evaluated.units && !evaluated.units->empty();
      const auto l = static_cast<size_t>(planned->second - evaluated.plan->layers.data());
      const SparseBlock block = compressed_block(evaluated.checkpoint, evaluated.model, *planned->second, evaluated.plan->recipe.router,
                                                 aligned ? evaluated.units->at(l) : LayerUnits{}, compute.device);
      sweep.run_layer(nullptr, &block);
    }
    after_layer();
  }
  return sweep.final_rows(questions.rows);
}

TextMeasures text_measures(const TextWindows& text, const std::vector<double>& answers, int64_t length, bool has_reference) {
  TextMeasures result;
  result.file = text.file;
  result.windows = static_cast<int64_t>(text.lengths.size());
  result.length = length;
  std::vector<double> losses, scored, divergences, agreements, positions;
  for (size_t w = 0; w < text.lengths.size(); ++w) {
    const double* const of_window = answers.data() + text.answer + w * window_answers;
    losses.push_back(-of_window[window_log_likelihood]);
    divergences.push_back(of_window[window_divergence]);
    agreements.push_back(of_window[window_agreements]);
    scored.push_back(static_cast<double>(text.lengths[w] - 1));
    positions.push_back(static_cast<double>(text.lengths[w]));
    result.negative_log_likelihood += losses.back();
    result.tokens += text.lengths[w] - 1;
    result.positions += text.lengths[w];
  }
  const Estimate loss = ratio_of_sums(losses, scored);
  result.perplexity = {std::exp(loss.value), std::exp(loss.value) * loss.error};
  if (has_reference) {
    result.divergence = ratio_of_sums(divergences, positions);
    result.agreement = ratio_of_sums(agreements, positions);
  }
  return result;
}

TaskMeasures task_measures(const Task& task, const std::vector<double>& answers) {
  TaskMeasures result{task.file, task.name, static_cast<int64_t>(task.questions.size()), {}, {}, {}};
  int64_t right = 0, normalised_right = 0;
  bool has_normalised = true;
  for (size_t q = 0; q < task.questions.size(); ++q) {
    const Question& question = task.questions[q];
    std::vector<double> values, normalised;
    for (size_t c = 0; c < question.choices.size(); ++c) {
      values.push_back(answers[task.answers[q][c]]);
      normalised.push_back(values.back() / static_cast<double>(characters(question.choices[c])));
    }
    has_normalised = has_normalised && !question.several_contexts;
    right += std::max_element(values.begin(), values.end()) - values.begin() == question.answer;
    normalised_right += std::max_element(normalised.begin(), normalised.end()) - normalised.begin() == question.answer;
    result.log_likelihoods.push_back(std::move(values));
  }
  result.accuracy = share_of_right(right, result.items);
  if (has_normalised) result.normalised_accuracy = share_of_right(normalised_right, result.items);
  return result;
}

ModelMeasures model_measures(const Workload& work, const std::vector<double>& answers, int64_t length, bool has_reference) {
  ModelMeasures result;
  for (const TextWindows& text : work.texts) result.texts.push_back(text_measures(text, answers, length, has_reference));
  std::vector<Estimate> accuracies, normalised;
  for (const Task& task : work.tasks) {
    result.tasks.push_back(task_measures(task, answers));
    accuracies.push_back(result.tasks.back().accuracy);
    normalised.push_back(result.tasks.back().normalised_accuracy);
  }
  result.mean_accuracy = mean_of(accuracies);
  result.mean_normalised_accuracy = mean_of(normalised);
  return result;
}

/// That the models can be compared token by token: one vocabulary, and the same ids for the same text.
void check_same_tokens(const Config& config, const Workload& work, const EvaluatedModel& reference, const EvaluatedModel& other) {
  const auto& folder = reference.checkpoint.folder();
  const auto& other_folder = other.checkpoint.folder();
  if (other_folder == folder) return;
  const std::string hint = "a model can only be compared with one of the same tokenizer: see evaluation.reference";
  if (other.model.vocabulary != reference.model.vocabulary) {
    throw UserError(folder.string() + " has a vocabulary of " + std::to_string(reference.model.vocabulary) + " tokens, " +
                        other_folder.string() + " one of " + std::to_string(other.model.vocabulary),
                    hint);
  }
  if (!std::filesystem::exists(other_folder / "tokenizer.json")) return;  // that of the reference serves
  const Workload of_other = make_workload(config, other_folder, other.model);
  const bool same = std::equal(work.passages.begin(), work.passages.end(), of_other.passages.begin(), of_other.passages.end(),
                               [](const Passage& a, const Passage& b) { return a.first_row == b.first_row && a.ids.equal(b.ids); });
  if (!same)
    throw UserError("the tokenizers of " + folder.string() + " and " + other_folder.string() + " give other ids for the same text", hint);
}

}  // namespace

std::vector<ModelMeasures> evaluate_models(const Config& config, const std::vector<EvaluatedModel>& models, const Compute& compute,
                                           const Ranks& ranks, Log& log) {
  const EvaluatedModel& reference = models.front();
  Workload work;
  ranks.on_all([&] {
    work = make_workload(config, reference.checkpoint.folder(), reference.model);
    for (const EvaluatedModel& other : models) check_same_tokens(config, work, reference, other);
  });
  const auto batches = batches_of(work.passages, batch_tokens(config, reference.model) * ranks.size());
  int64_t tokens = 0, layers = 0;
  for (const Passage& passage : work.passages) tokens += passage.ids.numel();
  for (const EvaluatedModel& model : models) layers += model.model.layers;

  // Each number goes to its own place, so that sums are taken in one order whatever rank it comes from.
  std::vector<std::vector<double>> answers(models.size(), std::vector<double>(work.answers, 0));
  {
    Progress progress(log, "evaluation", layers * static_cast<int64_t>(batches.size()), "layers", "tokens");
    const double tokens_a_layer = static_cast<double>(tokens) * static_cast<double>(models.size()) /
                                  static_cast<double>(layers * static_cast<int64_t>(std::max<size_t>(1, batches.size())));
    const auto after_layer = [&] {
      progress.step();
      progress.add_detail(tokens_a_layer);
    };
    const auto all_batches = [&] {
      for (const auto& batch : batches) {
        const auto passages = share_of_batch(work.passages, batch, ranks);
        const Questions questions(passages);
        FinalRows first;
        for (size_t m = 0; m < models.size(); ++m) {
          FinalRows rows = read_passages(models[m], compute, passages, questions, ranks, after_layer);
          answer(passages, measure_rows(rows, m == 0 ? nullptr : &first, questions.targets, compute), answers[m]);
          if (m == 0) first = std::move(rows);
        }
      }
    };
    // Where GPUs exchange weights, a rank that failed must not wait here for others, which wait for its part: its error ends them.
    ranks.device() ? all_batches() : ranks.on_all(all_batches);
  }
  std::vector<ModelMeasures> results;
  const int64_t length = config.evaluation.length > 0 ? config.evaluation.length : config.calibration.length;
  for (size_t m = 0; m < models.size(); ++m) {
    std::vector<int64_t> bits(work.answers);
    std::memcpy(bits.data(), answers[m].data(), bits.size() * sizeof(double));
    ranks.all_reduce_sum(bits);  // all other ranks have zero bits there
    std::memcpy(answers[m].data(), bits.data(), bits.size() * sizeof(double));
    results.push_back(model_measures(work, answers[m], length, m > 0));
  }
  return results;
}

}  // namespace hcsmoe
