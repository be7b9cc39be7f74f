#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "evaluation/passages.h"
#include "hcsmoe/error.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer demo = Tokenizer::load(std::string(TEST_DATA) + "/demo/model");
  return demo;
}

TokenisedChoice tokenised(const std::string& context, const std::string& continuation, int64_t max_length = 512,
                          std::optional<int32_t> bos = {}) {
  return tokenise_choice(tokenizer(), bos, context, continuation, max_length);
}

std::vector<int32_t> with_last(const TokenisedChoice& choice) {
  std::vector<int32_t> ids = choice.ids;
  ids.push_back(choice.last);
  return ids;
}

class TasksTest : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& text) {
    const auto file = folder.path() / "quiz.jsonl";
    std::ofstream(file, std::ios::binary) << text;
    return file;
  }
  std::string refusal(const std::string& text) {
    try {
      read_task(write(text));
    } catch (const UserError& error) {
      return error.what();
    }
    return "";
  }
  void expect_refused(const std::string& line, const std::string& words) {
    const std::string said = refusal("\n" + line + "\n");
    EXPECT_NE(said.find("quiz.jsonl, line 2: " + words), std::string::npos) << said;
  }
  TemporaryFolder folder;
};

TEST_F(TasksTest, LinesAreRead) {
  const Task task = read_task(write(R"({"context": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}

{"id": 7, "context": "", "choices": ["é", "b", "c"], "answer": 2, "delimiter": " "})"));
  EXPECT_EQ(task.name, "quiz");
  ASSERT_EQ(task.questions.size(), 2u);
  EXPECT_EQ(task.questions[0].choices, (std::vector<std::string>{" 4", " 5"}));
  EXPECT_EQ(task.questions[0].delimiter, "");
  EXPECT_EQ(task.questions[1].delimiter, " ");
  EXPECT_EQ(task.questions[1].answer, 2);
  EXPECT_NE(task.questions[1].place.find("line 3"), std::string::npos);
}

TEST_F(TasksTest, BadLinesAreRefusedWithTheirNumber) {
  const std::string good = R"("context": "a", "choices": ["b", "c"])";
  expect_refused("[1]", "a line must be an object, not array");
  expect_refused(R"({"choices": ["b", "c"], "answer": 0})", "no \"context\"");
  expect_refused(R"({"context": 3, "choices": ["b", "c"], "answer": 0})", "\"context\" must be a string, not number");
  expect_refused(R"({"context": "a", "answer": 0})", "no \"choices\"");
  expect_refused(R"({"context": "a", "choices": "bc", "answer": 0})", "\"choices\" must be a list of two strings or more, not string");
  expect_refused(R"({"context": "a", "choices": ["b"], "answer": 0})",
                 "\"choices\" must be a list of two strings or more, not a list of 1");
  expect_refused(R"({"context": "a", "choices": ["b", 4], "answer": 0})", "choice 1 must be a string, not number");
  expect_refused(R"({"context": "a", "choices": ["b", ""], "answer": 0})", "choice 1 is empty");
  expect_refused("{" + good + "}", "no \"answer\"");
  for (const std::string answer : {"2", "-1", "0.0", "\"0\"", "null", "true", "18446744073709551615", "-9223372036854775808"}) {
    expect_refused("{" + good + ", \"answer\": " + answer + "}",
                   "\"answer\" must be the right choice's number, from 0 to 1, not " + answer);
  }
  expect_refused("{" + good + R"(, "answer": 0, "delimiter": 1})", "\"delimiter\" must be a string");
  expect_refused("{\"context\": \"\xff\"}", "malformed UTF-8 at byte 13");
  EXPECT_NE(refusal("{\"context\"\n").find("quiz.jsonl, line 1"), std::string::npos);
  EXPECT_NE(refusal("\n \n").find("holds no questions"), std::string::npos);
}

TEST_F(TasksTest, AContextForEachChoice) {
  const Task task = read_task(write(R"({"contexts": ["Ruth", "Sam"], "choices": [" has it", " has it"], "answer": 1})"));
  EXPECT_EQ(task.questions.at(0).contexts, (std::vector<std::string>{"Ruth", "Sam"}));
  const Task one = read_task(write(R"({"context": "x", "choices": ["a", "b", "c"], "answer": 1})"));
  EXPECT_EQ(one.questions.at(0).contexts, (std::vector<std::string>{"x", "x", "x"}));
  expect_refused(R"({"contexts": ["a"], "choices": ["b", "c"], "answer": 0})",
                 "\"contexts\" must be a list of one string for each of the 2");
  expect_refused(R"({"contexts": "ab", "choices": ["b", "c"], "answer": 0})", "\"contexts\" must be a list");
  expect_refused(R"({"contexts": ["a", 1], "choices": ["b", "c"], "answer": 0})", "context 1 must be a string");
  expect_refused(R"({"context": "a", "contexts": ["a", "b"], "choices": ["b", "c"], "answer": 0})", "has \"context\" and \"contexts\"");
}

TEST_F(TasksTest, DamagedFilesAreRefusedOrRead) {
  const std::string good = R"({"context": "2 + 2 =\u00e9", "choices": [" 4", " 5", "é"], "answer": 1, "delimiter": ""})"
                           "\n";
  std::mt19937 random(5);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = good + good;
    for (int change = 0; change < 1 + i % 3; ++change) {
      const size_t at = random() % bytes.size();
      if (random() % 2)
        bytes[at] = static_cast<char>(random());
      else
        bytes.erase(at, random() % 8);
    }
    try {
      for (const Question& question : read_task(write(bytes)).questions) {
        ASSERT_GE(question.choices.size(), 2u);
        ASSERT_LT(question.answer, static_cast<int64_t>(question.choices.size()));
      }
    } catch (const UserError&) {
    }
  }
}

TEST(TokeniseChoiceTest, ContextAndContinuationAreTokenisedTogether) {
  const TokenisedChoice choice = tokenised("Now Sam has the", " white coat");
  EXPECT_EQ(with_last(choice), tokenizer().encode("Now Sam has the white coat"));
  EXPECT_EQ(choice.tokens, static_cast<int64_t>(with_last(choice).size() - tokenizer().encode("Now Sam has the").size()));
}

TEST(TokeniseChoiceTest, BlanksAtTheEndOfTheContextBelongToTheContinuation) {
  for (const std::string blanks : {" ", "  ", "\n", "\t \xc2\xa0", "\xe3\x80\x80", "\x1c"}) {
    const TokenisedChoice choice = tokenised("count to 3:" + blanks, "1 2 3");
    EXPECT_EQ(with_last(choice), tokenizer().encode("count to 3:" + blanks + "1 2 3"));
    EXPECT_EQ(choice.tokens, static_cast<int64_t>(with_last(choice).size() - tokenizer().encode("count to 3:").size()));
    EXPECT_EQ(trailing_blanks("x" + blanks), blanks.size());
  }
  EXPECT_EQ(trailing_blanks("x\xe2\x80\x8b"), 0u) << "a zero-width space is none to Python either";
  EXPECT_EQ(trailing_blanks(""), 0u);
}

TEST(TokeniseChoiceTest, AnEmptyContextIsBosOrEos) {
  const int32_t prefix = tokenizer().bos() ? *tokenizer().bos() : *tokenizer().eos();
  for (const std::string context : {"", " ", "\n\n"}) {
    std::vector<int32_t> expected = tokenizer().encode(context + "red coat");
    expected.insert(expected.begin(), prefix);
    const TokenisedChoice choice = tokenised(context, "red coat");
    EXPECT_EQ(with_last(choice), expected);
    EXPECT_EQ(choice.tokens, static_cast<int64_t>(expected.size()) - 1);
  }
}

TEST(TokeniseChoiceTest, Bos) {
  const TokenisedChoice plain = tokenised("Now Sam has the", " coat"), with = tokenised("Now Sam has the", " coat", 512, 0);
  ASSERT_EQ(with.ids.size(), plain.ids.size() + 1);
  EXPECT_EQ(with.ids[0], 0);
  EXPECT_EQ(with.tokens, plain.tokens);
}

TEST(TokeniseChoiceTest, TheBeginningIsCutOff) {
  const TokenisedChoice whole = tokenised("one two three four five six", " seven eight"),
                        cut = tokenised("one two three four five six", " seven eight", 5);
  EXPECT_EQ(cut.tokens, whole.tokens);
  ASSERT_EQ(cut.ids.size(), 5u);
  EXPECT_TRUE(std::equal(cut.ids.begin(), cut.ids.end(), whole.ids.end() - 5));
  EXPECT_EQ(cut.last, whole.last);
  const TokenisedChoice exact = tokenised("a", "b c d e", whole.tokens + 20);
  EXPECT_EQ(with_last(exact), tokenizer().encode("ab c d e"));
  EXPECT_THROW(tokenised("a", " b c d e f g h i j k l m n o p", 5), UserError);
}

TEST(TokeniseChoiceTest, Characters) {
  EXPECT_EQ(characters(""), 0u);
  EXPECT_EQ(characters("abc"), 3u);
  EXPECT_EQ(characters("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"), 3u);
}

}  // namespace
}  // namespace hcsmoe
