#include "calibration/byte_pair_encoding.h"

#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <queue>
#include <utility>

#include "calibration/utf8.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

/// One merge: "left right", or ["left", "right"] since tokenizers 0.20.
std::pair<std::string, std::string> merge_parts(const Json& merge, const JsonPlace& place, size_t number) {
  const auto bad = [&](const std::string& why) { return UserError(place.text() + "[" + std::to_string(number) + "]: " + why); };
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) return {merge[0], merge[1]};
  if (!merge.is_string()) throw bad("a merge must be a string or a pair of strings");
  const auto& text = merge.get_ref<const std::string&>();
  const size_t blank = text.find(' ');
  if (blank == std::string::npos || text.find(' ', blank + 1) != std::string::npos) throw bad("a merge must be two tokens and one blank");
  return {text.substr(0, blank), text.substr(blank + 1)};
}

}  // namespace

/// The ids of pieces that came up before: words repeat.
class BytePairEncoding::Cache {
 public:
  static constexpr size_t longest_piece = 128;  // bytes
  static constexpr size_t most_pieces = 100'000;

  bool append(std::string_view piece, std::vector<int32_t>& ids) {
    const std::lock_guard lock(mutex_);
    const auto found = known_.find(piece);
    if (found == known_.end()) return false;
    ids.insert(ids.end(), found->second.begin(), found->second.end());
    return true;
  }
  void add(std::string_view piece, const std::vector<int32_t>& ids) {
    const std::lock_guard lock(mutex_);
    if (known_.size() < most_pieces) known_.emplace(piece, ids);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, std::vector<int32_t>, StringHash, std::equal_to<>> known_;
};

BytePairEncoding::BytePairEncoding(const Json& model, const JsonPlace& place) : cache_(std::make_unique<Cache>()) {
  require_object(model, place);
  const std::string type = text_or(model, "type", "BPE", place);  // files of GPT-2 have none
  if (type != "BPE") refuse(place, "the type " + type);
  require_known_keys(model,
                     {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
                      "ignore_merges", "vocab", "merges"},
                     place);
  if (is_set(model, "dropout") && model.at("dropout") != 0.0) refuse(place, "dropout");
  if (!text_or(model, "continuing_subword_prefix", "", place).empty()) refuse(place, "continuing_subword_prefix");
  if (!text_or(model, "end_of_word_suffix", "", place).empty()) refuse(place, "end_of_word_suffix");
  byte_fallback_ = flag_or(model, "byte_fallback", false, place);
  fuse_unknown_ = flag_or(model, "fuse_unk", false, place);
  ignore_merges_ = flag_or(model, "ignore_merges", false, place);
  read_vocabulary(required(model, "vocab", place), place.in("vocab"));
  read_merges(required(model, "merges", place), place.in("merges"));
  if (is_set(model, "unk_token")) {
    const std::string unknown = required_text(model, "unk_token", place);
    unknown_ = find(unknown);
    if (!unknown_) throw UserError(place.text() + ": unk_token \"" + unknown + "\" is not in the vocabulary");
  }
}

BytePairEncoding::~BytePairEncoding() = default;

void BytePairEncoding::read_vocabulary(const Json& vocabulary, const JsonPlace& place) {
  require_object(vocabulary, place);
  vocabulary_.reserve(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
      throw UserError(place.text() + ": the id of \"" + token + "\" must be a whole number below 2^31, not " + id.dump());
    }
    vocabulary_.emplace(token, id.get<int32_t>());
  }
  for (char32_t c = 0; c < short_characters_.size(); ++c) {
    std::string character;
    append_utf8(character, c);
    short_characters_[c] = find(character).value_or(-1);
  }
  constexpr const char* digits = "0123456789ABCDEF";
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    byte_ids_[byte] = find(std::string("<0x") + digits[byte >> 4] + digits[byte & 15] + ">").value_or(-1);
  }
}

void BytePairEncoding::read_merges(const Json& merges, const JsonPlace& place) {
  if (!merges.is_array()) throw UserError(place.text() + " must be a list");
  merges_.reserve(merges.size());
  const auto id_of = [&](const std::string& token, size_t number) {
    if (const std::optional<int32_t> id = find(token)) return *id;
    throw UserError(place.text() + "[" + std::to_string(number) + "]: \"" + token + "\" is not in the vocabulary");
  };
  for (size_t i = 0; i < merges.size(); ++i) {
    if (merges[i].is_string() && merges[i].get_ref<const std::string&>().starts_with("#version")) continue;
    const auto [left, right] = merge_parts(merges[i], place, i);
    const Merge merge{static_cast<int32_t>(i), id_of(left + right, i)};
    merges_.insert_or_assign(pair_key(id_of(left, i), id_of(right, i)), merge);
  }
}

std::optional<int32_t> BytePairEncoding::find(std::string_view token) const {
  const auto found = vocabulary_.find(token);
  return found == vocabulary_.end() ? std::nullopt : std::optional(found->second);
}

int32_t BytePairEncoding::character_id(std::string_view character) const {
  return character.size() <= 2 ? short_characters_[code_point_at(character, 0)] : find(character).value_or(-1);
}

std::vector<int32_t> BytePairEncoding::characters(std::string_view piece) const {
  std::vector<int32_t> ids;
  ids.reserve(piece.size());
  bool unknown_waits = false;
  for (size_t i = 0, length = 0; i < piece.size(); i += length) {
    length = utf8_length(piece[i]);
    const std::string_view character = piece.substr(i, length);
    if (const int32_t id = character_id(character); id >= 0) {
      if (unknown_waits) ids.push_back(*unknown_);
      unknown_waits = false;
      ids.push_back(id);
      continue;
    }
    if (byte_fallback_) {
      const size_t before = ids.size();
      for (const char byte : character) ids.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
      // All or nothing. A waiting unknown token goes on waiting here, and so comes after the bytes: Hugging Face's order.
      bool complete = true;
      for (size_t k = before; k < ids.size(); ++k) complete = complete && ids[k] >= 0;
      if (complete) continue;
      ids.resize(before);
    }
    if (!unknown_) continue;
    if (unknown_waits && !fuse_unknown_) ids.push_back(*unknown_);
    unknown_waits = true;
  }
  if (unknown_waits) ids.push_back(*unknown_);
  return ids;
}

const BytePairEncoding::Merge* BytePairEncoding::merge_of(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

/// A pair that may merge; outdated when its symbols have changed since.
struct BytePairEncoding::Candidate {
  int32_t rank;
  int32_t position;  // of the left symbol
  int32_t id;        // of the two together
  bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : position > other.position; }  // max-heap
};

/// A doubly linked list of ids. A symbol that was merged into its left neighbour has no id any more.
class BytePairEncoding::Symbols {
 public:
  static constexpr int32_t none = -1;
  struct Symbol {
    int32_t id, previous, next;
  };

  explicit Symbols(const std::vector<int32_t>& ids) : symbols_(ids.size()) {
    const auto count = static_cast<int32_t>(ids.size());
    for (int32_t i = 0; i < count; ++i) symbols_[i] = {ids[i], i - 1, i + 1 < count ? i + 1 : none};
  }
  const Symbol& at(int32_t position) const { return symbols_[position]; }

  void merge_with_next(int32_t position, int32_t id) {
    Symbol& left = symbols_[position];
    Symbol& right = symbols_[left.next];
    left.id = id;
    left.next = right.next;
    right.id = none;
    if (left.next != none) symbols_[left.next].previous = position;
  }

 private:
  std::vector<Symbol> symbols_;
};

void BytePairEncoding::merge(std::vector<int32_t>& ids) const {
  Symbols symbols(ids);
  std::priority_queue<Candidate> queue;
  const auto consider = [&](int32_t position) {
    if (position == Symbols::none || symbols.at(position).next == Symbols::none) return;
    const Merge* found = merge_of(symbols.at(position).id, symbols.at(symbols.at(position).next).id);
    if (found != nullptr) queue.push({found->rank, position, found->id});
  };
  for (int32_t i = 0; i < static_cast<int32_t>(ids.size()); ++i) consider(i);
  while (!queue.empty()) {
    const Candidate candidate = queue.top();
    queue.pop();
    const Symbols::Symbol& left = symbols.at(candidate.position);
    if (left.id == Symbols::none || left.next == Symbols::none) continue;
    const Merge* now = merge_of(left.id, symbols.at(left.next).id);
    if (now == nullptr || now->id != candidate.id) continue;
    symbols.merge_with_next(candidate.position, candidate.id);
    consider(left.previous);
    consider(candidate.position);
  }
  size_t count = 0;
  for (int32_t i = ids.empty() ? Symbols::none : 0; i != Symbols::none; i = symbols.at(i).next) ids[count++] = symbols.at(i).id;
  ids.resize(count);
}

void BytePairEncoding::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const std::optional<int32_t> whole = find(piece)) {
      ids.push_back(*whole);
      return;
    }
  }
  const bool cached = piece.size() <= Cache::longest_piece;
  if (cached && cache_->append(piece, ids)) return;
  std::vector<int32_t> symbols = characters(piece);
  merge(symbols);
  if (cached) cache_->add(piece, symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

}  // namespace hcsmoe
