// From documents to calibration sequences. The order of the documents is part of the result, so it is defined here in full: a Fisher-Yates
// shuffle from the last document down, drawing from std::mt19937_64 (whose output the C++ standard fixes) by rejection of the uneven rest.

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "calibration/documents.h"
#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"

namespace hcsmoe {

namespace {

/// Uniform in [0, bound).
uint64_t draw(std::mt19937_64& random, uint64_t bound) {
  const uint64_t uneven = -bound % bound;  // 2^64 mod bound
  uint64_t value = random();
  while (value < uneven) value = random();
  return value % bound;
}

std::vector<size_t> shuffled_order(size_t count, uint64_t seed) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937_64 random(seed);
  for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[draw(random, i)]);
  return order;
}

void check_id(int64_t id, int64_t vocabulary, const std::string& place) {
  if (id >= 0 && id < vocabulary) return;
  throw UserError(place + ": token id " + std::to_string(id) + " is outside the model's vocabulary of " + std::to_string(vocabulary),
                  "do the ids, or tokenizer.json, belong to this model?");
}

/// Appends documents to a stream of ids, each (BOS) ids EOS.
class Joiner {
 public:
  Joiner(const DocumentFiles& documents, AddBos add_bos, const std::filesystem::path& model_folder, int64_t vocabulary)
      : documents_(documents), tokenizer_(Tokenizer::load(model_folder)), folder_(model_folder.string()), vocabulary_(vocabulary) {
    if (add_bos == AddBos::automatic) bos_ = tokenizer_.automatic_bos();
    if (add_bos == AddBos::yes) {
      bos_ = tokenizer_.bos();
      if (!bos_)
        throw UserError(folder_ + ": no BOS token is known",
                        "set calibration.add_bos to auto or no, or bos_token in tokenizer_config.json");
    }
    const std::optional<int32_t> eos = tokenizer_.eos();
    if (!eos) {
      throw UserError(folder_ + ": no EOS token is known; every document ends with one",
                      "set eos_token in tokenizer_config.json, or eos_token_id in config.json");
    }
    eos_ = *eos;
    check_id(eos_, vocabulary_, folder_ + ", EOS token");
    if (bos_) check_id(*bos_, vocabulary_, folder_ + ", BOS token");
  }

  void append(size_t index, std::vector<int32_t>& stream) const {
    const Document document = documents_.parse(index);
    std::vector<int32_t> ids = document.ids;
    if (!document.text.empty()) {
      ids = tokenizer_.encode(document.text);
      if (bos_) ids.insert(ids.begin(), *bos_);
      ids.push_back(eos_);
    }
    for (const int32_t id : ids) check_id(id, vocabulary_, documents_.place(index));
    stream.insert(stream.end(), ids.begin(), ids.end());
  }

 private:
  const DocumentFiles& documents_;
  Tokenizer tokenizer_;
  std::string folder_;
  int64_t vocabulary_;
  std::optional<int32_t> bos_;
  int32_t eos_ = 0;
};

/// All files hold token ids, or none does.
bool are_token_ids(const std::vector<std::filesystem::path>& files) {
  if (files.empty()) throw UserError("no calibration files are given", "set calibration.files");
  const bool ids = file_kind(files.front()) == FileKind::token_ids;
  for (const auto& file : files) {
    if ((file_kind(file) == FileKind::token_ids) == ids) continue;
    throw UserError(files.front().string() + " and " + file.string() + ": text and token ids (.npy) cannot be mixed");
  }
  return ids;
}

/// length: that of the rows of a two-dimensional array; 0: any.
void append_token_ids(const std::filesystem::path& file, int64_t length, int64_t vocabulary, std::vector<int32_t>& stream) {
  const at::Tensor values = read_npy(file);
  if (values.is_floating_point()) throw UserError(file.string() + ": token ids must be int32 or int64");
  if (values.dim() != 1 && values.dim() != 2) {
    throw UserError(file.string() + ": token ids must have one or two dimensions, not " + std::to_string(values.dim()));
  }
  if (values.dim() == 2 && length > 0 && values.size(1) != length) {
    throw UserError(file.string() + ": sequences of " + std::to_string(values.size(1)) + " tokens, where calibration.length is " +
                        std::to_string(length),
                    "set calibration.length to " + std::to_string(values.size(1)));
  }
  const at::Tensor ids = values.to(at::kLong);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    if (id[i] < 0 || id[i] >= vocabulary) check_id(id[i], vocabulary, file.string() + ", value " + std::to_string(i));
    stream.push_back(static_cast<int32_t>(id[i]));
  }
}

at::Tensor as_tensor(const std::vector<int32_t>& ids, at::IntArrayRef shape) {
  at::Tensor result = at::empty(shape, at::TensorOptions(at::kInt));
  std::copy_n(ids.begin(), result.numel(), result.mutable_data_ptr<int32_t>());
  return result;
}

}  // namespace

at::Tensor calibration_ids(const CalibrationConfig& config, const std::filesystem::path& model_folder, int64_t vocabulary) {
  int64_t wanted = 0;
  if (config.sequences < 1 || config.length < 1 || __builtin_mul_overflow(config.sequences, config.length, &wanted)) {
    throw UserError("calibration.sequences and calibration.length must be at least 1, and their product below 2^63");
  }
  const auto enough = [&](const std::vector<int32_t>& stream) { return static_cast<int64_t>(stream.size()) >= wanted; };
  std::vector<int32_t> stream;
  if (are_token_ids(config.files)) {
    for (const auto& file : config.files) append_token_ids(file, config.length, vocabulary, stream);
  } else {
    const DocumentFiles documents(config.files, config.text_key);
    const Joiner joiner(documents, config.add_bos, model_folder, vocabulary);
    for (const size_t index : shuffled_order(documents.raw().size(), config.seed)) {
      if (enough(stream)) break;
      joiner.append(index, stream);
    }
  }
  if (!enough(stream)) {
    throw UserError("calibration.files have " + std::to_string(stream.size()) +
                        " tokens; sequences x length = " + std::to_string(config.sequences) + " x " + std::to_string(config.length) +
                        " = " + std::to_string(wanted) + " are asked for",
                    "add files, or lower calibration.sequences or calibration.length");
  }
  return as_tensor(stream, {config.sequences, config.length});
}

at::Tensor token_stream(const std::vector<std::filesystem::path>& files, const std::string& text_key, AddBos add_bos,
                        const std::filesystem::path& model_folder, int64_t vocabulary) {
  std::vector<int32_t> stream;
  if (are_token_ids(files)) {
    for (const auto& file : files) append_token_ids(file, 0, vocabulary, stream);
  } else {
    const DocumentFiles documents(files, text_key);
    const Joiner joiner(documents, add_bos, model_folder, vocabulary);
    for (size_t index = 0; index < documents.raw().size(); ++index) joiner.append(index, stream);
  }
  return as_tensor(stream, {static_cast<int64_t>(stream.size())});
}

}  // namespace hcsmoe
