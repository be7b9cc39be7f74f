#pragma once
// The methods, one file each. methods.cpp lists them for the rest of the program.

#include "hcsmoe/plan.h"

namespace hcsmoe {

/// HC-SMoE (arXiv 2410.08589): hierarchical clustering of the experts' mean outputs.
LayerPlan plan_hc_smoe(const ExpertStatistics&, const Recipe&, int64_t clusters);

}  // namespace hcsmoe
