// The files of an output folder: checksums, config.json, and what was carried over.

#include <nlohmann/json.hpp>
#include <set>

#include "assembly/folder.h"
#include "hcsmoe/assembly.h"
#include "hcsmoe/error.h"
#include "hcsmoe/log.h"
#include "hcsmoe/verification.h"
#include "support/checksums.h"
#include "support/files.h"
#include "support/json.h"
#include "support/text.h"
#include "verification/gathering.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

void append(std::vector<std::string>& to, std::vector<std::string> more) { to.insert(to.end(), more.begin(), more.end()); }

/// What a folder that was put under version control, or downloaded, has besides.
bool of_a_repository(const std::string& name) { return name == ".git" || name == ".gitattributes" || name == ".cache"; }

void find_unlisted(const fs::path& output, const std::vector<FileChecksum>& listed, Findings& findings) {
  std::set<std::string> names;
  for (const FileChecksum& file : listed) names.insert(file.file);
  std::set<std::string> found;
  std::error_code error;
  for (fs::directory_iterator entry(output, error); !error && entry != fs::directory_iterator(); entry.increment(error)) {
    found.insert(entry->path().filename().string());
  }
  if (error) throw UserError(output.string() + ": cannot list the folder: " + error.message());
  for (const std::string& name : found) {
    if (names.contains(name) || name == checksums_name) continue;
    if (name == report_name) {
      findings.unchecked.push_back(name + ": it can be made again at any time, and has no checksum");
    } else if (of_a_repository(name)) {
      findings.unchecked.push_back(name + ": left by version control or a download");
    } else {
      findings.deviations.push_back("file " + name_text(name) + " is not listed in " + checksums_name);
    }
  }
}

/// A line for each key of config.json that is not as expected.
std::vector<std::string> differing_keys(const ordered_json& found, const ordered_json& expected) {
  std::vector<std::string> lines;
  const ordered_json is = found.flatten(), wanted = expected.flatten();
  const auto key_text = [](std::string pointer) {
    pointer.erase(0, 1);
    for (char& c : pointer) c = c == '/' ? '.' : c;
    return "config.json: the key " + name_text(pointer);
  };
  const auto value_text = [](const ordered_json& value) {
    std::string text = printable(value.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
    if (text.size() > 100) text = text.substr(0, 100) + "...";
    return text;
  };
  for (const auto& [key, value] : wanted.items()) {
    if (!is.contains(key)) {
      lines.push_back(key_text(key) + " is missing");
    } else if (is[key] != value) {
      lines.push_back(key_text(key) + " is " + value_text(is[key]) + ", expected " + value_text(value));
    }
  }
  for (const auto& [key, value] : is.items()) {
    if (!wanted.contains(key)) lines.push_back(key_text(key) + " is not in the original's");
  }
  return lines;
}

void verify_config(const OutputToVerify& given, Findings& findings) {
  const std::string expected = config_text(given.original, given.model, given.experts_kept());
  try {
    std::vector<std::string> lines =
        differing_keys(read_json(given.output / "config.json"), parse_json(expected, "the config.json that is expected"));
    if (lines.empty()) {
      findings.checked.push_back("config.json: " + std::to_string(given.experts_kept()) + " of " + std::to_string(given.model.experts) +
                                 " experts a layer, every other key as in the original or as its family has it with fewer experts");
    }
    append(findings.deviations, std::move(lines));
  } catch (const UserError& error) {
    findings.deviations.emplace_back(error.what());
  }
}

}  // namespace

void verify_files(const Ranks& ranks, const fs::path& output, Trace* trace, Findings& findings) {
  std::string lines;
  ranks.on_root([&] {
    const fs::path list = output / checksums_name;
    try {
      const auto listed = parse_checksum_lines(read_file(list, max_checksums_bytes), list.string());
      find_unlisted(output, listed, findings);
      lines = checksum_lines(listed);
    } catch (const UserError& error) {
      findings.deviations.emplace_back(error.what());
    }
  });
  ranks.broadcast(lines, 0);
  const std::vector<FileChecksum> listed = parse_checksum_lines(lines, "checksums of rank 0");
  std::vector<Placed> deviations;
  std::vector<int64_t> counts = {0, 0};  // files as listed, their bytes
  ranks.on_all([&] {
    for (size_t i = 0; i < listed.size(); ++i) {
      if (ranks.owner_of(static_cast<int64_t>(i)) != ranks.rank()) continue;
      const Span span(trace, Activity::reading, "checksum");
      const auto& [name, checksum] = listed[i];
      const fs::path file = output / name;
      std::error_code gone;
      const auto deviates = [&](const std::string& how) {
        deviations.emplace_back(static_cast<int64_t>(i), "file " + name_text(name) + how);
      };
      if (!fs::exists(file, gone)) {
        deviates(" is missing");
        continue;
      }
      try {
        const std::string found = file_checksum(file);
        if (found != checksum) {
          deviates(" has changed: checksum " + found + ", listed " + checksum);
          continue;
        }
        ++counts[0];
        counts[1] += static_cast<int64_t>(fs::file_size(file));
      } catch (const UserError& error) {
        deviates(std::string(": ") + error.what());
      }
    }
  });
  ranks.all_reduce_sum(counts);
  append(findings.deviations, gather_placed(ranks, deviations));
  findings.checked.push_back("files: " + std::to_string(counts[0]) + " of " + std::to_string(listed.size()) + " as listed in " +
                             checksums_name + " (" + format_bytes(static_cast<double>(counts[1])) + ")");
}

void verify_companions(const Ranks& ranks, const OutputToVerify& given, Trace* trace, Findings& findings) {
  ranks.on_root([&] {
    const Span span(trace, Activity::reading, "other files");
    verify_config(given, findings);
    int64_t same = 0;
    for (const OtherFiles::File& file : other_files(given.original).copied) {
      const std::string name = "file " + name_text(file.name);
      const std::string whose =
          file.path.filename().string() == file.name ? "the original's" : "the original's " + file.path.filename().string();
      std::error_code gone;
      if (!fs::exists(given.output / file.name, gone)) {
        findings.deviations.push_back(name + " is not there: " + whose + " was to be carried over");
      } else if (file_checksum(given.output / file.name) != file_checksum(file.path)) {
        findings.deviations.push_back(name + " differs from " + whose);
      } else {
        ++same;
      }
    }
    findings.checked.push_back("other files: " + std::to_string(same) + " (tokenizer, licence, ...) equal the original's byte for byte");
  });
}

}  // namespace hcsmoe
