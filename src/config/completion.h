#pragma once
// Scripts that complete the command line in a shell, made from the tables that the parser reads.

#include <string>

namespace hcsmoe {

/// shell: "bash", "zsh" or "fish". UserError: another one.
std::string completion_script(const std::string& shell);

}  // namespace hcsmoe
