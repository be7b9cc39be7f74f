#pragma once
// The normalizer of tokenizer.json: what happens to a text between added tokens before it is split.
// null, Sequence, NFC, NFD, NFKC, NFKD, Prepend, Replace.

#include <functional>
#include <string>

#include "calibration/json_fields.h"

namespace hcsmoe {

/// Safe to call from several threads at once.
using Normalizer = std::function<std::string(std::string)>;

Normalizer make_normalizer(const Json& description, const JsonPlace&, int depth = 0);

}  // namespace hcsmoe
