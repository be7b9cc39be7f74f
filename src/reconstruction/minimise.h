#pragma once

#include <functional>
#include <span>

namespace hcsmoe {

/// The value at x; writes the gradient.
using Objective = std::function<double(std::span<const double> x, std::span<double> gradient)>;

/// L-BFGS (libLBFGS, More-Thuente line search) from x, at most `iterations`. Returns the value at the new x. On one thread; where the
/// objective is the same on every rank, so is the result. What the objective throws is thrown on.
double minimise(std::span<double> x, int iterations, const Objective& objective);

}  // namespace hcsmoe
