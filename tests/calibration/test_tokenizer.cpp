// The rules of the tokenizer, each on a tokenizer.json small enough to know the ids by heart. test_against_tokenizers.py compares with
// Hugging Face; here is what it accepts and refuses, and how.

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "calibration/regex.h"
#include "calibration/regex_translation.h"
#include "calibration/utf8.h"
#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"
#include "test_folder.h"

namespace hcsmoe {
namespace {

using Ids = std::vector<int32_t>;
using Json = nlohmann::ordered_json;

/// Characters a b c ▁ h i and merges; 0 is <unk>, 1 <s>.
Json small() {
  return Json::parse(R"({
    "added_tokens": [{"id": 1, "content": "<s>",
                      "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "truncation": null, "padding": null,
    "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "dropout": null,
              "vocab": {"<unk>": 0, "<s>": 1, "a": 2, "b": 3, "c": 4, "▁": 5, "ab": 6, "bc": 7, "abc": 8, "▁a": 9, "h": 10, "i": 11,
                        "▁h": 12, "<0xC3>": 13, "<0xA9>": 14, "aa": 15, "!": 16},
              "merges": [["b", "c"], ["a", "b"], ["ab", "c"], ["▁", "a"], ["▁", "h"], "a a"]}})");
}

Tokenizer make(const Json& description) { return Tokenizer::from_json(description.dump(), "tokenizer.json"); }
Ids encode(const Json& description, const std::string& text) { return make(description).encode(text); }

Json with(Json description, const std::string& pointer, const Json& value) {
  description[Json::json_pointer(pointer)] = value;
  return description;
}

Json added(const std::string& content, int id, const std::vector<std::string>& flags) {
  Json token = {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", false}};
  for (const std::string& flag : flags) token[flag] = true;
  return token;
}

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

TEST(BytePairs, MergesByRankThenLeftmost) {
  EXPECT_EQ(encode(small(), "abc"), (Ids{2, 7}));  // bc (rank 0) before ab, and a + bc is no merge
  EXPECT_EQ(encode(small(), "ab"), (Ids{6}));
  EXPECT_EQ(encode(small(), "aaa"), (Ids{15, 2}));  // leftmost of equals
  EXPECT_EQ(encode(small(), "aab"), (Ids{2, 6}));   // ab (rank 1) before aa (rank 5)
  EXPECT_EQ(encode(small(), ""), (Ids{}));
}

TEST(BytePairs, WholePieceFirstWithIgnoreMerges) { EXPECT_EQ(encode(with(small(), "/model/ignore_merges", true), "abc"), (Ids{8})); }

TEST(BytePairs, BytesOnlyIfAllOfThemAreThere) {
  EXPECT_EQ(encode(small(), "é"), (Ids{13, 14}));  // C3 A9
  EXPECT_EQ(encode(small(), "è"), (Ids{0}));       // C3 A8: the second byte has no token
  EXPECT_EQ(encode(small(), "aèèb"), (Ids{2, 0, 3}));
  EXPECT_EQ(encode(with(small(), "/model/fuse_unk", false), "aèèb"), (Ids{2, 0, 0, 3}));
  EXPECT_EQ(encode(with(small(), "/model/unk_token", nullptr), "aèèb"), (Ids{6}));
  EXPECT_EQ(encode(small(), std::string("a\0b", 3)), (Ids{2, 0, 3}));
}

TEST(BytePairs, LongPieceIsLinearEnough) {
  const Ids ids = encode(small(), std::string(400'000, 'a'));
  EXPECT_EQ(ids.size(), 200'000u);
  EXPECT_EQ(ids[199'999], 15);
}

TEST(Metaspace, FirstMeansTheStartOfTheText) {
  const Json mixtral =
      with(small(), "/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}, {"split", false}});
  EXPECT_EQ(encode(mixtral, "hi a"), (Ids{12, 11, 9}));
  EXPECT_EQ(encode(mixtral, "<s>hi"), (Ids{1, 10, 11}));
  EXPECT_EQ(encode(mixtral, " hi"), (Ids{12, 11}));
  const Json always = with(mixtral, "/pre_tokenizer/prepend_scheme", "always");
  EXPECT_EQ(encode(always, "<s>hi"), (Ids{1, 12, 11}));
}

TEST(Metaspace, OldFormPrependsToEveryPieceButEmptyOnes) {
  const Json llama = with(small(), "/normalizer", Json::parse(R"({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]})"));
  EXPECT_EQ(encode(llama, "hi a"), (Ids{12, 11, 9}));
  EXPECT_EQ(encode(llama, "<s>hi<s>"), (Ids{1, 12, 11, 1}));
  EXPECT_EQ(encode(llama, ""), (Ids{}));
}

TEST(AddedTokens, LongestAtTheLeftmostPlace) {
  Json tokens = small();
  tokens["added_tokens"].push_back(added("<s><s>", 17, {}));
  tokens["added_tokens"].push_back(added("s><", 18, {}));
  EXPECT_EQ(encode(tokens, "<s><s><s>"), (Ids{17, 1}));
  EXPECT_EQ(encode(tokens, "as><b"), (Ids{2, 18, 3}));
}

TEST(AddedTokens, StripTheirWhiteSpace) {
  Json tokens = small();
  tokens["added_tokens"].push_back(added("<r>", 17, {"rstrip"}));
  tokens["added_tokens"].push_back(added("<l>", 18, {"lstrip"}));
  EXPECT_EQ(encode(tokens, "a<r> \n\u3000b"), (Ids{2, 17, 3}));
  EXPECT_EQ(encode(tokens, "a \u00a0<l>b"), (Ids{2, 18, 3}));
  EXPECT_EQ(encode(tokens, "<r>  <l>"), (Ids{17, 18}));
  EXPECT_EQ(encode(tokens, "<r>\u180e"), (Ids{17, 0}));  // U+180E is no white space
}

TEST(AddedTokens, SingleWordsAndNormalizedOnes) {
  Json tokens = small();
  tokens["added_tokens"].push_back(added("abc", 8, {"single_word"}));
  tokens["added_tokens"].push_back(added("é", 17, {"normalized"}));
  tokens["normalizer"] = {{"type", "NFC"}};
  EXPECT_EQ(encode(tokens, "abc!abc"), (Ids{8, 16, 8}));
  EXPECT_EQ(encode(tokens, "aabc"), (Ids{15, 7}));
  EXPECT_EQ(encode(tokens, "abc\U00013db0"), (Ids{2, 7, 0}));  // a hieroglyph since Unicode 16
  EXPECT_EQ(encode(tokens, "ae\u0301b"), (Ids{2, 17, 3}));     // found after NFC
}

TEST(AddedTokens, NewOnesAreNumberedAsHuggingFaceDoes) {
  Json tokens = small();
  tokens["added_tokens"].push_back(added("<x>", 90, {}));
  tokens["added_tokens"].push_back(added("<y>", 91, {}));
  EXPECT_EQ(encode(tokens, "<y><x>"), (Ids{18, 17}));  // after the 17 of the vocabulary, whatever "id" says
  EXPECT_EQ(make(tokens).vocabulary_size(), 19);
  tokens["added_tokens"].push_back(added("<x>", 90, {"special"}));
  EXPECT_USER_ERROR(make(tokens), "<x>");
}

TEST(Normalizer, KnowsUnicode9) {
  const Json nfc = with(small(), "/normalizer", {{"type", "NFC"}});
  EXPECT_EQ(encode(nfc, "e\u0301"), (Ids{13, 14}));
  // U+1DF9 (Unicode 10) does not exist for it, so the acute accent after it stays apart.
  EXPECT_EQ(encode(nfc, "e\u1df9\u0301").size(), encode(small(), "e\u1df9\u0301").size());
}

TEST(Refusals, NameTheFeatureAndTheFile) {
  EXPECT_USER_ERROR(make(with(small(), "/model/type", "Unigram")), "tokenizer.json: model: the type Unigram");
  EXPECT_USER_ERROR(make(with(small(), "/model/type", "WordPiece")), "WordPiece");
  EXPECT_USER_ERROR(make(with(small(), "/model/dropout", 0.1)), "dropout");
  EXPECT_USER_ERROR(make(with(small(), "/model/end_of_word_suffix", "</w>")), "end_of_word_suffix");
  EXPECT_USER_ERROR(make(with(small(), "/model/continuing_subword_prefix", "##")), "continuing_subword_prefix");
  EXPECT_USER_ERROR(make(with(small(), "/model/novelty", 1)), "novelty");
  EXPECT_USER_ERROR(make(with(small(), "/normalizer", {{"type", "Precompiled"}})), "normalizer: the type Precompiled");
  EXPECT_USER_ERROR(make(with(small(), "/normalizer", {{"type", "Lowercase"}})), "Lowercase");
  EXPECT_USER_ERROR(make(with(small(), "/normalizer", {{"type", "BertNormalizer"}})), "BertNormalizer");
  EXPECT_USER_ERROR(make(with(small(), "/pre_tokenizer", {{"type", "BertPreTokenizer"}})), "BertPreTokenizer");
  EXPECT_USER_ERROR(make(with(small(), "/post_processor", {{"type", "BertProcessing"}})), "BertProcessing");
  EXPECT_USER_ERROR(make(with(small(), "/truncation", {{"max_length", 5}})), "truncation");
  EXPECT_USER_ERROR(make(with(small(), "/padding", {{"pad_id", 5}})), "padding");
  EXPECT_EQ(encode(with(small(), "/model/end_of_word_suffix", ""), "ab"), (Ids{6}));
  EXPECT_EQ(encode(with(small(), "/model/dropout", 0.0), "ab"), (Ids{6}));
}

TEST(Refusals, BrokenFiles) {
  EXPECT_USER_ERROR(Tokenizer::from_json("", "t.json"), "t.json");
  EXPECT_USER_ERROR(Tokenizer::from_json("[]", "t.json"), "t.json");
  EXPECT_USER_ERROR(Tokenizer::from_json("{}", "t.json"), "\"model\" is missing");
  EXPECT_USER_ERROR(Tokenizer::from_json(R"({"model": {"vocab": {"\ud800": 1}}})", "t.json"), "t.json");
  EXPECT_USER_ERROR(make(with(small(), "/model/vocab/a", -1)), "\"a\"");
  EXPECT_USER_ERROR(make(with(small(), "/model/vocab/a", "x")), "\"a\"");
  EXPECT_USER_ERROR(make(with(small(), "/model/merges/0", "b c d")), "merges[0]");
  EXPECT_USER_ERROR(make(with(small(), "/model/merges/0", {"b", "z"})), "\"bz\"");
  EXPECT_USER_ERROR(make(with(small(), "/model/merges", 3)), "merges");
  EXPECT_USER_ERROR(make(with(small(), "/model/unk_token", "?")), "unk_token");
  EXPECT_USER_ERROR(make(with(small(), "/added_tokens/0/special", 3)), "special");
  Json deep = {{"type", "NFC"}};
  for (int i = 0; i < 12; ++i) deep = {{"type", "Sequence"}, {"normalizers", Json::array({deep})}};
  EXPECT_USER_ERROR(make(with(small(), "/normalizer", deep)), "Sequence");
}

/// Every text that starts like a tokenizer.json is read or refused, never worse.
TEST(Refusals, CutAndChangedFiles) {
  const std::string whole =
      with(small(), "/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "\\s+"}}}, {"behavior", "Isolated"}}).dump();
  size_t refused = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string changed = whole;
    changed[i] = static_cast<char>(changed[i] ^ (1 << i % 8));
    for (const std::string& text : {whole.substr(0, i), changed}) {
      try {
        Tokenizer::from_json(text, "t.json").encode("a bc");
      } catch (const UserError&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, whole.size());
}

TEST(Utf8, MalformedTextIsAnErrorWithItsOffset) {
  const Tokenizer tokenizer = make(small());
  EXPECT_USER_ERROR(tokenizer.encode("ab\xff"), "byte 2");
  const std::pair<std::string, size_t> cases[] = {{"\x80", 0},
                                                  {"a\xc3", 1},
                                                  {"\xc0\x80", 0},
                                                  {"\xc1\xbf", 0},
                                                  {"\xe0\x80\x80", 0},
                                                  {"\xed\xa0\x80", 0},
                                                  {"\xf0\x80\x80\x80", 0},
                                                  {"\xf4\x90\x80\x80", 0},
                                                  {"\xf5\x80\x80\x80", 0},
                                                  {"12345678\xe4\xbd", 8},
                                                  {"é\xe4\xbd"
                                                   "a",
                                                   2},
                                                  {"\xf0\x9f\x98", 0},
                                                  {"\xf8\x88\x80\x80\x80", 0}};
  for (const auto& [text, offset] : cases) EXPECT_EQ(find_malformed_utf8(text), offset) << testing::PrintToString(text);
  for (const std::string& text :
       {std::string("\0", 1), std::string("\ufffe\U0010ffff"), std::string("aé你😀"), std::string("\u07ff\u0800\uffff\U00010000")}) {
    EXPECT_EQ(find_malformed_utf8(text), std::nullopt);
  }
  for (char32_t c = 0; c < 0x110000; ++c) {
    std::string text;
    append_utf8(text, c);
    const bool surrogate = c >= 0xD800 && c < 0xE000;
    ASSERT_EQ(find_malformed_utf8(text).has_value(), surrogate) << static_cast<uint32_t>(c);
    if (!surrogate) {
      ASSERT_EQ(code_point_at(text, 0), c);
    }
  }
}

std::vector<std::string> matches(const std::string& pattern, const std::string& text) {
  std::vector<std::string> result;
  for (const auto& [range, match] : Regex(pattern, {"t.json", "pattern"}).segments(text)) {
    if (match) result.push_back(text.substr(range.begin, range.end - range.begin));
  }
  return result;
}
using Texts = std::vector<std::string>;

TEST(RegularExpressions, MeanWhatRubyMeans) {
  EXPECT_EQ(matches("a$", "a\na\r\na"), (Texts{"a", "a"}));
  EXPECT_EQ(matches("^b", "a\nb"), (Texts{"b"}));
  EXPECT_EQ(matches("\\p{N}{1,3}+", "1234567"), (Texts{"1234567"}));
  EXPECT_EQ(matches("\\p{N}{1,3}", "1234567"), (Texts{"123", "456", "7"}));
  EXPECT_EQ(matches("(?:ab){2}+", "ababababab"), (Texts{"abababab"}));
  EXPECT_EQ(matches("[ab]{,2}c", "abac"), (Texts{"bac"}));
  EXPECT_EQ(matches("\\s", "\u180e"), (Texts{}));
  EXPECT_EQ(matches("[\\S]", "\u180e"), (Texts{"\u180e"}));
  EXPECT_EQ(matches("\\S", "\u180e \u0085"), (Texts{"\u180e"}));
  EXPECT_EQ(matches("[\\s-]", "- \u200b"), (Texts{"-", " "}));
  EXPECT_EQ(matches("[\\s-a]", "-0a"), (Texts{"-", "a"}));
  EXPECT_EQ(matches("\\p{L}", "\U000105c0"), (Texts{"\U000105c0"}));  // Todhri, Unicode 16
  EXPECT_EQ(matches("\\P{L}", "\U000105c0 "), (Texts{" "}));
  EXPECT_EQ(matches("\\p{^L}+", "a1!b"), (Texts{"1!"}));
  EXPECT_EQ(matches("\\u4f60|\\x{1F600}|\\x41|\\v", "你😀A\v\n"), (Texts{"你", "😀", "A", "\v"}));
}

TEST(RegularExpressions, RefuseWhatDiffers) {
  for (const std::string pattern : {"[a-z&&[^b]]", "[[:alpha:]]", "[a[b]]",    "\\h",     "\\H",        "\\w+",     "\\bx",   "\\R",
                                    "\\X",         "\\K",         "\\1",       "\\p{Mn}", "\\p{Alpha}", "\\pL",     "(?m:a)", "(?<name>a)",
                                    "a(?i)b",      "(*UTF)a",     "(*ACCEPT)", "(?~a)",   "\\xe4",      "[\\P{L}]", "{2}",    "a{1,2}++"}) {
    EXPECT_USER_ERROR(Regex(pattern, {"t.json", "pre_tokenizer"}), "t.json: pre_tokenizer");
  }
  for (const std::string pattern :
       {"(", ")", "[", "[]", "a\\", "\\p{L", "\\x{", "\\u00", "*", "a**", "[z-a]", "a{3,1}", "(?", "(?<=a+)b"}) {
    EXPECT_USER_ERROR(Regex(pattern, {"t.json", "pre_tokenizer"}), "t.json: pre_tokenizer");
  }
}

TEST(Threads, ShareATokenizer) {
  const Tokenizer tokenizer = Tokenizer::load(TEST_DATA "/demo/model");
  const std::string text = "Tom had a red ring. def f(x): return 3 # naïve 你好";
  const Ids expected = tokenizer.encode(text);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        if (tokenizer.encode(text) != expected) ++wrong;
        tokenizer.encode(std::to_string(t * 1000 + i) + text);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_FALSE(expected.empty());
}

struct Folder : TestFolder {
  Folder() { write("tokenizer.json", small().dump()); }
};

TEST(SpecialTokens, OfTheTemplate) {
  Folder folder;
  const Json bos_template = Json::parse(R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}})");
  folder.write("tokenizer.json", with(small(), "/post_processor", bos_template).dump());
  EXPECT_EQ(Tokenizer::load(folder.path()).automatic_bos(), 1);
  const Json both = {{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}, bos_template}}};
  folder.write("tokenizer.json", with(small(), "/post_processor", both).dump());
  EXPECT_EQ(Tokenizer::load(folder.path()).automatic_bos(), 1);
  EXPECT_EQ(Tokenizer::load(folder.path()).encode("a"), (Ids{2}));  // encode adds none
  folder.write("tokenizer_config.json", R"({"add_bos_token": false, "bos_token": "<s>"})");
  EXPECT_EQ(Tokenizer::load(folder.path()).automatic_bos(), std::nullopt);
  EXPECT_EQ(Tokenizer::load(folder.path()).bos(), 1);
}

TEST(SpecialTokens, OfTheConfiguration) {
  Folder folder;
  EXPECT_EQ(Tokenizer::load(folder.path()).eos(), std::nullopt);
  folder.write("generation_config.json", R"({"eos_token_id": 4})");
  EXPECT_EQ(Tokenizer::load(folder.path()).eos(), 4);
  folder.write("config.json", R"({"eos_token_id": [3, 4], "bos_token_id": null})");
  EXPECT_EQ(Tokenizer::load(folder.path()).eos(), 3);
  folder.write("tokenizer_config.json", R"({"eos_token": {"content": "a"}, "bos_token": "<s>", "tokenizer_class": "LlamaTokenizerFast"})");
  EXPECT_EQ(Tokenizer::load(folder.path()).eos(), 2);
  EXPECT_EQ(Tokenizer::load(folder.path()).automatic_bos(), 1);  // Llama's adds it unless told not to
  folder.write("tokenizer_config.json", R"({"eos_token": null, "bos_token": "<s>", "add_bos_token": true})");
  EXPECT_EQ(Tokenizer::load(folder.path()).automatic_bos(), 1);
  EXPECT_EQ(Tokenizer::load(folder.path()).eos(), 3);
  folder.write("tokenizer_config.json", R"({"eos_token": "</nowhere>"})");
  EXPECT_USER_ERROR(Tokenizer::load(folder.path()), "</nowhere>");
}

TEST(SpecialTokens, FolderWithoutTokenizer) {
  TestFolder empty;
  EXPECT_USER_ERROR(Tokenizer::load(empty.path()), "no tokenizer.json");
}

}  // namespace
}  // namespace hcsmoe
