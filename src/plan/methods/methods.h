#pragma once
// The methods, one file each. methods.cpp lists them for the rest of the program; docs/methods.md describes them.

#include "hcsmoe/plan.h"

namespace hcsmoe {

/// HC-SMoE (arXiv 2410.08589): hierarchical clustering of the experts' mean outputs, or of their router logits.
LayerPlan plan_hc_smoe(const ExpertStatistics&, const Recipe&, int64_t clusters);

/// Lloyd's k-means of the experts' mean outputs, as HC-SMoE's comparison of clustering algorithms has it.
LayerPlan plan_kmeans(const ExpertStatistics&, const Recipe&, int64_t clusters);

/// M-SMoE (arXiv 2310.01334), layer by layer: the most used experts are dominant, each of the others joins the dominant one whose router
/// logits are most like its own.
LayerPlan plan_m_smoe(const ExpertStatistics&, const Recipe&, int64_t clusters);

/// Pruning by how often the router chose an expert.
LayerPlan plan_f_prune(const ExpertStatistics&, const Recipe&, int64_t clusters);

/// Pruning by the router's softmax score, summed over all tokens.
LayerPlan plan_s_prune(const ExpertStatistics&, const Recipe&, int64_t clusters);

/// REAP (arXiv 2510.13999): pruning by the mean of routing weight times output norm over the tokens routed to an expert.
LayerPlan plan_reap(const ExpertStatistics&, const Recipe&, int64_t clusters);

/// EAN (arXiv 2510.13999): pruning by the sum of output norms over the tokens routed to an expert.
LayerPlan plan_ean(const ExpertStatistics&, const Recipe&, int64_t clusters);

/// Pruning by lot: what any other method should beat.
LayerPlan plan_random(const ExpertStatistics&, const Recipe&, int64_t clusters);

}  // namespace hcsmoe
