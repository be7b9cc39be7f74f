#include <ATen/ops/empty.h>

#include <algorithm>
#include <map>

#include "evaluation/passages.h"
#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

void add_text(Workload& work, const Config& config, const std::filesystem::path& file, const std::filesystem::path& folder,
              const ModelDescription& model) {
  const int64_t length = config.evaluation.length > 0 ? config.evaluation.length : config.calibration.length;
  const at::Tensor ids = token_stream({file}, config.calibration.text_key, config.calibration.add_bos, folder, model.vocabulary);
  if (ids.numel() < 2) throw UserError(file.string() + ": has " + std::to_string(ids.numel()) + " tokens, perplexity needs at least 2");
  TextWindows text{file, {}, work.answers};
  for (int64_t begin = 0; begin + 1 < ids.numel(); begin += length) {  // a last window of one token has nothing to predict
    Passage window;
    window.ids = ids.narrow(0, begin, std::min(length, ids.numel() - begin));
    window.window = true;
    window.answer = work.answers;
    work.answers += window_answers;
    text.lengths.push_back(window.ids.numel());
    work.passages.push_back(std::move(window));
  }
  work.texts.push_back(std::move(text));
}

void add_task(Workload& work, Task task, const Tokenizer& tokenizer, std::optional<int32_t> bos, const ModelDescription& model) {
  std::map<std::vector<int32_t>, size_t> passage_of;
  for (const Question& question : task.questions) {
    task.answers.emplace_back();
    for (size_t c = 0; c < question.choices.size(); ++c) {
      TokenisedChoice tokens;
      try {
        tokens = tokenise_choice(tokenizer, bos, question.contexts[c], question.delimiter + question.choices[c], model.max_positions);
      } catch (const UserError& error) {
        throw UserError(question.place + ", choice " + std::to_string(task.answers.back().size()) + ": " + error.what());
      }
      const int32_t highest = std::max(tokens.last, *std::max_element(tokens.ids.begin(), tokens.ids.end()));
      if (highest >= model.vocabulary) {
        throw UserError(question.place + ": token id " + std::to_string(highest) + " is outside the model's vocabulary of " +
                            std::to_string(model.vocabulary),
                        "does tokenizer.json belong to this model?");
      }
      const auto [found, added] = passage_of.try_emplace(tokens.ids, work.passages.size());
      if (added) {
        Passage passage;
        passage.ids = at::empty({static_cast<int64_t>(tokens.ids.size())}, at::TensorOptions().dtype(at::kInt));
        std::copy(tokens.ids.begin(), tokens.ids.end(), passage.ids.mutable_data_ptr<int32_t>());
        passage.first_row = passage.ids.numel() - 1;
        work.passages.push_back(std::move(passage));
      }
      Passage& passage = work.passages[found->second];
      passage.first_row = std::min(passage.first_row, passage.ids.numel() - tokens.tokens);
      passage.continuations.push_back({tokens.tokens, tokens.last, work.answers});
      task.answers.back().push_back(work.answers++);
    }
  }
  work.tasks.push_back(std::move(task));
}

}  // namespace

Workload make_workload(const Config& config, const std::filesystem::path& folder, const ModelDescription& model) {
  Workload work;
  for (const auto& file : config.evaluation.perplexity) add_text(work, config, file, folder, model);
  if (config.evaluation.tasks.empty()) return work;
  const Tokenizer tokenizer = Tokenizer::load(folder);
  std::optional<int32_t> bos;
  if (config.calibration.add_bos == AddBos::automatic) bos = tokenizer.automatic_bos();
  if (config.calibration.add_bos == AddBos::yes) bos = tokenizer.bos();
  for (const auto& file : config.evaluation.tasks) add_task(work, read_task(file), tokenizer, bos, model);
  return work;
}

}  // namespace hcsmoe
