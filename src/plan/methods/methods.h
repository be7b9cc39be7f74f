#pragma once
// The methods, one file each. methods.cpp lists them for the rest of the program; docs/methods.md describes them.

#include "hcsmoe/plan.h"

namespace hcsmoe {

/// HC-SMoE (arXiv 2410.08589): hierarchical clustering of the experts by a feature.
LayerPlan plan_hc_smoe(const PlanInput&);

/// The plan is chosen by the error of reconstructed blocks: throws a UserError that says so (auto_candidates in hcsmoe/plan.h).
LayerPlan plan_auto(const PlanInput&);

/// Lloyd's k-means of the experts' mean outputs, as HC-SMoE's comparison of clustering algorithms has it.
LayerPlan plan_kmeans(const PlanInput&);

/// Fuzzy c-means of the experts' mean outputs, as in the same comparison: every expert counts in every cluster by its membership.
LayerPlan plan_fuzzy_cmeans(const PlanInput&);

/// DEK (arXiv 2407.09590): the groups of the two most similar experts are joined, again and again; similarity is linear CKA.
LayerPlan plan_dek(const PlanInput&);

/// M-SMoE (arXiv 2310.01334), layer by layer: the most used experts are dominant, each of the others joins the dominant one whose router
/// logits are most like its own.
LayerPlan plan_m_smoe(const PlanInput&);

/// Pruning by how often the router chose an expert.
LayerPlan plan_f_prune(const PlanInput&);

/// Pruning by the router's softmax score, summed over all tokens.
LayerPlan plan_s_prune(const PlanInput&);

/// O-prune (arXiv 2402.14800): the set of experts that keeps the block's output closest to the original one on sampled tokens.
LayerPlan plan_o_prune(const PlanInput&);

/// REAP (arXiv 2510.13999): pruning by the mean of routing weight times output norm over the tokens routed to an expert.
LayerPlan plan_reap(const PlanInput&);

/// EAN (arXiv 2510.13999): pruning by the sum of output norms over the tokens routed to an expert.
LayerPlan plan_ean(const PlanInput&);

/// Pruning by lot: what any other method should beat.
LayerPlan plan_random(const PlanInput&);

}  // namespace hcsmoe
