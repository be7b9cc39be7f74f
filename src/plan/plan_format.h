#pragma once

namespace hcsmoe {

inline constexpr const char* plan_format = "hcsmoe-plan/1";

}  // namespace hcsmoe
