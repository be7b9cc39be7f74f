#pragma once
// What the models read, and what is asked of it: windows of texts, and the choices of multiple-choice questions after their contexts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hcsmoe/calibration.h"
#include "hcsmoe/config.h"
#include "hcsmoe/evaluation.h"

namespace hcsmoe {

/// A choice after its context. The passage holds both but the choice's last token, which nothing follows.
struct Continuation {
  int64_t tokens = 0;  // of the choice
  int32_t last = 0;    // its last token
  size_t answer = 0;   // where its log-likelihood goes
};

/// A sequence, read on its own. Rows from `first_row` on are measured. Of a window these are all; choices that differ in their last token
/// only share a passage.
struct Passage {
  at::Tensor ids;  // int32 [T]
  int64_t first_row = 0;
  bool window = false;
  size_t answer = 0;                        // of a window: where its numbers go, in the order of WindowAnswer
  std::vector<Continuation> continuations;  // of a context
};

enum WindowAnswer : size_t { window_log_likelihood, window_divergence, window_agreements, window_answers };

struct TextWindows {
  std::filesystem::path file;
  std::vector<int64_t> lengths;  // of its windows
  size_t answer = 0;             // of the first window; the others follow
};

/// A multiple-choice file. A line is an object with "context", "choices" (two or more), "answer" (index of the right one, from 0), and
/// optionally "delimiter", which stands between context and choice and is not counted as the choice's length. Other keys are ignored.
struct Question {
  std::string delimiter;
  std::vector<std::string> contexts;  // of each choice; all equal, unless the line has "contexts"
  std::vector<std::string> choices;
  bool several_contexts = false;
  int64_t answer = 0;
  std::string place;  // "FILE, line 7"
};
struct Task {
  std::filesystem::path file;
  std::string name;
  std::vector<Question> questions;
  std::vector<std::vector<size_t>> answers;  // where the log-likelihood of each choice goes
};
/// UserError that names the line: not JSON, a key is missing or of another type, answer out of range, an empty choice.
Task read_task(const std::filesystem::path& file);

struct Workload {
  std::vector<Passage> passages;
  std::vector<TextWindows> texts;
  std::vector<Task> tasks;
  size_t answers = 0;  // numbers that a model is to give
};
/// Of config.evaluation, with the tokenizer of the model in `folder`.
Workload make_workload(const Config&, const std::filesystem::path& folder, const ModelDescription&);

/// Context and continuation as lm-evaluation-harness joins them: blanks at the end of the context belong to the continuation; both are
/// tokenised together, and the context's own tokens are counted off; an empty context is BOS, or EOS where there is none. The model reads
/// at most `max_length` tokens, the last ones. bos: put before the text, unless the text begins with it.
struct TokenisedChoice {
  std::vector<int32_t> ids;  // without the last token
  int64_t tokens = 0;        // of the continuation
  int32_t last = 0;
};
TokenisedChoice tokenise_choice(const Tokenizer&, std::optional<int32_t> bos, const std::string& context, const std::string& continuation,
                                int64_t max_length);

/// Bytes of blanks, as Python's str.rstrip takes them off, at the end of UTF-8 text.
size_t trailing_blanks(std::string_view text);
/// Code points of UTF-8 text.
size_t characters(std::string_view text);

}  // namespace hcsmoe
