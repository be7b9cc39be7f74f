#include "calibration/documents.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "calibration/utf8.h"
#include "hcsmoe/calibration.h"
#include "hcsmoe/error.h"
#include "support/files.h"
#include "support/free_memory.h"
#include "support/json.h"

namespace hcsmoe {

namespace {

using Json = nlohmann::ordered_json;

/// A text file, unpacked on the way if its name ends in .gz. Counts what it hands out.
class TextStream {
 public:
  /// most_packed: bytes of text for a byte of the file, from `lenient` bytes of text on.
  TextStream(const std::filesystem::path& file, uint64_t most_packed, uint64_t lenient)
      : file_(file), lenient_(lenient), buffer_(1 << 20, '\0') {
    most_ = File::open_read(file).size() * most_packed;  // opening says what is wrong better than zlib
    stream_.reset(gzopen(file.c_str(), "rb"));
    if (!stream_) throw UserError("cannot read " + file.string() + ": " + std::strerror(errno));
    const bool packed = gzdirect(stream_.get()) == 0;
    if (file.extension() == ".gz" && !packed) throw UserError(file.string() + " is not a gzip file, though its name says so");
  }

  /// The next bytes; empty at the end. Valid until the next call.
  std::string_view next() {
    const int count = gzread(stream_.get(), buffer_.data(), static_cast<unsigned>(buffer_.size()));
    int code = Z_OK;
    const char* message = gzerror(stream_.get(), &code);
    if (count < 0 || (code != Z_OK && code != Z_STREAM_END)) {
      throw UserError("cannot read " + file_.string() + ": " + (code == Z_ERRNO ? std::strerror(errno) : message),
                      code == Z_BUF_ERROR ? "the file is cut off: copy it again" : "");
    }
    read_ += static_cast<uint64_t>(count);
    if (read_ > std::max(most_, lenient_)) {
      throw UserError(file_.string() + " unpacks to more than " + std::to_string(read_ >> 20) + " MiB, far more than text packs to",
                      "is it a file of text? Unpack it with gzip -d and give what comes out");
    }
    return std::string_view(buffer_).substr(0, static_cast<size_t>(count));
  }

 private:
  struct Close {
    void operator()(gzFile_s* stream) const { gzclose(stream); }
  };
  std::filesystem::path file_;
  uint64_t most_ = 0, lenient_ = 0, read_ = 0;
  std::string buffer_;
  std::unique_ptr<gzFile_s, Close> stream_;
};

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == std::string_view::npos; }

std::string key_list(const Json& object) {
  constexpr size_t most = 20;
  std::string list;
  size_t count = 0;
  for (const auto& [key, value] : object.items()) {
    if (count++ == most) return list + ", ...";
    list += (list.empty() ? "\"" : ", \"") + key + "\"";
  }
  return list.empty() ? "none" : list;
}

std::vector<int32_t> input_ids(const Json& list, const std::string& place) {
  std::vector<int32_t> ids;
  if (!list.is_array()) throw UserError(place + ": \"input_ids\" must be a list of token ids");
  for (const Json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
      throw UserError(place + ": " + id.dump() + " in \"input_ids\" is no token id");
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

Document parse_line(const std::string& line, const std::string& text_key, const std::string& place) {
  const Json object = parse_json(line, place);
  if (!object.is_object()) {
    throw UserError(place + ": a line must be an object such as {\"" + text_key + "\": \"...\"}, not " + object.type_name());
  }
  Document document;
  if (const auto text = object.find(text_key); text != object.end()) {
    if (!text->is_string()) throw UserError(place + ": \"" + text_key + "\" must be a string, not " + text->type_name());
    document.text = text->get<std::string>();
  } else if (const auto ids = object.find("input_ids"); ids != object.end()) {
    document.ids = input_ids(*ids, place);
  } else if (object.contains("messages")) {
    throw UserError(place + ": a chat (\"messages\") without \"" + text_key + "\"",
                    "render the chats first (transformers: tokenizer.apply_chat_template) and write the text under \"" + text_key +
                        "\", or its ids under \"input_ids\"");
  } else {
    throw UserError(place + ": no \"" + text_key + "\"; the keys are " + key_list(object),
                    "set calibration.text_key to the key of the text");
  }
  return document;
}

}  // namespace

FileKind file_kind(const std::filesystem::path& file) {
  const bool packed = file.extension() == ".gz";
  const std::string extension = (packed ? file.stem() : file).extension().string();
  if (extension == ".jsonl" || extension == ".json") return FileKind::json_lines;
  if (extension == ".txt") return FileKind::text;
  if (extension == ".npy" && !packed) return FileKind::token_ids;
  throw UserError(file.string() + ": text files are .jsonl, .json (one object a line) or .txt, also with .gz; token ids are .npy");
}

DocumentFiles::DocumentFiles(std::vector<std::filesystem::path> files, std::string text_key, const DocumentLimits& limits)
    : files_(std::move(files)), text_key_(std::move(text_key)) {
  uint64_t left = std::min(limits.all_bytes, free_memory() / 2);
  for (size_t file = 0; file < files_.size(); ++file) read(file, limits, left);
}

void DocumentFiles::read(size_t file, const DocumentLimits& limits, uint64_t& left) {
  const FileKind kind = file_kind(files_[file]);
  if (kind == FileKind::token_ids) throw UserError(files_[file].string() + ": token ids where text is expected");
  const bool lines = kind == FileKind::json_lines;
  RawDocument document{file, lines ? 1 : 0, ""};
  const auto take = [&](uint64_t bytes) {
    if (bytes > left) {
      throw UserError(files_[file].string() + ": more text than fits: all files together may take half of the free memory, at most " +
                          std::to_string(limits.all_bytes >> 20) + " MiB",
                      "give fewer files, or split this one: calibration needs a few million bytes");
    }
    left -= bytes;
  };
  const auto append = [&](std::string_view bytes) {
    if (document.bytes.size() + bytes.size() > limits.document_bytes) {
      throw UserError(files_[file].string() + (lines ? ", line " + std::to_string(document.line) : "") + ": a document of more than " +
                          std::to_string(limits.document_bytes >> 20) + " MiB",
                      "cut the text into documents, one a line of a .jsonl file");
    }
    take(bytes.size());
    document.bytes += bytes;
  };
  const auto finish = [&] {
    if (!is_blank(document.bytes)) {
      take(sizeof document);
      raw_.push_back({file, document.line, std::move(document.bytes)});
    }
    document.bytes.clear();
  };
  TextStream stream(files_[file], limits.most_packed, limits.document_bytes);
  for (std::string_view bytes = stream.next(); !bytes.empty(); bytes = stream.next()) {
    for (size_t newline = 0; lines && (newline = bytes.find('\n')) != std::string_view::npos;) {
      append(bytes.substr(0, newline));
      finish();
      ++document.line;
      bytes.remove_prefix(newline + 1);
    }
    append(bytes);
  }
  finish();
}

std::string DocumentFiles::place(size_t index) const {
  const RawDocument& document = raw_[index];
  const std::string line = document.line == 0 ? "" : ", line " + std::to_string(document.line);
  return files_[document.file].string() + line + " (document " + std::to_string(index + 1) + ")";
}

Document DocumentFiles::parse(size_t index) const {
  const RawDocument& document = raw_[index];
  if (const auto offset = find_malformed_utf8(document.bytes)) {
    throw UserError(place(index) + ": malformed UTF-8 at byte " + std::to_string(*offset) + (document.line == 0 ? "" : " of the line"),
                    "convert the file to UTF-8 (iconv), or leave the document out");
  }
  if (document.line == 0) return {document.bytes, {}};
  return parse_line(document.bytes, text_key_, place(index));
}

std::vector<std::string> read_documents(const std::vector<std::filesystem::path>& files, const std::string& text_key) {
  const DocumentFiles documents(files, text_key);
  std::vector<std::string> texts;
  for (size_t i = 0; i < documents.raw().size(); ++i) {
    Document document = documents.parse(i);
    if (!document.ids.empty()) throw UserError(documents.place(i) + ": token ids (\"input_ids\") where text is expected");
    if (!document.text.empty()) texts.push_back(std::move(document.text));
  }
  return texts;
}

}  // namespace hcsmoe
