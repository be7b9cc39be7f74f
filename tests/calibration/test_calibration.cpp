// From files to sequences, with a tokenizer whose ids are the letters' places in the alphabet: a = 1, EOS = 0, BOS = 30.

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "calibration/documents.h"
#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"
#include "support/files.h"
#include "test_folder.h"

namespace hcsmoe {
namespace {

using Ids = std::vector<int32_t>;

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const UserError& error) {
    return error.what();
  }
  return "no UserError";
}
#define EXPECT_USER_ERROR(statement, part) \
  EXPECT_NE(error_of([&] { statement; }).find(part), std::string::npos) << error_of([&] { statement; })

Ids values(const at::Tensor& ids) {
  const at::Tensor flat = ids.contiguous();
  return {flat.const_data_ptr<int32_t>(), flat.const_data_ptr<int32_t>() + flat.numel()};
}

class Calibration : public testing::Test {
 protected:
  Calibration() {
    nlohmann::json tokens = {{"<e>", 0}, {"<b>", 30}};
    for (int i = 1; i <= 26; ++i) tokens[std::string(1, static_cast<char>('a' + i - 1))] = i;
    folder.write("tokenizer.json",
                 nlohmann::json({{"model", {{"type", "BPE"}, {"vocab", tokens}, {"merges", nlohmann::json::array()}}}}).dump());
    folder.write("tokenizer_config.json", R"({"eos_token": "<e>", "bos_token": "<b>"})");
    config.sequences = 1;
    config.length = 4;
  }
  std::filesystem::path write_gz(const std::string& name, const std::string& content) const {
    const std::filesystem::path file = folder.path() / name;
    gzFile stream = gzopen(file.c_str(), "wb");
    gzwrite(stream, content.data(), static_cast<unsigned>(content.size()));
    gzclose(stream);
    return file;
  }
  Ids ids() const { return values(calibration_ids(config, folder.path(), vocabulary)); }
  Ids stream(const std::filesystem::path& file, AddBos add_bos = AddBos::no) const {
    return values(token_stream({file}, config.text_key, add_bos, folder.path(), vocabulary));
  }

  TestFolder folder;
  CalibrationConfig config;
  int64_t vocabulary = 32;
};

TEST_F(Calibration, DocumentsEndWithEosAndAreCut) {
  config.files = {folder.write("a.txt", "abcdefg")};
  config.sequences = 2;
  EXPECT_EQ(ids(), (Ids{1, 2, 3, 4, 5, 6, 7, 0}));
  EXPECT_EQ(calibration_ids(config, folder.path(), vocabulary).sizes().vec(), (std::vector<int64_t>{2, 4}));
  config.length = 3;
  EXPECT_EQ(ids(), (Ids{1, 2, 3, 4, 5, 6}));
}

TEST_F(Calibration, Bos) {
  config.files = {folder.write("a.txt", "ab")};
  config.add_bos = AddBos::yes;
  EXPECT_EQ(ids(), (Ids{30, 1, 2, 0}));
  config.length = 3;
  config.add_bos = AddBos::automatic;
  EXPECT_EQ(ids(), (Ids{1, 2, 0}));
  folder.write("tokenizer_config.json", R"({"eos_token": "<e>", "bos_token": "<b>", "add_bos_token": true})");
  EXPECT_EQ(ids(), (Ids{30, 1, 2}));
  config.add_bos = AddBos::no;
  EXPECT_EQ(ids(), (Ids{1, 2, 0}));
  folder.write("tokenizer_config.json", R"({"eos_token": "<e>"})");
  config.add_bos = AddBos::yes;
  EXPECT_USER_ERROR(ids(), "no BOS token");
}

TEST_F(Calibration, PackedFilesHoldTheSame) {
  const std::string lines =
      "{\"text\": \"ab\"}\r\n\n  \n{\"other\": 1, \"text\": \"\"}\n{\"text\": \"c\"}";  // blank lines, no newline at the end
  const Ids expected = {1, 2, 0, 3, 0};
  EXPECT_EQ(stream(folder.write("a.jsonl", lines)), expected);
  EXPECT_EQ(stream(write_gz("a.jsonl.gz", lines)), expected);
  EXPECT_EQ(stream(write_gz("b.json.gz", lines)), expected);
  EXPECT_EQ(stream(write_gz("a.txt.gz", "abc")), (Ids{1, 2, 3, 0}));
  EXPECT_EQ(read_documents({folder.path() / "a.jsonl", folder.path() / "a.txt.gz"}, "text"), (std::vector<std::string>{"ab", "c", "abc"}));
  EXPECT_EQ(stream(folder.write("c.jsonl", "{\"input_ids\": [7, 8]}\n{\"text\": \"a\"}")), (Ids{7, 8, 1, 0}));
}

TEST_F(Calibration, LinesLongerThanTheBuffer) {
  const std::string text(3'000'000, 'b');
  EXPECT_EQ(stream(write_gz("a.jsonl.gz", "{\"text\": \"" + text + "\"}\n{\"text\": \"a\"}\n")).size(), text.size() + 3);
}

TEST_F(Calibration, OrderIsFixedByTheSeed) {
  std::string lines;
  for (char c = 'a'; c <= 'z'; ++c) lines += std::string("{\"text\": \"") + c + "\"}\n";
  config.files = {folder.write("a.jsonl", lines)};
  config.length = 52;
  const Ids first = ids();
  std::set<int32_t> letters(first.begin(), first.end());
  EXPECT_EQ(letters.size(), 27u);  // all, each once
  std::string order;
  for (size_t i = 0; i < first.size(); i += 2) order += static_cast<char>('a' + first[i] - 1);
  EXPECT_EQ(order, "sgdpeznbwtcjhrmlixaqufvkyo");  // from a Mersenne Twister and shuffle written in Python
  EXPECT_EQ(ids(), first);
  config.seed = 43;
  EXPECT_NE(ids(), first);
}

TEST_F(Calibration, StopsWhenThereIsEnough) {
  // Broken lines that are not needed are not looked at; without a break all are.
  std::string lines;
  for (int i = 0; i < 50; ++i) lines += "{\"text\": \"abc\"}\n";
  config.files = {folder.write("a.jsonl", lines + "broken\n")};
  EXPECT_EQ(ids(), (Ids{1, 2, 3, 0}));
  EXPECT_USER_ERROR(stream(config.files[0]), "a.jsonl, line 51");
}

TEST_F(Calibration, TooLittleTextSaysHowMuchThereWas) {
  config.files = {folder.write("a.txt", "abc")};
  config.sequences = 3;
  EXPECT_USER_ERROR(ids(), "calibration.files have 4 tokens; sequences x length = 3 x 4 = 12 are asked for");
}

TEST_F(Calibration, ErrorsOfLines) {
  const auto error = [&](const std::string& lines) { return error_of([&] { stream(folder.write("a.jsonl", lines)); }); };
  EXPECT_NE(error("{\"text\": \"a\"}\n{\"content\": 1, \"id\": 2}")
                .find("a.jsonl, line 2 (document 2): no \"text\"; the keys are \"content\", \"id\""),
            std::string::npos);
  EXPECT_NE(error("{\"messages\": []}").find("apply_chat_template"), std::string::npos);
  EXPECT_NE(error("{\"text\": 3}").find("must be a string, not number"), std::string::npos);
  EXPECT_NE(error("[1]").find("a.jsonl, line 1"), std::string::npos);
  EXPECT_NE(error("\n{\"text\": \"a}").find("a.jsonl, line 2"), std::string::npos);
  EXPECT_NE(error("{\"text\": \"\\ud800\"}").find("a.jsonl, line 1"), std::string::npos);
  EXPECT_NE(error("{\"text\": \"a\"}\n{\"text\": \"b\xff\"}").find("line 2 (document 2): malformed UTF-8 at byte 11"), std::string::npos);
  EXPECT_NE(error("{\"input_ids\": [1, -1]}").find("-1"), std::string::npos);
  EXPECT_USER_ERROR(stream(folder.write("a.txt", "abc\xc3")), "a.txt (document 1): malformed UTF-8 at byte 3");
  EXPECT_USER_ERROR(stream(folder.write("a.csv", "")), "a.csv");
  EXPECT_USER_ERROR(stream(folder.path() / "none.txt"), "none.txt");
  EXPECT_USER_ERROR(stream(folder.write("plain.txt.gz", "abc")), "not a gzip file");
  EXPECT_USER_ERROR(read_documents({folder.write("i.jsonl", "{\"input_ids\": [1]}")}, "text"), "input_ids");
}

TEST_F(Calibration, DamagedGzip) {
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += static_cast<char>('a' + i * i % 23);
  const std::string packed = read_file(write_gz("a.txt.gz", text), 1 << 20);
  EXPECT_USER_ERROR(stream(folder.write("cut.txt.gz", packed.substr(0, packed.size() / 2))), "cut.txt.gz");
  std::string changed = packed;
  changed[packed.size() - 6] ^= 1;  // the checksum
  EXPECT_USER_ERROR(stream(folder.write("bad.txt.gz", changed)), "bad.txt.gz");
}

TEST_F(Calibration, BoundsOfFiles) {
  const auto file = write_gz("a.jsonl.gz", "{\"text\": \"" + std::string(5000, 'a') + "\"}\n{\"text\": \"a\"}\n");
  EXPECT_EQ(DocumentFiles({file}, "text", {6000, 5100}).raw().size(), 2u);
  EXPECT_USER_ERROR(DocumentFiles({file}, "text", {4000, 5100}), "more text than fits");
  EXPECT_USER_ERROR(DocumentFiles({file}, "text", {6000, 4000}), "line 1");
  EXPECT_USER_ERROR(DocumentFiles({file, file}, "text", {6000, 5100}), "more text than fits");
  const auto bomb = write_gz("bomb.jsonl.gz", std::string(3 << 20, '\n'));  // lines that are no documents take no memory
  EXPECT_EQ(DocumentFiles({bomb}, "text", {4 << 20, 4 << 20, 200}).raw().size(), 0u);
  EXPECT_USER_ERROR(DocumentFiles({bomb}, "text", {4 << 20, 1 << 20, 200}), "far more than text packs to");
}

TEST_F(Calibration, IdsOutsideTheVocabulary) {
  config.files = {folder.write("a.txt", "abz")};
  vocabulary = 26;
  EXPECT_USER_ERROR(ids(), "token id 26 is outside the model's vocabulary of 26");
  vocabulary = 27;
  EXPECT_EQ(ids(), (Ids{1, 2, 26, 0}));
}

TEST_F(Calibration, NoEos) {
  folder.write("tokenizer_config.json", "{}");
  config.files = {folder.write("a.txt", "abz")};
  EXPECT_USER_ERROR(ids(), "no EOS token is known");
  folder.write("config.json", R"({"eos_token_id": [5, 6]})");
  EXPECT_EQ(ids(), (Ids{1, 2, 26, 5}));
}

TEST_F(Calibration, TokenIdFiles) {
  const auto file = folder.path() / "a.npy";
  config.files = {file};
  config.sequences = 2;
  for (const at::ScalarType type : {at::kInt, at::kLong}) {
    write_npy(file, at::arange(12, at::TensorOptions(type)).reshape({3, 4}));
    EXPECT_EQ(ids(), (Ids{0, 1, 2, 3, 4, 5, 6, 7}));
    EXPECT_EQ(calibration_ids(config, folder.path(), vocabulary).scalar_type(), at::kInt);
    EXPECT_EQ(stream(file).size(), 12u);
    write_npy(file, at::arange(9, at::TensorOptions(type)));
    EXPECT_EQ(ids(), (Ids{0, 1, 2, 3, 4, 5, 6, 7}));
  }
  config.sequences = 3;
  EXPECT_USER_ERROR(ids(), "have 9 tokens");
  write_npy(file, at::arange(12, at::kInt).reshape({2, 6}));
  EXPECT_USER_ERROR(ids(), "set calibration.length to 6");
  write_npy(file, at::arange(12, at::kInt).reshape({3, 4}).sub(1));
  EXPECT_USER_ERROR(ids(), "value 0: token id -1");
  write_npy(file, at::arange(12, at::kLong).add(int64_t{1} << 32));
  EXPECT_USER_ERROR(ids(), "token id 4294967296");
  write_npy(file, at::arange(12, at::kFloat));
  EXPECT_USER_ERROR(ids(), "must be int32 or int64");
  write_npy(file, at::arange(12, at::kInt).reshape({1, 3, 4}));
  EXPECT_USER_ERROR(ids(), "dimensions");
  config.files = {file, folder.write("a.txt", "abc")};
  EXPECT_USER_ERROR(ids(), "cannot be mixed");
}

TEST(DemoCalibration, IsTheSameEveryTime) {
  CalibrationConfig config;
  config.files = {TEST_DATA "/demo/data/calibration.jsonl"};
  config.sequences = 16;
  config.length = 256;
  const at::Tensor ids = calibration_ids(config, TEST_DATA "/demo/model", 1024);
  EXPECT_TRUE(ids.equal(calibration_ids(config, TEST_DATA "/demo/model", 1024)));
  // From Hugging Face `tokenizers` and a shuffle written in Python.
  const Ids flat = values(ids);
  EXPECT_EQ(Ids(flat.begin(), flat.begin() + 12), (Ids{450, 873, 530, 451, 671, 451, 298, 871, 316, 534, 632, 332}));
  int64_t sum = 0;
  for (size_t i = 0; i < flat.size(); ++i) sum += flat[i] * static_cast<int64_t>(i % 97 + 1);
  EXPECT_EQ(sum, 63735077);
}

}  // namespace
}  // namespace hcsmoe
