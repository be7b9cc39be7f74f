// tokenize_lines FOLDER LINES.jsonl > IDS.jsonl: the ids of each line (a JSON string) by the tokenizer of a model folder, a JSON list a
// line. Speed goes to stderr. For comparison with other tokenizers.

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void tokenize(const char* folder, const char* lines_file) {
  auto start = std::chrono::steady_clock::now();
  const hcsmoe::Tokenizer tokenizer = hcsmoe::Tokenizer::load(folder);
  const double load_seconds = seconds_since(start);
  std::ifstream in(lines_file);
  std::vector<std::string> texts;
  size_t bytes = 0, count = 0;
  for (std::string line; std::getline(in, line);) {
    texts.push_back(nlohmann::json::parse(line).get<std::string>());
    bytes += texts.back().size();
  }
  start = std::chrono::steady_clock::now();
  std::vector<std::vector<int32_t>> all;
  for (const std::string& text : texts) {
    all.push_back(tokenizer.encode(text));
    count += all.back().size();
  }
  const double seconds = seconds_since(start);
  for (const auto& ids : all) std::cout << nlohmann::json(ids).dump() << '\n';
  std::fprintf(stderr, "loaded in %.2f s, %zu texts, %.2f MB, %zu ids, %.2f MB/s\n", load_seconds, texts.size(),
               static_cast<double>(bytes) / 1e6, count, static_cast<double>(bytes) / 1e6 / seconds);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenize_lines FOLDER LINES.jsonl\n");
    return 2;
  }
  try {
    tokenize(argv[1], argv[2]);
  } catch (const hcsmoe::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return static_cast<int>(error.exit_code());
  }
  return 0;
}
