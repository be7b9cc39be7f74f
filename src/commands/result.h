#pragma once
// What --json prints: the result of a command as one JSON document on stdout.

#include "commands/job.h"

namespace hcsmoe {

/// run, apply, collect: run.json of this call, or of the earlier one that did the work; evaluate: evaluation.json's content; else
/// Job::result. On rank 0; to be called when the command is done.
void print_result(const Job&);

}  // namespace hcsmoe
