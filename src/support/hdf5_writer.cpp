#include <unistd.h>

#include <algorithm>
#include <utility>

#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/hdf5_file.h"
#include "support/hdf5_library.h"
#include "support/hdf5_seal.h"

namespace hcsmoe {

using namespace hdf5;

namespace {

Handle text_type(size_t size) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  if (!type.valid() || H5Tset_size(type.id(), std::max<size_t>(size, 1)) < 0 || H5Tset_cset(type.id(), H5T_CSET_UTF8) < 0 ||
      H5Tset_strpad(type.id(), H5T_STR_NULLPAD) < 0) {
    fail("HDF5 cannot make a text type");
  }
  return type;
}

// False: look at the error stack.
bool put_attribute(hid_t object, const std::string& name, hid_t file_type, hid_t memory_type, const void* value) {
  Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  if (!space.valid()) return false;
  Handle attribute(H5Acreate2(object, name.c_str(), file_type, space.id(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  return attribute.valid() && H5Awrite(attribute.id(), memory_type, value) >= 0 && attribute.close();
}

std::filesystem::path folder_of(const std::filesystem::path& file) { return file.has_parent_path() ? file.parent_path() : "."; }

}  // namespace

struct Hdf5Writer::State {
  std::filesystem::path path, temporary;
  Handle file;
  std::vector<ByteRange> ranges;  // of the datasets
  bool finished = false;

  [[noreturn]] void failed(const std::string& doing) const {
    fail("cannot write " + path.string() + ": " + doing,
         "is there free space in " + folder_of(path).string() + ", and may you write there?");
  }

  ~State() {
    if (finished) return;
    prepare_library();
    if (!file.close()) {
      H5Eclear2(H5E_DEFAULT);
      // HDF5 keeps a file that it could not close; give its blocks back to the disk all the same.
      std::error_code ignored;
      std::filesystem::resize_file(temporary, 0, ignored);
    }
    ::unlink(temporary.c_str());
  }
};

Hdf5Writer::Hdf5Writer(const std::filesystem::path& path, const std::string& format) : state_(std::make_unique<State>()) {
  prepare_library();
  State& s = *state_;
  s.path = path;
  s.temporary = path;
  s.temporary += ".tmp";
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  // No locks: the file has one writer and a name of its own, and some network file systems have none.
  if (!access.valid() || H5Pset_file_locking(access.id(), false, true) < 0) s.failed("cannot prepare the file");
  s.file = Handle(H5Fcreate(s.temporary.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.id()), H5Fclose);
  if (!s.file.valid()) s.failed("cannot create " + s.temporary.string());
  attribute(kFormatAttribute, format);
}

Hdf5Writer::~Hdf5Writer() = default;

void Hdf5Writer::attribute(const std::string& name, const std::string& value) {
  prepare_library();
  Handle type = text_type(value.size());
  if (!put_attribute(state_->file.id(), name, type.id(), type.id(), value.c_str())) state_->failed("the attribute " + name);
}

void Hdf5Writer::attribute(const std::string& name, int64_t value) {
  prepare_library();
  if (!put_attribute(state_->file.id(), name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value)) state_->failed("the attribute " + name);
}

void Hdf5Writer::dataset(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape,
                         std::span<const std::byte> bytes) {
  prepare_library();
  State& s = *state_;
  const std::string doing = "the dataset " + name;
  if (name.empty() || name == "." || name.find('/') != std::string::npos) {
    throw Error("a dataset of " + s.path.string() + " cannot have the name \"" + name + "\"");
  }
  Handle type = type_from_name(dtype);
  if (!type.valid()) throw Error("cannot write " + doing + " to " + s.path.string() + ": no HDF5 type for " + dtype);
  uint64_t expected = 0;
  if (!byte_count(shape, H5Tget_size(type.id()), expected) || expected != bytes.size()) {
    throw Error("cannot write " + doing + " to " + s.path.string() + ": " + std::to_string(bytes.size()) +
                " bytes do not make its shape and type");
  }
  std::vector<hsize_t> extents(shape.begin(), shape.end());
  Handle space(shape.empty() ? H5Screate(H5S_SCALAR) : H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr),
               H5Sclose);
  Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  // Without the times: equal content makes equal files.
  if (!space.valid() || !creation.valid() || H5Pset_layout(creation.id(), H5D_CONTIGUOUS) < 0 ||
      H5Pset_alloc_time(creation.id(), H5D_ALLOC_TIME_EARLY) < 0 || H5Pset_fill_time(creation.id(), H5D_FILL_TIME_NEVER) < 0 ||
      H5Pset_obj_track_times(creation.id(), false) < 0) {
    s.failed(doing);
  }
  Handle set(H5Dcreate2(s.file.id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, creation.id(), H5P_DEFAULT), H5Dclose);
  if (!set.valid()) s.failed(doing);
  // Written with the file's own type: the bytes go to disk as they are.
  if (!bytes.empty() && H5Dwrite(set.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) < 0) s.failed(doing);
  if (!bytes.empty()) {
    const haddr_t offset = H5Dget_offset(set.id());
    if (offset == HADDR_UNDEF) s.failed(doing);
    s.ranges.push_back({offset, bytes.size()});
  }
  const uint64_t checksum = checksum64(bytes);
  if (!put_attribute(set.id(), kChecksumAttribute, H5T_STD_U64LE, H5T_NATIVE_UINT64, &checksum) || !set.close()) s.failed(doing);
}

void Hdf5Writer::finish() {
  prepare_library();
  State& s = *state_;
  if (H5Fflush(s.file.id(), H5F_SCOPE_GLOBAL) < 0) s.failed("cannot flush it");
  if (!s.file.close()) s.failed("cannot close it");
  seal(s.temporary, s.ranges);
  std::error_code error;
  std::filesystem::rename(s.temporary, s.path, error);
  if (error) throw UserError("cannot rename " + s.temporary.string() + " to " + s.path.string() + ": " + error.message());
  s.finished = true;
  sync_folder(folder_of(s.path));
}

}  // namespace hcsmoe
