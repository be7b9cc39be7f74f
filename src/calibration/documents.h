#pragma once
// Calibration files, read as documents. A file is read and cut into raw documents first; each is parsed only when it is asked for, since of
// a large file often only a few hundred documents are used.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace hcsmoe {

enum class FileKind { json_lines, text, token_ids };
/// By the name: .jsonl and .json (one object a line), .txt, these also with .gz, and .npy. UserError for any other.
FileKind file_kind(const std::filesystem::path& file);

/// One line of a .jsonl file, or a whole .txt file, as it is in the file.
struct RawDocument {
  size_t file = 0;   // index in the list of files
  int64_t line = 0;  // from 1; 0: the whole file
  std::string bytes;
};
struct Document {
  std::string text;
  std::vector<int32_t> ids;  // of a line that has "input_ids" and no text: already tokenised
};

/// What is refused: text of more than `all_bytes` in all files together, or a line or text of more than `document_bytes`. All documents are
/// held in memory, so the first is at most half of what is free, too. So is a packed file of which the unpacked text is more than
/// `most_packed` times as large, and more than `document_bytes`: text packs to a third or a tenth, a bomb to a thousandth.
struct DocumentLimits {
  uint64_t all_bytes = uint64_t{64} << 30;  // unpacked
  uint64_t document_bytes = uint64_t{256} << 20;
  uint64_t most_packed = 200;
};

class DocumentFiles {
 public:
  /// Reads all files. Lines that are blank are no documents.
  DocumentFiles(std::vector<std::filesystem::path> files, std::string text_key, const DocumentLimits& = {});

  const std::vector<RawDocument>& raw() const { return raw_; }
  /// "FILE, line 7 (document 7)", documents counted over all files.
  std::string place(size_t index) const;
  /// Throws UserError: malformed UTF-8 or JSON, or no text.
  Document parse(size_t index) const;

 private:
  /// left: bytes of memory that its documents may take; less, afterwards.
  void read(size_t file, const DocumentLimits&, uint64_t& left);

  std::vector<std::filesystem::path> files_;
  std::string text_key_;
  std::vector<RawDocument> raw_;
};

}  // namespace hcsmoe
