#pragma once
// The model of tokenizer.json of type BPE: a vocabulary, and merges in the order in which they were learnt. A piece starts as characters
// (or, where one is unknown, its bytes); the pair with the lowest rank merges first, the leftmost of equals, until no pair is left.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "calibration/json_fields.h"

namespace hcsmoe {

/// Looks strings up by string_view.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using Vocabulary = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

class BytePairEncoding {
 public:
  BytePairEncoding(const Json& model, const JsonPlace&);
  ~BytePairEncoding();

  /// Appends the ids of one piece. Safe to call from several threads at once.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  std::optional<int32_t> find(std::string_view token) const;

 private:
  struct Merge {
    int32_t rank = 0;
    int32_t id = 0;  // of the two together
  };
  struct Candidate;
  class Symbols;
  class Cache;

  void read_vocabulary(const Json&, const JsonPlace&);
  void read_merges(const Json&, const JsonPlace&);
  int32_t character_id(std::string_view character) const;  // -1: not in the vocabulary
  std::vector<int32_t> characters(std::string_view piece) const;
  const Merge* merge_of(int32_t left, int32_t right) const;
  void merge(std::vector<int32_t>& ids) const;

  Vocabulary vocabulary_;
  std::unordered_map<uint64_t, Merge> merges_;   // by left id << 32 | right id
  std::array<int32_t, 0x800> short_characters_;  // ids of the characters below U+0800, all that byte-level pieces are made of
  std::array<int32_t, 256> byte_ids_;            // of <0x00> ... <0xFF>
  bool byte_fallback_ = false, fuse_unknown_ = false, ignore_merges_ = false;
  std::optional<int32_t> unknown_;
  std::unique_ptr<Cache> cache_;
};

}  // namespace hcsmoe
