// The header of a safetensors file: 8 bytes (its length, little-endian), then JSON that gives each tensor's type, shape and byte range.

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "hcsmoe/checkpoint.h"
#include "hcsmoe/error.h"
#include "support/json.h"
#include "support/text.h"

namespace hcsmoe {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kLongestHeader = 100'000'000;  // the limit of the format's own implementation
constexpr size_t kMostDimensions = 32;

const char* const kUnfinished = "was the download finished? Download the file again";
const char* const kAgain = "download the file again, or restore it from where it came";

struct Context {
  const std::string& file;

  [[noreturn]] void refuse(const std::string& reason, const std::string& hint = kAgain) const {
    throw UserError(file + ": " + reason, hint);
  }
  [[noreturn]] void refuse_tensor(const std::string& name, const std::string& reason) const {
    refuse("tensor " + name_text(name) + ": " + reason);
  }
};

// Files that are often found under a safetensors name. Only for what cannot be safetensors: its first bytes are a number, so they may be
// any.
void refuse_other_kinds(std::string_view start, const Context& context) {
  if (start.starts_with("version https://git-lfs")) {
    context.refuse("a Git LFS pointer, not the file itself",
                   "run `git lfs install` and `git lfs pull` in the folder, or download the model again");
  }
  if (start.starts_with("<!DOCTYPE") || start.starts_with("<!doctype") || start.starts_with("<html")) {
    context.refuse("a web page, not a safetensors file", "download the file itself, not the page that shows it");
  }
  if (start.starts_with("PK\x03\x04") || start.starts_with("\x80\x02")) {
    context.refuse("a PyTorch file (pickle), not a safetensors file; pickles are never read, because they can run code",
                   "convert the model with transformers: save_pretrained(FOLDER, safe_serialization=True)");
  }
}

const Json& member(const Json& entry, const char* key, const std::string& name, const Context& context) {
  auto found = entry.find(key);
  if (found == entry.end()) context.refuse_tensor(name, std::string("has no ") + key);
  return *found;
}

// A number of the header: an integer, not negative, below 2^63.
int64_t size_from(const Json& value, const std::string& what, const std::string& name, const Context& context) {
  if (!value.is_number()) context.refuse_tensor(name, what + " is not a number");
  if (value.is_number_float()) context.refuse_tensor(name, what + " is not an integer, or too large for one");
  if (!value.is_number_unsigned()) context.refuse_tensor(name, what + " is negative");
  const auto number = value.get<uint64_t>();
  if (number > uint64_t{INT64_MAX}) context.refuse_tensor(name, what + " is too large: " + std::to_string(number));
  return static_cast<int64_t>(number);
}

// begin and end are still relative to the data.
TensorInfo parse_tensor(const std::string& name, const Json& entry, const Context& context) {
  if (name.empty()) context.refuse("a tensor has an empty name");
  if (name.find('\0') != std::string::npos) context.refuse("a tensor's name contains a zero byte");
  if (!entry.is_object()) context.refuse_tensor(name, "its entry is not an object");

  TensorInfo info;
  info.name = name;
  const Json& dtype = member(entry, "dtype", name, context);
  if (!dtype.is_string()) context.refuse_tensor(name, "dtype is not a string");
  try {
    info.dtype = dtype_from_name(dtype.get<std::string>());
  } catch (const UserError& error) {
    context.refuse_tensor(name, error.what());
  }

  const Json& shape = member(entry, "shape", name, context);
  if (!shape.is_array()) context.refuse_tensor(name, "shape is not an array");
  if (shape.size() > kMostDimensions) context.refuse_tensor(name, "shape has " + std::to_string(shape.size()) + " dimensions");
  // Zero extents count as one here, because torch multiplies the strides of empty tensors like that.
  int64_t largest = info.dtype.bytes;
  for (const Json& extent : shape) {
    info.shape.push_back(size_from(extent, "an extent of its shape", name, context));
    if (__builtin_mul_overflow(largest, std::max<int64_t>(info.shape.back(), 1), &largest)) {
      context.refuse_tensor(name, "its shape has more bytes than a 64-bit number can hold");
    }
  }

  const Json& offsets = member(entry, "data_offsets", name, context);
  if (!offsets.is_array() || offsets.size() != 2) context.refuse_tensor(name, "data_offsets is not an array of two numbers");
  info.begin = static_cast<uint64_t>(size_from(offsets[0], "the begin of data_offsets", name, context));
  info.end = static_cast<uint64_t>(size_from(offsets[1], "the end of data_offsets", name, context));
  if (info.end < info.begin) context.refuse_tensor(name, "its byte range ends before it begins");
  const auto expected = static_cast<uint64_t>(info.elements() * info.dtype.bytes);
  if (info.bytes() != expected) {
    context.refuse_tensor(name, "its byte range has " + std::to_string(info.bytes()) + " bytes, but its shape " + shape_text(info.shape) +
                                    " of " + info.dtype.name + " needs " + std::to_string(expected));
  }
  return info;
}

std::map<std::string, std::string> parse_metadata(const Json& entry, const Context& context) {
  if (!entry.is_object()) context.refuse("__metadata__ is not an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) context.refuse("__metadata__: the value of " + name_text(key) + " is not a string");
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

// tensors: in the order of their bytes, ranges relative to the data.
void check_cover(const std::vector<TensorInfo>& tensors, uint64_t data_bytes, const Context& context) {
  uint64_t covered = 0;
  const TensorInfo* last = nullptr;
  for (const TensorInfo& info : tensors) {
    if (info.end > data_bytes) {
      context.refuse("tensor " + name_text(info.name) + " ends at byte " + std::to_string(info.end) +
                         " of the data, but the file holds only " + std::to_string(data_bytes) +
                         ": the file is truncated, or its header is damaged",
                     kUnfinished);
    }
    if (info.begin < covered) context.refuse_tensor(info.name, "its bytes overlap those of " + name_text(last->name));
    if (info.begin > covered) {
      context.refuse_tensor(info.name, "the " + std::to_string(info.begin - covered) + " bytes before it belong to no tensor (a hole)");
    }
    covered = info.end;
    last = &info;
  }
  if (covered != data_bytes)
    context.refuse("the last " + std::to_string(data_bytes - covered) + " bytes belong to no tensor (a hole at the end)");
}

}  // namespace

int64_t TensorInfo::elements() const {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  return count;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size, const std::string& file_name) {
  const Context context{file_name};
  const std::string_view start(reinterpret_cast<const char*>(head.data()), head.size());
  if (file_size == 0) context.refuse("the file is empty", kUnfinished);
  if (file_size < kLengthBytes || head.size() < kLengthBytes) {
    refuse_other_kinds(start, context);
    context.refuse("the file has " + std::to_string(file_size) + " bytes, too few for a safetensors file");
  }
  uint64_t length = 0;
  for (uint64_t i = kLengthBytes; i-- > 0;) length = length << 8 | std::to_integer<uint64_t>(head[i]);
  if (length > kLongestHeader) {
    refuse_other_kinds(start, context);
    context.refuse("its header would have " + std::to_string(length) +
                   " bytes, more than the 100 MB of the format: not a safetensors file");
  }
  if (length > file_size - kLengthBytes || length > head.size() - kLengthBytes) {
    refuse_other_kinds(start, context);
    context.refuse("its header of " + std::to_string(length) + " bytes reaches beyond the end of the file (" + std::to_string(file_size) +
                       " bytes): the file is truncated, or no safetensors file",
                   kUnfinished);
  }
  const std::string_view json_text = start.substr(kLengthBytes, length);
  if (!json_text.starts_with('{')) {
    refuse_other_kinds(start, context);
    context.refuse("its header is not a JSON object: not a safetensors file");
  }
  const Json json = parse_json(json_text, file_name + " (header)");

  SafetensorsHeader header;
  header.data_begin = kLengthBytes + length;
  header.tensors.reserve(json.size());
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") {
      header.metadata = parse_metadata(entry, context);
    } else {
      header.tensors.push_back(parse_tensor(name, entry, context));
    }
  }
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const TensorInfo& a, const TensorInfo& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  check_cover(header.tensors, file_size - header.data_begin, context);
  for (TensorInfo& info : header.tensors) {
    info.begin += header.data_begin;
    info.end += header.data_begin;
  }
  return header;
}

}  // namespace hcsmoe
