// NumPy's .npy: a magic string, a version, the length of a header, the header (a Python dict literal), the array's bytes.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ops/empty.h>

#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"
#include "support/files.h"

namespace hcsmoe {

namespace {

static_assert(std::endian::native == std::endian::little, "arrays are read and written in place, little-endian");

constexpr std::string_view magic = "\x93NUMPY";
constexpr size_t max_header = 1 << 16;
constexpr size_t max_dimensions = 32;
constexpr uint64_t max_bytes = uint64_t{16} << 30;  // of values, which are read as one

struct NpyType {
  std::string_view name;
  at::ScalarType torch;
};
constexpr std::array<NpyType, 4> npy_types{{{"<i4", at::kInt}, {"<i8", at::kLong}, {"<f4", at::kFloat}, {"<f8", at::kDouble}}};

struct NpyHeader {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

/// {'descr': '<i4', 'fortran_order': False, 'shape': (3, 4), } in any order of keys.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& file) : text_(text), file_(file) {}

  NpyHeader run() {
    NpyHeader header;
    int seen = 0;
    expect('{');
    while (!take('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr" && (seen & 1) == 0) {
        header.descr = string();
        seen |= 1;
      } else if (key == "fortran_order" && (seen & 2) == 0) {
        header.fortran_order = boolean();
        seen |= 2;
      } else if (key == "shape" && (seen & 4) == 0) {
        header.shape = shape();
        seen |= 4;
      } else {
        fail();
      }
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    skip_blanks();
    if (i_ != text_.size() || seen != 7) fail();
    return header;
  }

 private:
  [[noreturn]] void fail() const { throw UserError(file_ + ": the .npy header cannot be understood", "write it again with numpy.save"); }
  void skip_blanks() {
    while (i_ < text_.size() && (text_[i_] == ' ' || text_[i_] == '\n')) ++i_;
  }
  bool take(char c) {
    skip_blanks();
    if (i_ == text_.size() || text_[i_] != c) return false;
    ++i_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail();
  }
  std::string string() {
    skip_blanks();
    const char quote = i_ < text_.size() ? text_[i_] : '\0';
    const size_t end = quote == '\'' || quote == '"' ? text_.find(quote, i_ + 1) : std::string_view::npos;
    if (end == std::string_view::npos) fail();
    std::string value(text_.substr(i_ + 1, end - i_ - 1));
    i_ = end + 1;
    return value;
  }
  bool boolean() {
    skip_blanks();
    for (const std::string_view word : {"True", "False"}) {
      if (!text_.substr(i_).starts_with(word)) continue;
      i_ += word.size();
      return word == "True";
    }
    fail();
  }
  std::vector<int64_t> shape() {
    std::vector<int64_t> sizes;
    expect('(');
    while (!take(')')) {
      sizes.push_back(integer());
      if (!take(',')) {
        expect(')');
        break;
      }
    }
    return sizes;
  }
  int64_t integer() {
    skip_blanks();
    const size_t begin = i_;
    int64_t value = 0;
    while (i_ < text_.size() && text_[i_] >= '0' && text_[i_] <= '9') {
      if (value > (std::numeric_limits<int64_t>::max() - 9) / 10) fail();
      value = value * 10 + (text_[i_++] - '0');
    }
    if (i_ == begin) fail();
    return value;
  }

  std::string_view text_;
  const std::string& file_;
  size_t i_ = 0;
};

std::string read_text(const File& file, uint64_t offset, size_t size) {
  std::string text(size, '\0');
  file.read_at(offset, std::as_writable_bytes(std::span(text)));
  return text;
}

/// The product of the sizes times the element size, unless it exceeds 2^63.
std::optional<uint64_t> byte_count(const std::vector<int64_t>& shape, uint64_t element) {
  auto bytes = static_cast<int64_t>(element);
  for (const int64_t size : shape) {  // zero counts as one here, because torch multiplies the strides of empty arrays like that
    if (__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes)) return std::nullopt;
  }
  return std::find(shape.begin(), shape.end(), 0) != shape.end() ? 0 : static_cast<uint64_t>(bytes);
}

}  // namespace

at::Tensor read_npy(const std::filesystem::path& path) {
  const File file = File::open_read(path);
  const std::string name = path.string();
  const uint64_t file_size = file.size();
  const auto not_npy = [&] { return UserError(name + " is not a .npy file, or it is cut off"); };
  if (file_size < 10) throw not_npy();
  const std::string head = read_text(file, 0, 10);
  if (!head.starts_with(magic)) throw not_npy();
  const int version = static_cast<unsigned char>(head[6]);
  if (version < 1 || version > 3) throw UserError(name + ": .npy version " + std::to_string(version) + " is not known");
  const uint64_t header_begin = version == 1 ? 10 : 12;  // the length has two bytes, then four
  if (file_size < header_begin) throw not_npy();
  const std::string length_bytes = read_text(file, 8, header_begin - 8);
  uint32_t length = 0;
  std::memcpy(&length, length_bytes.data(), length_bytes.size());
  if (length > max_header || length > file_size - header_begin) throw not_npy();

  const std::string header_text = read_text(file, header_begin, length);
  const NpyHeader header = HeaderParser(header_text, name).run();
  std::optional<at::ScalarType> type;
  for (const NpyType& candidate : npy_types) {
    if (candidate.name == header.descr) type = candidate.torch;
  }
  if (!type) {
    throw UserError(name + ": arrays of type " + header.descr + " are not read; int32, int64, float32 and float64 are, little-endian",
                    "convert the array, as in array.astype(numpy.int32)");
  }
  if (header.fortran_order && header.shape.size() > 1) {
    throw UserError(name + ": the array is in Fortran order", "write it again with numpy.ascontiguousarray");
  }
  if (header.shape.size() > max_dimensions) {
    throw UserError(name + ": an array of " + std::to_string(header.shape.size()) + " dimensions; at most " +
                    std::to_string(max_dimensions) + " are read");
  }
  const uint64_t data_begin = header_begin + length;
  const std::optional<uint64_t> bytes = byte_count(header.shape, at::elementSize(*type));
  if (!bytes || *bytes != file_size - data_begin) {
    throw UserError(name + ": the header's shape does not fit the file, which has " + std::to_string(file_size - data_begin) +
                    " bytes of values");
  }
  if (*bytes > max_bytes) {
    throw UserError(name + ": " + std::to_string(*bytes) + " bytes of values; at most " + std::to_string(max_bytes) + " are read",
                    "keep the part of the array that is needed");
  }
  at::Tensor values = at::empty(header.shape, at::TensorOptions(*type));
  file.read_at(data_begin, {static_cast<std::byte*>(values.data_ptr()), *bytes});
  return values;
}

void write_npy(const std::filesystem::path& file, const at::Tensor& values) {
  std::string_view descr;
  for (const NpyType& candidate : npy_types) {
    if (candidate.torch == values.scalar_type()) descr = candidate.name;
  }
  if (descr.empty()) throw Error("write_npy: no .npy type for " + std::string(at::toString(values.scalar_type())));
  const at::Tensor plain = values.cpu().contiguous();
  std::string header = "{'descr': '" + std::string(descr) + "', 'fortran_order': False, 'shape': (";
  for (const int64_t size : plain.sizes()) header += std::to_string(size) + ", ";
  if (plain.dim() > 1) header.resize(header.size() - 2);  // (3, 4) but (3, )
  header += "), }";
  constexpr size_t alignment = 64, before = 10;  // the values start at a multiple of 64 bytes
  header.append(alignment - 1 - (before + header.size()) % alignment, ' ');
  header += '\n';
  std::string content(magic);
  content += {'\x01', '\x00', static_cast<char>(header.size() & 0xFF), static_cast<char>(header.size() >> 8)};
  content += header;
  content.append(static_cast<const char*>(plain.data_ptr()), static_cast<size_t>(plain.numel()) * plain.element_size());
  write_file_atomically(file, content);
}

std::string ids_fingerprint(const at::Tensor& ids) {
  const at::Tensor plain = ids.cpu().contiguous();
  std::string shape = at::toString(plain.scalar_type());
  for (const int64_t size : plain.sizes()) shape += " " + std::to_string(size);
  Hasher hasher;
  hasher.add(shape + "\n");
  hasher.add(std::span(static_cast<const std::byte*>(plain.data_ptr()), static_cast<size_t>(plain.numel()) * plain.element_size()));
  return hasher.hex();
}

}  // namespace hcsmoe
