#include <algorithm>

#include "hcsmoe/evaluation.h"

namespace hcsmoe {

Share share_of(int64_t count, const Ranks& ranks) {
  const int64_t P = ranks.size(), r = ranks.rank(), each = count / P, more = count % P;
  return {r * each + std::min(r, more), each + (r < more ? 1 : 0)};
}

}  // namespace hcsmoe
