#include "support/hdf5_seal.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <string_view>

#include "hcsmoe/error.h"

namespace hcsmoe::hdf5 {
namespace {

static_assert(std::endian::native == std::endian::little, "the seal is written as it lies in memory");
static_assert(sizeof(ByteRange) == 16);

constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
constexpr std::array<char, 8> kMark = {'h', 'c', 's', 'm', 'o', 'e', '.', 'h'};
constexpr uint64_t kMostRanges = 1'000'000;

struct Footer {
  uint64_t ranges = 0;
  uint64_t checksum = 0;
  std::array<char, 8> mark{};
};
static_assert(sizeof(Footer) == 24);

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& reason) {
  throw UserError(path.string() + " " + reason, "delete it, and it will be made again");
}

// Of [0, end) without the ranges, which are sorted and lie inside, then of the table itself.
uint64_t structure_checksum(const File& file, uint64_t end, const std::vector<ByteRange>& sorted) {
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(), XXH3_freeState);
  if (!hash) throw std::bad_alloc();
  XXH3_64bits_reset(hash.get());
  std::vector<std::byte> buffer(1 << 16);
  auto add = [&](uint64_t from, uint64_t to) {
    while (from < to) {
      std::span<std::byte> piece(buffer.data(), std::min<uint64_t>(buffer.size(), to - from));
      file.read_at(from, piece);
      XXH3_64bits_update(hash.get(), piece.data(), piece.size());
      from += piece.size();
    }
  };
  uint64_t at = 0;
  for (const ByteRange& range : sorted) {
    add(at, range.begin);
    at = range.begin + range.length;
  }
  add(at, end);
  XXH3_64bits_update(hash.get(), sorted.data(), sorted.size() * sizeof(ByteRange));
  return XXH3_64bits_digest(hash.get());
}

}  // namespace

void seal(const std::filesystem::path& path, std::vector<ByteRange> datasets) {
  std::erase_if(datasets, [](const ByteRange& range) { return range.length == 0; });
  std::sort(datasets.begin(), datasets.end(), [](const ByteRange& a, const ByteRange& b) { return a.begin < b.begin; });
  File file = File::open_append(path);
  Footer footer{datasets.size(), structure_checksum(file, file.size(), datasets), kMark};
  file.write(std::as_bytes(std::span(datasets)));
  file.write(std::as_bytes(std::span(&footer, 1)));
  file.sync();
  file.close();
}

void check_seal(const File& file, const std::filesystem::path& path) {
  const uint64_t size = file.size();
  if (size == 0) refuse(path, "is not an HDF5 file: it is empty");
  std::string start(std::min<uint64_t>(size, kSignature.size()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(start)));
  if (start != kSignature) refuse(path, "is not an HDF5 file");

  Footer footer;
  if (size >= sizeof footer) file.read_at(size - sizeof footer, std::as_writable_bytes(std::span(&footer, 1)));
  if (footer.mark != kMark) refuse(path, "is truncated, or was not made or was changed afterwards by another program: its seal is missing");
  const uint64_t before_footer = size - sizeof footer;
  bool sound = footer.ranges <= kMostRanges && footer.ranges * sizeof(ByteRange) <= before_footer;
  std::vector<ByteRange> ranges(sound ? footer.ranges : 0);
  const uint64_t end = before_footer - ranges.size() * sizeof(ByteRange);
  if (sound) file.read_at(end, std::as_writable_bytes(std::span(ranges)));
  uint64_t at = 0;
  for (const ByteRange& range : ranges) {
    sound = sound && range.begin >= at && range.begin <= end && range.length <= end - range.begin;
    at = range.begin + range.length;
  }
  if (!sound || structure_checksum(file, end, ranges) != footer.checksum)
    refuse(path, "is damaged: its structure does not match its checksum");
}

}  // namespace hcsmoe::hdf5
