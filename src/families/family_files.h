#pragma once
// One function a family, each in a file of its own. families.cpp lists them.

#include <nlohmann/json_fwd.hpp>

#include "hcsmoe/families.h"

namespace hcsmoe {

ModelDescription describe_mixtral(const nlohmann::ordered_json& config);
ModelDescription describe_qwen2_moe(const nlohmann::ordered_json& config);
ModelDescription describe_deepseek(const nlohmann::ordered_json& config);
ModelDescription describe_deepseek_v3(const nlohmann::ordered_json& config);
ModelDescription describe_glm4_moe(const nlohmann::ordered_json& config);

}  // namespace hcsmoe
