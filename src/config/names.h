#pragma once
// Names of values that only the configuration reads; the public ones are in hcsmoe/config.h. Each parse_* throws UserError that lists the
// names.

#include <string>

#include "hcsmoe/config.h"

namespace hcsmoe {

AddBos parse_add_bos(const std::string&);
DeviceType parse_device_type(const std::string&);
ComputeDtype parse_compute_dtype(const std::string&);
Command parse_command(const std::string&);

}  // namespace hcsmoe
