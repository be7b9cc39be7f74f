// The configuration file, for every command, and once more as the value of --set.

#include "config/yaml_node.h"
#include "fuzz.h"
#include "hcsmoe/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hcsmoe;
  static fuzz::OpenFile file;
  const auto path = file.path("config.yaml");
  file.fill(fuzz::text(data, size));
  for (const Command command : {Command::run, Command::inspect, Command::evaluate}) {
    fuzz::answers([&] {
      const Config config = read_config(path, {}, command);
      fuzz::require(config.calibration.sequences > 0 && config.calibration.length > 0, "sizes are above zero");
    });
  }
  return fuzz::answers([&] {
    YamlNode root;
    apply_override(root, std::string(fuzz::text(data, size)), file.folder());
  });
}
