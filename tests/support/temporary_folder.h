#pragma once
// For tests: a folder that goes away with its object, and small files to put into it. Shares no code with what it tests.

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace hcsmoe {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "hcsmoe_test_XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("cannot make a temporary folder " + name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::filesystem::path& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::filesystem::path& file, std::string_view content) {
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!out.flush()) throw std::runtime_error("cannot write " + file.string());
}

inline std::string read_text(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + file.string());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// A tensor as it goes to a file. Names must not need escaping in JSON.
struct RawTensor {
  std::string name;
  std::string dtype;  // "BF16"
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

template <class T>
RawTensor raw_tensor(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape, const std::vector<T>& values) {
  auto bytes = std::as_bytes(std::span(values));
  return {name, dtype, shape, {bytes.begin(), bytes.end()}};
}

/// A whole safetensors file: 8 bytes of header length, the header as it is given, the data as it is given.
inline std::string safetensors_bytes(const std::string& header, std::string_view data) {
  std::string out(8, '\0');
  for (int i = 0; i < 8; ++i) out[static_cast<size_t>(i)] = static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i));
  return out.append(header).append(data);
}

/// Writes tensors in the order given. padding: spaces at the end of the header; by default what aligns the data to 8 bytes.
inline void write_safetensors(const std::filesystem::path& file, const std::vector<RawTensor>& tensors, int padding = -1) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::string data;
  for (const RawTensor& tensor : tensors) {
    std::string shape;
    for (int64_t extent : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(extent);
    header += ",\"" + tensor.name + R"(":{"dtype":")" + tensor.dtype + R"(","shape":[)" + shape + R"(],"data_offsets":[)" +
              std::to_string(data.size()) + "," + std::to_string(data.size() + tensor.bytes.size()) + "]}";
    data.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  header += "}";
  header.append(padding >= 0 ? static_cast<size_t>(padding) : (8 - header.size() % 8) % 8, ' ');
  write_text(file, safetensors_bytes(header, data));
}

/// The action must throw Exception, and its message must hold every one of the parts.
template <class Exception, class Action>
void expect_error(Action&& action, const std::vector<std::string>& parts) {
  try {
    action();
    ADD_FAILURE() << "no error, but one with \"" << (parts.empty() ? "" : parts.front()) << "\" was expected";
  } catch (const Exception& error) {
    const std::string what = error.what();
    for (const std::string& part : parts) EXPECT_NE(what.find(part), std::string::npos) << "\"" << part << "\" is not in: " << what;
  }
}

}  // namespace hcsmoe
