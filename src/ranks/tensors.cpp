// Collectives of tensors: each by what carries the memory it is in.

#include <algorithm>
#include <sstream>

#include "hcsmoe/device_link.h"
#include "hcsmoe/ranks.h"
#include "support/files.h"

namespace hcsmoe {
namespace {

std::string shape_of(const at::Tensor& tensor) {
  std::string text = std::string(c10::toString(tensor.scalar_type())) + " [";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(tensor.size(d));
  return text + "]";
}

void check_exchanged(const at::Tensor& tensor, bool sum) {
  if (!tensor.defined() || !tensor.is_contiguous()) throw Error("a tensor that ranks exchange must be contiguous");
  if (sum && tensor.scalar_type() != at::kLong) throw Error("sums over ranks are of int64, and this tensor is " + shape_of(tensor));
}

int64_t* values_of(const at::Tensor& tensor) { return static_cast<int64_t*>(tensor.mutable_data_ptr()); }

/// Work on a tensor's elements in memory of the host: where they are, or in a copy that goes back.
template <class Work>
void in_host_memory(const at::Tensor& tensor, const Work& work) {
  const at::Tensor host = tensor.cpu();  // the tensor itself, if it is there
  work(host);
  if (!host.is_same(tensor)) tensor.copy_(host);
}

/// Queues collectives after what the kernels have queued, and waits for them.
template <class Queue>
void on_device(DeviceLink& link, const std::string& what, std::chrono::milliseconds limit, const Queue& queue) {
  link.wait(DeviceLink::Stream::exchange, *link.record(DeviceLink::Stream::compute));
  queue();
  wait_for(link, *link.record(DeviceLink::Stream::exchange), what, limit);
}

}  // namespace

void Ranks::all_reduce_sums(std::span<const at::Tensor> tensors) const {
  for (const at::Tensor& tensor : tensors) check_exchanged(tensor, true);
  if (size_ == 1) return;
  std::vector<at::Tensor> there;
  for (const at::Tensor& tensor : tensors) {
    if (device_ && device_->holds(tensor.const_data_ptr())) {
      there.push_back(tensor);
    } else {
      in_host_memory(tensor,
                     [&](const at::Tensor& host) { all_reduce_sum(std::span(values_of(host), static_cast<size_t>(host.numel()))); });
    }
  }
  if (there.empty()) return;
  const Span span(trace_, Activity::reducing, "sum over ranks");
  on_device(*device_, "a sum over all ranks", wait_limit_, [&] {
    device_->group_begin();
    for (const at::Tensor& tensor : there) device_->all_reduce_sum(values_of(tensor), static_cast<size_t>(tensor.numel()));
    device_->group_end();
  });
}

void Ranks::reduce_sum(const at::Tensor& tensor, int root) const {
  check_exchanged(tensor, true);
  if (size_ == 1) return;
  const auto count = static_cast<size_t>(tensor.numel());
  if (!device_ || !device_->holds(tensor.const_data_ptr())) {
    return in_host_memory(tensor, [&](const at::Tensor& host) { reduce_sum(std::span(values_of(host), count), root); });
  }
  const Span span(trace_, Activity::reducing, "sum over ranks");
  on_device(*device_, "a sum over all ranks", wait_limit_, [&] { device_->reduce_sum(values_of(tensor), count, root); });
}

void Ranks::broadcast(const at::Tensor& tensor, int root) const {
  check_exchanged(tensor, false);
  if (size_ == 1) return;
  auto* const bytes = static_cast<std::byte*>(tensor.mutable_data_ptr());
  if (!device_ || !device_->holds(bytes)) {
    return in_host_memory(tensor, [&](const at::Tensor& host) {
      arrive();
      broadcast_bytes({static_cast<std::byte*>(host.mutable_data_ptr()), host.nbytes()}, root);
    });
  }
  const Span span(trace_, Activity::reducing, "broadcast");
  on_device(*device_, "a tensor of rank " + std::to_string(root), wait_limit_, [&] { device_->broadcast(bytes, tensor.nbytes(), root); });
}

void Ranks::require_same(const std::string& what, const std::string& lines) const {
  if (size_ == 1) return;
  const auto sum = static_cast<int64_t>(checksum64(std::as_bytes(std::span(lines))) >> 1);
  if (all_reduce_max(sum) == -all_reduce_max(-sum)) return;
  std::string of_root = lines;
  broadcast(of_root, 0);
  on_all([&] {
    if (lines == of_root) return;
    std::istringstream ours(lines), theirs(of_root);
    std::string mine, other;
    for (bool more = true; more && mine == other;) {
      const bool mine_left = static_cast<bool>(std::getline(ours, mine)), other_left = static_cast<bool>(std::getline(theirs, other));
      if (!mine_left) mine = "nothing more";
      if (!other_left) other = "nothing more";
      more = mine_left || other_left;
    }
    throw UserError(what + " differs between ranks: here it has " + mine + ", on rank 0 " + other,
                    "all ranks must read the same files: is the model's folder the same on every node?");
  });
}

}  // namespace hcsmoe
