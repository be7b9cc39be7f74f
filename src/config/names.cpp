#include "config/names.h"

#include "hcsmoe/error.h"

namespace hcsmoe {
namespace {

template <class T>
struct Name {
  T value;
  const char* name;
};

// The names that this version knows, first the one that to_string gives. Values that have no name here are of later versions.
constexpr Name<Feature> features[] = {{Feature::expert_output, "expert_output"},
                                      {Feature::expert_output_tokens, "expert_output_tokens"},
                                      {Feature::router_logits, "router_logits"},
                                      {Feature::weight, "weight"},
                                      {Feature::cka, "cka"},
                                      {Feature::weight_cka, "weight_cka"}};
constexpr Name<Metric> metrics[] = {{Metric::euclidean, "euclidean"}, {Metric::cosine, "cosine"}};
constexpr Name<Linkage> linkages[] = {
    {Linkage::single, "single"}, {Linkage::complete, "complete"}, {Linkage::average, "average"}, {Linkage::ward, "ward"}};
constexpr Name<Merge> merges[] = {{Merge::frequency, "frequency"},
                                  {Merge::average, "average"},
                                  {Merge::dominant, "dominant"},
                                  {Merge::frequency_aligned, "frequency-aligned"},
                                  {Merge::average_aligned, "average-aligned"},
                                  {Merge::fix_dominant, "fix-dominant"},
                                  {Merge::zipit, "zipit"}};
constexpr Name<RouterMerge> router_merges[] = {{RouterMerge::frequency, "frequency"},
                                               {RouterMerge::average, "average"},
                                               {RouterMerge::representative, "representative"},
                                               {RouterMerge::alias, "alias"},
                                               {RouterMerge::fitted, "fitted"}};
constexpr Name<Reconstruction> reconstructions[] = {
    {Reconstruction::none, "none"}, {Reconstruction::router, "router"}, {Reconstruction::full, "full"}};
constexpr Name<Propagate> propagates[] = {{Propagate::original, "original"}, {Propagate::compressed, "compressed"}};
constexpr Name<Init> inits[] = {{Init::farthest, "farthest"}, {Init::random, "random"}};
constexpr Name<ComputeDtype> compute_dtypes[] = {
    {ComputeDtype::automatic, "auto"}, {ComputeDtype::float32, "float32"}, {ComputeDtype::bfloat16, "bfloat16"}};
constexpr Name<Command> commands[] = {{Command::run, "run"},       {Command::inspect, "inspect"}, {Command::collect, "collect"},
                                      {Command::plan, "plan"},     {Command::apply, "apply"},     {Command::evaluate, "evaluate"},
                                      {Command::report, "report"}, {Command::verify, "verify"}};
constexpr Name<AddBos> add_bos_names[] = {
    {AddBos::automatic, "auto"}, {AddBos::yes, "true"}, {AddBos::no, "false"}, {AddBos::yes, "yes"}, {AddBos::no, "no"}};
constexpr Name<DeviceType> device_types[] = {{DeviceType::cpu, "cpu"}, {DeviceType::cuda, "cuda"}};

[[noreturn]] void refuse(const std::string& text, const std::string& allowed) {
  throw UserError("'" + text + "' is not allowed; allowed: " + allowed);
}

template <class T, size_t N>
T parse(const Name<T> (&names)[N], const std::string& text) {
  std::string allowed;
  for (const auto& [value, name] : names) {
    if (text == name) return value;
    allowed += (allowed.empty() ? "" : ", ") + std::string(name);
  }
  refuse(text, allowed);
}

template <class T, size_t N>
std::vector<std::string> all_names(const Name<T> (&names)[N]) {
  std::vector<std::string> all;
  for (const auto& [value, name] : names) all.emplace_back(name);
  return all;
}

template <class T, size_t N>
std::string name_of(const Name<T> (&names)[N], T wanted) {
  for (const auto& [value, name] : names) {
    if (value == wanted) return name;
  }
  throw Error("a configuration value has no name");
}

}  // namespace

std::string to_string(Feature value) { return name_of(features, value); }
std::string to_string(Metric value) { return name_of(metrics, value); }
std::string to_string(Linkage value) { return name_of(linkages, value); }
std::string to_string(Merge value) { return name_of(merges, value); }
std::string to_string(RouterMerge value) { return name_of(router_merges, value); }
std::string to_string(Reconstruction value) { return name_of(reconstructions, value); }
std::string to_string(Propagate value) { return name_of(propagates, value); }
std::string to_string(Init value) { return name_of(inits, value); }
std::string to_string(ComputeDtype value) { return name_of(compute_dtypes, value); }
std::string to_string(Command value) { return name_of(commands, value); }

Feature parse_feature(const std::string& text) { return parse(features, text); }
Metric parse_metric(const std::string& text) { return parse(metrics, text); }
Linkage parse_linkage(const std::string& text) { return parse(linkages, text); }
Merge parse_merge(const std::string& text) { return parse(merges, text); }
RouterMerge parse_router_merge(const std::string& text) { return parse(router_merges, text); }
Reconstruction parse_reconstruction(const std::string& text) { return parse(reconstructions, text); }
Propagate parse_propagate(const std::string& text) { return parse(propagates, text); }
Init parse_init(const std::string& text) { return parse(inits, text); }
Command parse_command(const std::string& text) { return parse(commands, text); }
AddBos parse_add_bos(const std::string& text) { return parse(add_bos_names, text); }
DeviceType parse_device_type(const std::string& text) { return parse(device_types, text); }
ComputeDtype parse_compute_dtype(const std::string& text) { return parse(compute_dtypes, text); }

std::vector<std::string> command_names() { return all_names(commands); }

std::vector<std::string> names_for_key(const std::string& key) {
  if (key == "calibration.add_bos") return all_names(add_bos_names);
  if (key == "compression.method") {
    std::vector<std::string> names;
    for (const Method& method : methods()) names.push_back(method.name);
    return names;
  }
  if (key == "compression.feature") return all_names(features);
  if (key == "compression.metric") return all_names(metrics);
  if (key == "compression.linkage") return all_names(linkages);
  if (key == "compression.merge") return all_names(merges);
  if (key == "compression.router") return all_names(router_merges);
  if (key == "compression.reconstruction") return all_names(reconstructions);
  if (key == "compression.propagate") return all_names(propagates);
  if (key == "compression.init") return all_names(inits);
  if (key == "device.type") return all_names(device_types);
  if (key == "device.dtype") return all_names(compute_dtypes);
  return {};
}

std::string parse_method(const std::string& text) {
  std::string allowed;
  for (const Method& method : methods()) {
    if (text == method.name) return text;
    allowed += (allowed.empty() ? "" : ", ") + method.name;
  }
  refuse(text, allowed);
}

}  // namespace hcsmoe
