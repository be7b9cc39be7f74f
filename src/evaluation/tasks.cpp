// Multiple-choice files, and their choices as the tokens that a model reads.

#include <nlohmann/json.hpp>

#include "calibration/documents.h"
#include "calibration/utf8.h"
#include "evaluation/passages.h"
#include "hcsmoe/error.h"
#include "support/json.h"

namespace hcsmoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* example = R"(a line is such as {"context": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0})";

const Json& field(const Json& line, const char* key, const std::string& place) {
  const auto found = line.find(key);
  if (found == line.end()) throw UserError(place + ": no \"" + key + "\"", example);
  return *found;
}

std::string text_of(const Json& value, const std::string& what, const std::string& place) {
  if (!value.is_string()) throw UserError(place + ": " + what + " must be a string, not " + value.type_name(), example);
  return value.get<std::string>();
}

Question read_question(const std::string& bytes, const std::string& place) {
  if (const auto offset = find_malformed_utf8(bytes)) {
    throw UserError(place + ": malformed UTF-8 at byte " + std::to_string(*offset) + " of the line", "convert the file to UTF-8 (iconv)");
  }
  const Json line = parse_json(bytes, place);
  if (!line.is_object()) throw UserError(place + ": a line must be an object, not " + line.type_name(), example);
  Question question;
  question.place = place;
  if (line.contains("context") && line.contains("contexts")) throw UserError(place + ": has \"context\" and \"contexts\"", example);
  question.several_contexts = line.contains("contexts");
  const std::string context = question.several_contexts ? "" : text_of(field(line, "context", place), "\"context\"", place);
  if (line.contains("delimiter")) question.delimiter = text_of(line["delimiter"], "\"delimiter\"", place);
  const Json& choices = field(line, "choices", place);
  if (!choices.is_array() || choices.size() < 2) {
    const std::string found = choices.is_array() ? "a list of " + std::to_string(choices.size()) : choices.type_name();
    throw UserError(place + ": \"choices\" must be a list of two strings or more, not " + found, example);
  }
  for (const Json& choice : choices) {
    const std::string what = "choice " + std::to_string(question.choices.size());
    question.choices.push_back(text_of(choice, what, place));
    if (question.choices.back().empty()) throw UserError(place + ": " + what + " is empty: it has no likelihood");
  }
  question.contexts.assign(question.choices.size(), context);
  if (question.several_contexts) {
    const Json& contexts = line["contexts"];
    if (!contexts.is_array() || contexts.size() != choices.size()) {
      throw UserError(place + ": \"contexts\" must be a list of one string for each of the " + std::to_string(choices.size()) + " choices");
    }
    for (size_t c = 0; c < contexts.size(); ++c) question.contexts[c] = text_of(contexts[c], "context " + std::to_string(c), place);
  }
  const Json& answer = field(line, "answer", place);
  const auto count = static_cast<int64_t>(question.choices.size());
  if (!answer.is_number_integer() || (answer.is_number_unsigned() && answer.get<uint64_t>() >= choices.size()) ||
      answer.get<int64_t>() < 0 || answer.get<int64_t>() >= count) {
    throw UserError(place + ": \"answer\" must be the right choice's number, from 0 to " + std::to_string(count - 1) + ", not " +
                    answer.dump());
  }
  question.answer = answer.get<int64_t>();
  return question;
}

}  // namespace

Task read_task(const std::filesystem::path& file) {
  const DocumentFiles lines({file}, "");
  Task task;
  task.file = file;
  task.name = (file.extension() == ".gz" ? file.stem() : file.filename()).stem().string();
  for (const RawDocument& line : lines.raw()) {
    task.questions.push_back(read_question(line.bytes, file.string() + ", line " + std::to_string(line.line)));
  }
  if (task.questions.empty()) throw UserError(file.string() + ": holds no questions", example);
  return task;
}

size_t trailing_blanks(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t before = previous_character(text, end);
    const char32_t c = code_point_at(text, before);
    if (!is_white_space(c) && !(c >= 0x1C && c <= 0x1F)) break;
    end = before;
  }
  return text.size() - end;
}

size_t characters(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += !is_utf8_continuation(c);
  return count;
}

TokenisedChoice tokenise_choice(const Tokenizer& tokenizer, std::optional<int32_t> bos, const std::string& context,
                                const std::string& continuation, int64_t max_length) {
  const auto encode = [&](const std::string& text) {
    std::vector<int32_t> ids = tokenizer.encode(text);
    if (bos && (ids.empty() || ids.front() != *bos)) ids.insert(ids.begin(), *bos);
    return ids;
  };
  const std::string stripped = context.substr(0, context.size() - trailing_blanks(context));
  std::vector<int32_t> ids;
  size_t context_tokens = 1;
  if (stripped.empty()) {
    ids = tokenizer.encode(context + continuation);
    const std::optional<int32_t> prefix = tokenizer.bos() ? tokenizer.bos() : tokenizer.eos();
    if (!prefix) throw UserError("nothing stands before the choice: the context is empty, and no BOS or EOS token is known");
    if (ids.empty() || ids.front() != *prefix) ids.insert(ids.begin(), *prefix);
  } else {
    ids = encode(context + continuation);
    context_tokens = encode(stripped).size();
  }
  if (context_tokens >= ids.size()) {
    throw UserError("the choice has no tokens of its own: they melt into the context's", "begin the choice with a blank");
  }
  TokenisedChoice result;
  result.tokens = static_cast<int64_t>(ids.size() - context_tokens);
  if (result.tokens > max_length) {
    throw UserError("a choice of " + std::to_string(result.tokens) + " tokens; the model reads " + std::to_string(max_length));
  }
  result.last = ids.back();
  ids.pop_back();
  const auto most = static_cast<size_t>(max_length);
  result.ids.assign(ids.size() > most ? ids.end() - static_cast<std::ptrdiff_t>(most) : ids.begin(), ids.end());
  return result;
}

}  // namespace hcsmoe
