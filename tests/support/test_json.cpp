#include "support/json.h"

#include <gtest/gtest.h>

#include <random>

#include "hcsmoe/error.h"
#include "support/temporary_folder.h"

namespace hcsmoe {
namespace {

using Json = nlohmann::ordered_json;

TEST(Json, KeepsTheOrderAndTheKindsOfNumbers) {
  const std::string text = R"({"z": 1, "a": [-2, 2.5, true, null, "é\n"], "m": {}, "big": 18446744073709551615})";
  Json json = parse_json(text, "t");
  EXPECT_EQ(json, Json::parse(text));
  EXPECT_EQ(json.dump(), R"({"z":1,"a":[-2,2.5,true,null,"é\n"],"m":{},"big":18446744073709551615})");
  EXPECT_TRUE(json["z"].is_number_unsigned());
  EXPECT_EQ(json["big"].get<uint64_t>(), UINT64_MAX);
  EXPECT_EQ(parse_json("7", "t"), 7);
  EXPECT_EQ(parse_json(" [] \n", "t"), Json::array());
  EXPECT_EQ(parse_json("\xEF\xBB\xBF{\"a\":1}", "t")["a"], 1);  // a byte order mark, as some editors write it
}

TEST(Json, ErrorsSayWhere) {
  struct Case {
    std::string text;
    std::vector<std::string> parts;
  };
  const std::vector<Case> cases = {
      {"", {"f.json:1:1", "empty"}},
      {" \n\t ", {"f.json:2:", "blank"}},
      {"{\"a\": 1,\n \"b\": }", {"f.json:2:7", "unexpected '}'"}},
      {"{\"a\": 1} x", {"f.json:1:10", "end of input"}},
      {"{\"a\": 1}{\"a\": 1}", {"f.json:1:9", "end of input"}},
      {"{\"a\": 1", {"f.json:1:", "unexpected end of input"}},
      {"[1,]", {"f.json:1:4", "unexpected ']'"}},
      {"{'a': 1}", {"f.json:1:2"}},
      {"{\"a\": 1,\n\"b\": {\"c\": 1, \"c\": 2}}", {"f.json:2:17", "\"c\" appears twice"}},
      {"{\"a\": 1, \"\\u0061\": 2}", {"\"a\" appears twice"}},
      {"[1e400]", {"f.json:1:", "number overflow"}},
      {"[-1e999]", {"number overflow"}},
      {"[NaN]", {"f.json:1:2"}},
      {"[01]", {"f.json:1:", "unexpected number"}},
      {"[\"\xff\"]", {"f.json:1:3", "UTF-8", "\\xff"}},
      {"[\"\xc3\"]", {"f.json:1:4", "UTF-8"}},
      {"[\"\xed\xa0\x80\"]", {"UTF-8"}},
      {"[\"\\ud800\"]", {"surrogate"}},
      {"[\"a\nb\"]", {"f.json:", "control character"}},
      {std::string("[\"a\0b\"]", 7), {"f.json:1:4", "control character"}},
      {"// c\n{}", {"f.json:1:"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text);
    expect_error<UserError>([&] { parse_json(c.text, "f.json"); }, c.parts);
  }
}

TEST(Json, MessagesStayShortAndPrintable) {
  try {
    parse_json("[\"" + std::string(1'000'000, 'x') + "\x80", "f.json");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_LT(std::string(error.what()).size(), 500u);
    for (char c : std::string(error.what())) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << int(c);
  }
}

TEST(Json, DepthIsBounded) {
  auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(parse_json(nested(64), "t"));
  expect_error<UserError>([&] { parse_json(nested(65), "t"); }, {"t:1:65", "deeper than 64"});
  EXPECT_THROW(parse_json(std::string(10'000'000, '['), "t"), UserError);
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_THROW(parse_json(objects, "t"), UserError);
}

TEST(Json, LargeObjectsAreFastAndTheirDuplicatesFound) {
  std::string text = "{";
  for (int i = 0; i < 50'000; ++i) text += "\"key" + std::to_string(i) + "\":" + std::to_string(i) + ",";
  Json json = parse_json(text + "\"last\":0}", "t");
  EXPECT_EQ(json.size(), 50'001u);
  EXPECT_EQ(std::next(json.begin(), 49'999).key(), "key49999");
  for (int i : {0, 14, 15, 16, 17, 49'999}) {
    expect_error<UserError>([&] { parse_json(text + "\"key" + std::to_string(i) + "\":0}", "t"); },
                            {"key" + std::to_string(i) + "\" appears twice"});
  }
}

TEST(Json, EqualsTheLibraryOnMutatedDocuments) {
  const std::string seed =
      R"({"model_type":"mixtral","sizes":[1,2.5e-3,-7],"rope":{"type":"yarn","factor":4.0,"on":true},"none":null,"s":"\u00e9\\x"})";
  std::mt19937 random(7);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = seed;
    for (int i = 0, n = 1 + static_cast<int>(random() % 3); i < n; ++i) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = "{}[]\",:0e-.tn\\ \xc3\xa9\x00\n"[random() % 20];
          break;
        case 1:
          text.erase(at, 1 + random() % 4);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 12));
      }
    }
    try {
      Json ours = parse_json(text, "t");
      EXPECT_EQ(ours, Json::parse(text)) << text;
      ++accepted;
    } catch (const UserError& error) {
      // The library keeps one of several equal keys; that is the only thing we refuse beyond it.
      const bool duplicate = std::string(error.what()).find("appears twice") != std::string::npos;
      EXPECT_TRUE(duplicate || !Json::accept(text)) << text << "\n" << error.what();
      ++refused;
    }
  }
  std::cout << accepted << " accepted, " << refused << " refused\n";
  EXPECT_GT(accepted, 500);
  EXPECT_GT(refused, 500);
}

TEST(Json, FilesAreBounded) {
  TemporaryFolder folder;
  write_text(folder / "a.json", R"({"a": 1})");
  EXPECT_EQ(read_json(folder / "a.json")["a"], 1);
  expect_error<UserError>([&] { read_json(folder / "a.json", 7); }, {"a.json", "8 bytes"});
  expect_error<UserError>([&] { read_json(folder / "b.json"); }, {"b.json", "No such file"});
  write_text(folder / "c.json", "");
  expect_error<UserError>([&] { read_json(folder / "c.json"); }, {"c.json:1:1", "empty"});
}

}  // namespace
}  // namespace hcsmoe
