#include "commands/job_record.h"

#include <nlohmann/json.hpp>

#include "hcsmoe/error.h"
#include "hcsmoe/resume.h"
#include "support/files.h"
#include "support/json.h"

namespace hcsmoe {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* format = "hcsmoe-job/1";
constexpr std::pair<JobState, const char*> states[] = {
    {JobState::running, "running"}, {JobState::assembled, "assembled"}, {JobState::finished, "finished"}};

struct JobRecord {
  JobState state = JobState::running;
  std::string output;
  ordered_json asked;
};

fs::path record_file(const Job& job) { return job.config.work / "job.json"; }
/// Of the output folder that the command makes; `collect` makes none.
std::string output_path(const Job& job) {
  return job.line.command == Command::collect ? "" : fs::absolute(job.config.output).lexically_normal().string();
}

/// UserError: it is not one of ours.
std::optional<JobRecord> read_record(const Job& job) {
  const fs::path file = record_file(job);
  if (!fs::exists(file)) return std::nullopt;
  const ordered_json json = read_json(file);
  const UserError foreign(file.string() + ": not a record of a run of this version", "start over: --fresh");
  if (!json.is_object() || json.value("format", ordered_json()) != format) throw foreign;
  const auto text = [&](const char* key) {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_string()) throw foreign;
    return found->get<std::string>();
  };
  for (const auto& [state, name] : states) {
    if (text("state") != name) continue;
    if (!json.contains("job") || !json["job"].is_object()) throw foreign;
    return JobRecord{state, text("output"), json["job"]};
  }
  throw foreign;
}

void write_record(const Job& job, JobState state, const ordered_json& asked) {
  ordered_json json = {{"format", format}, {"state", ""}, {"output", output_path(job)}, {"model", ""}, {"job", asked}};
  json["model"] = fs::absolute(job.config.model).lexically_normal().string();  // for `verify OUTPUT`
  for (const auto& [each, name] : states) {
    if (each == state) json["state"] = name;
  }
  write_file_atomically(record_file(job), json.dump(2) + "\n");
}

/// What a person would call a key of the record.
std::string name_of(const std::string& pointer) {
  if (pointer == "/checkpoint") return "the checkpoint (model)";
  if (pointer == "/calibration") return "the calibration tokens (calibration.files, sequences, length, seed, add_bos)";
  if (pointer == "/dtype") return "the type of computation (device.dtype)";
  if (pointer == "/sample") return "calibration.sample";
  std::string name = pointer.substr(1);
  for (char& c : name) c = c == '/' ? '.' : c;
  return name.starts_with("recipe.") ? "compression." + name.substr(7) : name;
}

/// A line for each value that differs.
std::string differences(const ordered_json& before, const ordered_json& now) {
  const ordered_json old = before.flatten(), asked = now.flatten();
  std::string lines;
  const auto line = [&](const std::string& key, const std::string& was, const std::string& is) {
    const bool told = key == "/checkpoint" || key == "/calibration";  // fingerprints say nothing to a person
    lines += "\n  " + name_of(key) + (told ? " has changed" : ": " + was + " then, " + is + " now");
  };
  for (const auto& [key, value] : asked.items()) {
    if (!old.contains(key)) {
      line(key, "not given", value.dump());
    } else if (old[key] != value) {
      line(key, old[key].dump(), value.dump());
    }
  }
  for (const auto& [key, value] : old.items()) {
    if (!asked.contains(key)) line(key, value.dump(), "not given");
  }
  return lines;
}

}  // namespace

bool output_is_made(const Job& job) {
  int64_t made = 0;
  if (!job.line.fresh) {
    job.ranks.on_root([&] {
      const auto record = read_record(job);
      made = record && record->state != JobState::running && record->output == output_path(job) &&
             fs::exists(job.config.output / "config.json");
    });
  }
  return job.ranks.all_reduce_max(made) != 0;
}

ordered_json asked_of(const Job& job, const Recipe& recipe) {
  const StatisticsOrigin& origin = job.summary.origin;
  return {{"command", to_string(job.line.command)},  {"checkpoint", origin.checkpoint},
          {"calibration", origin.calibration},       {"dtype", origin.dtype},
          {"sample", job.config.calibration.sample}, {"recipe", ordered_json::parse(recipe_to_json(recipe))}};
}

JobState begin_job(Job& job, const ordered_json& asked) {
  int64_t state = 0;
  job.ranks.on_root([&] {
    const auto record = read_record(job);
    const bool same = record && record->asked == asked;
    const bool made = record && record->state != JobState::running && !record->output.empty() && record->output == output_path(job) &&
                      fs::exists(job.config.output);
    if (record && !same && (record->state == JobState::running || made)) {
      throw UserError(
          job.config.work.string() + (made ? " made this output when it" : " holds an unfinished run that") +
              " was asked something else:" + differences(record->asked, asked),
          made ? "name another output" : "set it back to go on with that run, start over with --fresh, or name another folder in `work`");
    }
    if (made) {
      state = static_cast<int64_t>(record->state);
    } else {
      write_record(job, JobState::running, asked);
    }
  });
  Hasher hasher;
  hasher.add(asked.dump());
  job.identity = hasher.hex();
  return static_cast<JobState>(job.ranks.all_reduce_max(state));
}

void mark_job(const Job& job, JobState state) {
  job.ranks.on_root([&] {
    const auto record = read_record(job);
    if (!record) throw UserError(record_file(job).string() + " has vanished during the run");
    write_record(job, state, record->asked);
    if (state == JobState::finished) fs::remove_all(resume_folder(job.config.work));
  });
}

void remove_work(const Job& job) {
  job.ranks.on_root([&] {
    const bool applies = job.line.command == Command::apply;
    for (const char* name : {"shards", "resume", "run.json", "evaluation.json", "evaluation_items.jsonl", "report.html", "job.json"}) {
      fs::remove_all(job.config.work / name);
    }
    for (const char* name : {"statistics", "plan.json", "calibration.npy"}) {
      if (!applies) fs::remove_all(job.config.work / name);
    }
  });
}

}  // namespace hcsmoe
