#include "reconstruction/minimise.h"

#include <lbfgs.h>

#include <algorithm>
#include <exception>
#include <memory>

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

struct Evaluation {
  const Objective& objective;
  std::exception_ptr failure;  // may not pass through the C library
};

double evaluate(void* instance, const double* x, double* gradient, int n, double) {
  auto& evaluation = *static_cast<Evaluation*>(instance);
  const auto size = static_cast<size_t>(n);
  if (!evaluation.failure) {
    try {
      return evaluation.objective({x, size}, {gradient, size});
    } catch (...) {
      evaluation.failure = std::current_exception();
    }
  }
  std::fill_n(gradient, size, 0.0);  // ends the search
  return 0;
}

}  // namespace

double minimise(std::span<double> x, int iterations, const Objective& objective) {
  lbfgs_parameter_t parameters;
  lbfgs_parameter_init(&parameters);
  parameters.m = 10;
  parameters.max_iterations = iterations;
  parameters.epsilon = 1e-7;
  parameters.past = 5;  // ends where five iterations gained less than this share
  parameters.delta = 1e-5;
  const auto n = static_cast<int>(x.size());
  const std::unique_ptr<double, decltype(&lbfgs_free)> point(lbfgs_malloc(n), lbfgs_free);
  if (!point) throw Error("out of memory for L-BFGS");
  std::copy(x.begin(), x.end(), point.get());
  Evaluation evaluation{objective, nullptr};
  double value = 0;
  // Every way of ending leaves the best point that was accepted: limits, convergence, a line search that finds nothing better.
  lbfgs(n, point.get(), &value, evaluate, nullptr, &evaluation, &parameters);
  if (evaluation.failure) std::rethrow_exception(evaluation.failure);
  std::copy(point.get(), point.get() + n, x.begin());
  return value;
}

}  // namespace hcsmoe
