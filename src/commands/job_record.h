#pragma once
// WORK/job.json: what a run was asked to do, and how far it came. A run that ended early is continued only by one that is asked the same.

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "commands/job.h"

namespace hcsmoe {

enum class JobState { running, assembled, finished };  // assembled: the output folder is there, what was to be measured is not

/// Whether OUTPUT is what the run recorded in WORK made. Collective.
bool output_is_made(const Job&);
/// Records the job, whose identity streams are saved under. UserError: WORK holds an unfinished run, or the output of one, that was asked
/// something else; says what differs. Returns how far an earlier run of the same job came. Collective.
JobState begin_job(Job&, const nlohmann::ordered_json& asked);
/// As it is asked by this configuration: checkpoint, calibration text and type of computation are added. Call after prepare_calibration.
nlohmann::ordered_json asked_of(const Job&, const Recipe&);
void mark_job(const Job&, JobState);
/// --fresh: removes what earlier runs left in WORK; of what `apply` reads, nothing. Collective.
void remove_work(const Job&);

}  // namespace hcsmoe
