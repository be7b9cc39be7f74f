#include <xxhash.h>

#include <algorithm>
#include <map>
#include <new>
#include <utility>

#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/hdf5_file.h"
#include "support/hdf5_library.h"
#include "support/hdf5_seal.h"

namespace hcsmoe {

using namespace hdf5;

namespace {

constexpr size_t kPiece = size_t{8} << 20;        // bytes handed to a sink at once
constexpr size_t kLongestText = size_t{1} << 16;  // of an attribute; HDF5's own limit for this kind of file
constexpr hsize_t kMostDatasets = 1'000'000;
constexpr int kMostDimensions = 32;  // HDF5's own limit

// Everything of an HDF5 file that the reader needs: taken once, after which the library is not needed any more.
struct Content {
  std::map<std::string, std::string> texts;
  std::map<std::string, int64_t> integers;
  std::vector<Hdf5Dataset> datasets;
};

[[noreturn]] void damaged(const std::filesystem::path& path, const std::string& reason) {
  H5Eclear2(H5E_DEFAULT);
  throw UserError(path.string() + " is damaged: " + reason, "delete it, and it will be made again");
}

void read_attribute(const std::filesystem::path& path, hid_t file, const std::string& name, Content& content) {
  Handle attribute(H5Aopen(file, name.c_str(), H5P_DEFAULT), H5Aclose);
  Handle type(attribute.valid() ? H5Aget_type(attribute.id()) : -1, H5Tclose);
  Handle space(attribute.valid() ? H5Aget_space(attribute.id()) : -1, H5Sclose);
  if (!type.valid() || !space.valid()) fail("cannot read " + path.string() + ": the attribute " + name);
  if (H5Sget_simple_extent_npoints(space.id()) != 1) return;  // not one of ours
  if (H5Tget_class(type.id()) == H5T_INTEGER) {
    int64_t value = 0;
    if (H5Aread(attribute.id(), H5T_NATIVE_INT64, &value) < 0) fail("cannot read " + path.string() + ": the attribute " + name);
    content.integers[name] = value;
  } else if (H5Tget_class(type.id()) == H5T_STRING && H5Tis_variable_str(type.id()) == 0) {
    const size_t length = H5Tget_size(type.id());
    if (length > kLongestText) damaged(path, "the attribute " + name + " has " + std::to_string(length) + " bytes");
    std::string text(length, '\0');
    if (H5Aread(attribute.id(), type.id(), text.data()) < 0) fail("cannot read " + path.string() + ": the attribute " + name);
    text.resize(text.find_last_not_of('\0') + 1);
    content.texts[name] = std::move(text);
  }
}

uint64_t read_checksum(const std::filesystem::path& path, hid_t set, const std::string& where) {
  Handle attribute(H5Aopen(set, kChecksumAttribute, H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) damaged(path, where + " has no checksum");
  Handle type(H5Aget_type(attribute.id()), H5Tclose);
  Handle space(H5Aget_space(attribute.id()), H5Sclose);
  uint64_t checksum = 0;
  if (!type.valid() || !space.valid() || H5Tequal(type.id(), H5T_STD_U64LE) <= 0 || H5Sget_simple_extent_npoints(space.id()) != 1 ||
      H5Aread(attribute.id(), H5T_NATIVE_UINT64, &checksum) < 0) {
    damaged(path, where + " has no readable checksum");
  }
  return checksum;
}

Hdf5Dataset read_dataset(const std::filesystem::path& path, hid_t file, const std::string& name, uint64_t file_size) {
  const std::string where = "the dataset " + name;
  H5L_info_t link;
  if (H5Lget_info(file, name.c_str(), &link, H5P_DEFAULT) < 0) damaged(path, where + " cannot be looked up");
  // A soft or external link could lead to another file.
  if (link.type != H5L_TYPE_HARD) damaged(path, name + " is a link, not a dataset");
  Handle set(H5Oopen(file, name.c_str(), H5P_DEFAULT), H5Oclose);
  if (!set.valid()) damaged(path, where + " cannot be opened: " + take_error_stack());
  if (H5Iget_type(set.id()) != H5I_DATASET) damaged(path, name + " is not a dataset");
  Handle type(H5Dget_type(set.id()), H5Tclose);
  Handle space(H5Dget_space(set.id()), H5Sclose);
  Handle creation(H5Dget_create_plist(set.id()), H5Pclose);
  if (!type.valid() || !space.valid() || !creation.valid()) damaged(path, where + " cannot be described: " + take_error_stack());

  Hdf5Dataset out;
  out.name = name;
  out.dtype = name_from_type(type.id());
  if (out.dtype.empty()) damaged(path, where + " has an element type that is not one of ours");
  if (H5Pget_layout(creation.id()) != H5D_CONTIGUOUS || H5Pget_external_count(creation.id()) != 0) {
    damaged(path, where + " is not stored in one piece");
  }
  const int dimensions = H5Sget_simple_extent_ndims(space.id());
  if (dimensions < 0 || dimensions > kMostDimensions || H5Sget_simple_extent_type(space.id()) == H5S_NULL)
    damaged(path, where + " has no shape");
  std::vector<hsize_t> extents(static_cast<size_t>(dimensions));
  if (H5Sget_simple_extent_dims(space.id(), extents.data(), nullptr) < 0) damaged(path, where + " has no shape");
  for (hsize_t extent : extents) {
    if (extent > hsize_t{INT64_MAX}) damaged(path, where + " has an impossible shape");
    out.shape.push_back(static_cast<int64_t>(extent));
  }
  if (!byte_count(out.shape, H5Tget_size(type.id()), out.bytes)) damaged(path, where + " has an impossible shape");
  if (out.bytes > 0) {
    const haddr_t offset = H5Dget_offset(set.id());
    if (offset == HADDR_UNDEF || H5Dget_storage_size(set.id()) != out.bytes) damaged(path, where + " is not stored in full");
    if (offset > file_size || out.bytes > file_size - offset) damaged(path, where + " lies beyond the end of the file");
    out.offset = offset;
  }
  out.checksum = read_checksum(path, set.id(), where);
  return out;
}

Content read_content(const std::filesystem::path& path, const std::string& format, const File& disk_file) {
  check_seal(disk_file, path);
  prepare_library();
  const std::string hint = "delete it, and it will be made again";
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  if (!access.valid() || H5Pset_file_locking(access.id(), false, true) < 0) fail("cannot read " + path.string());
  Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()), H5Fclose);
  if (!file.valid()) fail("cannot open " + path.string() + " as an HDF5 file", hint);

  Content content;
  std::vector<std::string> names;
  auto note = [](hid_t, const char* name, const H5A_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->push_back(name);
    return 0;
  };
  hsize_t next = 0;
  if (H5Aiterate2(file.id(), H5_INDEX_NAME, H5_ITER_INC, &next, note, &names) < 0)
    fail("cannot read " + path.string() + ": its attributes", hint);
  for (const std::string& name : names) read_attribute(path, file.id(), name, content);
  if (auto found = content.texts.find(kFormatAttribute); found == content.texts.end() || found->second != format) {
    throw UserError(path.string() + " is not a file of the format " + format + ": " +
                        (found == content.texts.end() ? "it has no format attribute" : "its format is " + found->second),
                    hint);
  }

  H5G_info_t group;
  if (H5Gget_info(file.id(), &group) < 0) fail("cannot read " + path.string() + ": its datasets", hint);
  if (group.nlinks > kMostDatasets) damaged(path, "it claims " + std::to_string(group.nlinks) + " datasets");
  for (hsize_t i = 0; i < group.nlinks; ++i) {
    ssize_t length = H5Lget_name_by_idx(file.id(), ".", H5_INDEX_NAME, H5_ITER_INC, i, nullptr, 0, H5P_DEFAULT);
    if (length <= 0 || static_cast<size_t>(length) > kLongestText) damaged(path, "a dataset has no name");
    std::string name(static_cast<size_t>(length), '\0');
    if (H5Lget_name_by_idx(file.id(), ".", H5_INDEX_NAME, H5_ITER_INC, i, name.data(), name.size() + 1, H5P_DEFAULT) < 0) {
      damaged(path, "a dataset has no name");
    }
    content.datasets.push_back(read_dataset(path, file.id(), name, disk_file.size()));
  }
  std::sort(content.datasets.begin(), content.datasets.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return content;
}

const Hdf5Dataset* find(const std::vector<Hdf5Dataset>& sorted, const std::string& name) {
  auto at = std::lower_bound(sorted.begin(), sorted.end(), name, [](const Hdf5Dataset& set, const std::string& n) { return set.name < n; });
  return at != sorted.end() && at->name == name ? &*at : nullptr;
}

}  // namespace

struct Hdf5Reader::State {
  std::filesystem::path path;
  File file;
  Content content;
};

Hdf5Reader::Hdf5Reader(const std::filesystem::path& path, const std::string& format) {
  File file = File::open_read(path);
  Content content = read_content(path, format, file);
  state_ = std::make_unique<State>(State{path, std::move(file), std::move(content)});
}

Hdf5Reader::~Hdf5Reader() = default;
Hdf5Reader::Hdf5Reader(Hdf5Reader&&) noexcept = default;

std::string Hdf5Reader::text(const std::string& attribute) const {
  auto found = state_->content.texts.find(attribute);
  if (found == state_->content.texts.end()) damaged(state_->path, "it has no text attribute " + attribute);
  return found->second;
}

int64_t Hdf5Reader::integer(const std::string& attribute) const {
  auto found = state_->content.integers.find(attribute);
  if (found == state_->content.integers.end()) damaged(state_->path, "it has no integer attribute " + attribute);
  return found->second;
}

const std::vector<Hdf5Dataset>& Hdf5Reader::datasets() const { return state_->content.datasets; }

bool Hdf5Reader::has(const std::string& name) const { return find(datasets(), name) != nullptr; }

const Hdf5Dataset& Hdf5Reader::info(const std::string& name) const {
  if (const Hdf5Dataset* set = find(datasets(), name)) return *set;
  damaged(state_->path, "it has no dataset " + name);
}

// With pread at the dataset's offset: as fast as the disk, and no lock of the library is held meanwhile.
void Hdf5Reader::read(const std::string& name, const std::function<void(std::span<const std::byte>)>& sink) const {
  const Hdf5Dataset& set = info(name);
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(), XXH3_freeState);
  if (!hash) throw std::bad_alloc();
  XXH3_64bits_reset(hash.get());
  std::vector<std::byte> buffer(static_cast<size_t>(std::min<uint64_t>(set.bytes, kPiece)));
  for (uint64_t done = 0; done < set.bytes;) {
    std::span<std::byte> piece(buffer.data(), static_cast<size_t>(std::min<uint64_t>(set.bytes - done, kPiece)));
    state_->file.read_at(set.offset + done, piece);
    XXH3_64bits_update(hash.get(), piece.data(), piece.size());
    sink(piece);
    done += piece.size();
  }
  if (XXH3_64bits_digest(hash.get()) != set.checksum)
    damaged(state_->path, "the bytes of the dataset " + name + " do not match their checksum");
}

std::vector<std::byte> Hdf5Reader::read(const std::string& name) const {
  std::vector<std::byte> bytes;
  bytes.reserve(info(name).bytes);
  read(name, [&](std::span<const std::byte> piece) { bytes.insert(bytes.end(), piece.begin(), piece.end()); });
  return bytes;
}

}  // namespace hcsmoe
