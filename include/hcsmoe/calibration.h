#pragma once
// Calibration: from text files (or token ids) to the [sequences, length] ids that the statistics are collected on.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hcsmoe/config.h"

namespace hcsmoe {

/// A byte-pair-encoding tokenizer read from tokenizer.json (and tokenizer_config.json), equal id for id to Hugging Face `tokenizers`
/// with add_special_tokens=false. A tokenizer.json that asks for anything it does not do exactly is refused with a UserError that names it.
class Tokenizer {
 public:
  static Tokenizer load(const std::filesystem::path& model_folder);
  static Tokenizer from_json(std::string_view tokenizer_json, const std::string& source_name);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of the text, no special tokens added. Throws UserError at malformed UTF-8 (byte offset given).
  std::vector<int32_t> encode(std::string_view text) const;
  /// The id that starts a document if this model's tokenizer adds one by itself (post_processor template, or add_bos_token).
  std::optional<int32_t> automatic_bos() const;
  std::optional<int32_t> bos() const;
  /// From tokenizer_config.json, else config.json / generation_config.json.
  std::optional<int32_t> eos() const;
  int64_t vocabulary_size() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State>);
  std::unique_ptr<State> state_;
};

/// The documents of .jsonl[.gz] (one a line, at text_key) and .txt[.gz] (one a file) files, in file order.
/// Bounded: text of more than half of the free memory or 64 GiB, a line of more than 256 MiB, and a .gz file of more than that which
/// unpacks to more than 200 times its size are refused.
std::vector<std::string> read_documents(const std::vector<std::filesystem::path>& files, const std::string& text_key);

/// Documents shuffled by the seed, tokenised, each (BOS +) ids + EOS, concatenated and cut: int32 [sequences, length].
/// Stops tokenising when there is enough; too little text is a UserError that says how many tokens there were.
/// A .npy file (int32 or int64, [n, length] or [n*length]) is used as it is; ids must be within [0, vocabulary).
at::Tensor calibration_ids(const CalibrationConfig&, const std::filesystem::path& model_folder, int64_t vocabulary);

/// The token stream of text files in file order (no shuffle), as calibration_ids joins documents: int32 [n]. For evaluation.
at::Tensor token_stream(const std::vector<std::filesystem::path>& files, const std::string& text_key, AddBos add_bos,
                        const std::filesystem::path& model_folder, int64_t vocabulary);

/// NumPy .npy version 1, little-endian int32/int64/float32/float64, C order. Writing is atomic (temporary name, fsync, rename).
at::Tensor read_npy(const std::filesystem::path& file);
void write_npy(const std::filesystem::path& file, const at::Tensor& values);

/// 32 hex digits of the ids' bytes and shape.
std::string ids_fingerprint(const at::Tensor& ids);

}  // namespace hcsmoe
