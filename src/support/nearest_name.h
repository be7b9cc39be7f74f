#pragma once

#include <string>
#include <vector>

namespace hcsmoe {

/// The name with the smallest edit distance (insert, remove, replace), the first of them in order; "" if none is closer than a third of
/// the wanted name's length.
std::string nearest_name(const std::string& wanted, const std::vector<std::string>& names);

}  // namespace hcsmoe
