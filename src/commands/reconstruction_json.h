#pragma once
// What reconstruction did to a layer, in run.json and in the records that a run goes on from.

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "hcsmoe/reconstruction.h"

namespace hcsmoe {

nlohmann::ordered_json reconstruction_json(const ReconstructionReport&);
/// UserError: it is no such report.
ReconstructionReport reconstruction_from_json(const nlohmann::ordered_json&, const std::string& source_name);

}  // namespace hcsmoe
