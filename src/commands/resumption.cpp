#include "commands/resumption.h"

#include <ATen/ops/empty.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands/reconstruction_json.h"
#include "hcsmoe/error.h"
#include "hcsmoe/resume.h"
#include "support/files.h"
#include "support/json.h"

namespace hcsmoe {
namespace {

using nlohmann::ordered_json;

constexpr uint64_t most_record_bytes = 100'000'000;

std::filesystem::path record_file(const Job& job, int64_t layer) {
  char name[40];
  std::snprintf(name, sizeof name, "layer_%04lld.json", static_cast<long long>(layer));
  return resume_folder(job.config.work) / name;
}

std::string record_text(const LayerRecord& record) {
  ordered_json json = {{"plan", ordered_json::parse(layer_plan_to_json(record.plan))}};
  if (record.report) json["reconstruction"] = reconstruction_json(*record.report);
  return json.dump();
}

LayerRecord record_from(const std::string& text, const std::string& source) {
  const ordered_json json = parse_json(text, source);
  if (!json.is_object() || !json.contains("plan")) throw UserError(source + ": not a record of a layer", "start over: --fresh");
  LayerRecord record{layer_plan_from_json(json["plan"].dump(), source), std::nullopt};
  if (json.contains("reconstruction")) record.report = reconstruction_from_json(json["reconstruction"], source);
  return record;
}

/// After which layer to go on: the last whose streams are whole and before which every MoE layer is recorded; -1: none. On rank 0.
std::vector<int64_t> layers_to_go_on_after(const Job& job, int64_t tokens, bool records) {
  std::vector<int64_t> layers;
  for (const int64_t layer : saved_layers(job.config.work, job.identity, tokens)) {
    bool whole = layer + 1 < job.model.layers;
    for (const int64_t moe_layer : job.model.moe_layers()) {
      whole = whole && (!records || moe_layer > layer || std::filesystem::exists(record_file(job, moe_layer)));
    }
    if (whole) layers.push_back(layer);
  }
  return layers;
}

}  // namespace

std::vector<LayerRecord> recorded_layers(const Job& job) {
  std::vector<LayerRecord> records;
  for (const int64_t layer : job.model.moe_layers()) {
    const auto file = record_file(job, layer);
    if (!std::filesystem::exists(file)) break;
    records.push_back(record_from(read_file(file, most_record_bytes), file.string()));
  }
  return records;
}

void leave_if_asked(const Job& job, const std::string& done) {
  if (job.ranks.all_reduce_max(job.stop.requested()) == 0) return;
  job.stop.agreed();
  throw CollectiveError("asked to stop: " + done + "; the same command goes on from there (exit code 75)", ExitCode::interrupted);
}

Resumption::Resumption(Job& job, const at::Tensor& ids, bool records, Background& background)
    : job_(job),
      background_(background),
      share_(deal_sequences(ids.size(0), ids.size(1), job.ranks)),
      first_token_(share_.first * ids.size(1)) {
  const Span span(job.trace, Activity::reading, "what an earlier run left");
  job.ranks.on_all([&] { make_folder(resume_folder(job.config.work)); });
  const int64_t tokens = share_.number * ids.size(1);
  std::string text;
  job.ranks.on_root([&] {
    ordered_json layers = layers_to_go_on_after(job, ids.numel(), records);
    text = layers.dump();
  });
  job.ranks.broadcast(text, 0);
  ResidualStreams streams;
  int64_t after = -1;
  for (const int64_t layer : ordered_json::parse(text).get<std::vector<int64_t>>()) {
    int64_t failed = 0;
    try {
      streams = load_streams(job.config.work, layer, job.identity, first_token_, tokens);
    } catch (const UserError& error) {
      job.log.warn(std::string(error.what()) + "; going on from an earlier layer");
      failed = 1;
    }
    if (job.ranks.all_reduce_max(failed) != 0) continue;
    after = layer;
    break;
  }
  if (after < 0) return;

  if (tokens == 0) streams.original = streams.compressed = at::empty({0, job.model.hidden_size}, at::kFloat);
  original_ = {after + 1, streams.original};
  compressed_ = {after + 1, streams.compressed};
  std::vector<std::string> texts;
  job.ranks.on_root([&] {
    job.log.info("going on after layer " + std::to_string(after) + " (of 0 to " + std::to_string(job.model.layers - 1) +
                 "), where the run before ended");
    for (const int64_t layer : job.model.moe_layers()) {
      if (records && layer <= after) texts.push_back(read_file(record_file(job, layer), most_record_bytes));
    }
  });
  texts = texts_of_root(job.ranks, texts);
  job.ranks.on_all([&] {
    const std::string source = "a record of a layer in " + resume_folder(job.config.work).string();
    for (const std::string& each : texts) records_.push_back(record_from(each, source));
  });
}

std::vector<at::Tensor> Resumption::sequences(const at::Tensor& ids) const {
  std::vector<at::Tensor> mine;
  for (int64_t s = 0; s < share_.number; ++s) mine.push_back(ids[share_.first + s]);
  return mine;
}

void Resumption::record(const LayerRecord& record) {
  if (!job_.ranks.is_root()) return;
  background_.submit([file = record_file(job_, record.plan.layer), text = record_text(record)] { write_file_atomically(file, text); });
}

void Resumption::wait_for_previous() {
  if (!saved_.valid()) return;
  const Span span(job_.trace, Activity::writing, "wait for the writer");
  try {
    saved_.get();
  } catch (const std::future_error&) {  // dropped because of an error before it, which check() throws
  }
  background_.check();
}

void Resumption::after_layer(int64_t layer, const at::Tensor& hidden, const std::function<at::Tensor()>& compressed) {
  if (layer + 1 == job_.model.layers) return;  // what is left to do is quick, or needs no streams
  enum : int64_t { go_on, save, save_and_stop };
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - last_save_;
  const bool due = job_.ranks.is_root() && passed.count() >= static_cast<double>(job_.config.save_every);
  const int64_t agreed = job_.ranks.all_reduce_max(job_.stop.requested() ? save_and_stop : due ? save : go_on);
  if (agreed == go_on) return;
  if (agreed == save_and_stop) job_.stop.agreed();

  // When every rank has finished its part of the layer before, so have been its statistics, shards and records, and older ones can go.
  job_.ranks.on_all([&] { wait_for_previous(); });
  if (job_.ranks.is_root() && saved_layer_ >= 0) {
    background_.submit([work = job_.config.work, before = saved_layer_] { drop_streams(work, before); });
  }
  const auto copied = [](const at::Tensor& rows) {
    return rows.defined() ? rows.to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true) : at::Tensor();
  };
  ResidualStreams streams{first_token_, {}, {}};
  {
    const at::Tensor rows = compressed();
    const Span span(job_.trace, Activity::copying, "streams", layer);
    streams.original = copied(hidden);
    streams.compressed = copied(rows);
  }
  auto done = std::make_shared<std::promise<void>>();
  saved_ = done->get_future();
  background_.submit([&job = job_, layer, streams, done] {
    const Span span(job.trace, Activity::writing, "streams", layer);
    save_streams(job.config.work, layer, job.identity, streams);
    done->set_value();
  });
  saved_layer_ = layer;
  last_save_ = std::chrono::steady_clock::now();
  if (agreed == save) return;
  job_.ranks.on_all([&] { background_.wait(); });
  throw CollectiveError("asked to stop: saved after layer " + std::to_string(layer) + " of 0 to " + std::to_string(job_.model.layers - 1) +
                            "; the same command goes on from there (exit code 75)",
                        ExitCode::interrupted);
}

}  // namespace hcsmoe
