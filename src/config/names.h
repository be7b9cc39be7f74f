#pragma once
// Names of values that only the configuration reads; the public ones are in hcsmoe/config.h. Each parse_* throws UserError that lists the
// names.

#include <string>
#include <vector>

#include "hcsmoe/config.h"

namespace hcsmoe {

AddBos parse_add_bos(const std::string&);
DeviceType parse_device_type(const std::string&);
ComputeDtype parse_compute_dtype(const std::string&);
Command parse_command(const std::string&);

/// Every name that the commands' parser takes.
std::vector<std::string> command_names();
/// The names that a key of the configuration takes ("compression.linkage"); empty: it takes something else than one of a set of names.
std::vector<std::string> names_for_key(const std::string& key);
/// The full names of all keys that take a value, in order: "model", ..., "evaluation.reference".
std::vector<std::string> configuration_keys();

}  // namespace hcsmoe
