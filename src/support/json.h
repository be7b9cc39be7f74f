#pragma once
// JSON as we accept it from files that a user brings: no duplicate keys, bounded depth, and errors that say where.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace hcsmoe {

/// Parses a whole document. UserError with source_name, line and column on a syntax error, a duplicate key, or nesting deeper than 64.
nlohmann::ordered_json parse_json(std::string_view text, const std::string& source_name);
/// Reads and parses a file of at most max_bytes.
nlohmann::ordered_json read_json(const std::filesystem::path& file, uint64_t max_bytes = 100'000'000);

}  // namespace hcsmoe
