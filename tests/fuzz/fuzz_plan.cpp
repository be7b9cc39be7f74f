// plan.json.

#include "fuzz.h"
#include "hcsmoe/plan.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  return fuzz::answers([&] {
    const Plan plan = plan_from_json(std::string(fuzz::text(data, size)), "plan.json");
    // What was read can be written, and is then read as the same.
    const std::string written = plan_to_json(plan);
    fuzz::require(plan_to_json(plan_from_json(written, "written")) == written, "a plan survives being written");
  });
}
