#include "merging/merger.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cstring>

#include "hcsmoe/error.h"
#include "hcsmoe/merging.h"
#include "merging/conversions.h"
#include "merging/elements.h"
#include "merging/merge_units.h"
#include "support/host_data.h"

namespace hcsmoe {
namespace {

struct LoopMerger : Merger {
  void mean(const DType& dtype, const MemberBytes& members, const std::vector<double>& weights, std::span<std::byte> out) const override {
    weighted_mean(dtype, members, weights, out);
  }
  void rows(const DType& dtype, const MemberBytes& members, const UnitParts& units, std::span<std::byte> out) const override {
    merge_rows(dtype, members, units, out);
  }
  void columns(const DType& dtype, const MemberBytes& members, const UnitParts& units, std::span<std::byte> out) const override {
    merge_columns(dtype, members, units, out);
  }
};

class DeviceMerger : public Merger {
 public:
  explicit DeviceMerger(at::Device device) : device_(device) {}

  void mean(const DType& dtype, const MemberBytes& members, const std::vector<double>& weights, std::span<std::byte> out) const override {
    check(dtype, members, out.size());
    if (members.size() != weights.size()) throw Error("a merge has other weights than members");
    at::Tensor sum;
    for (size_t m = 0; m < members.size(); ++m) {
      const auto weight = static_cast<float>(weights[m]);
      if (weight == 0) continue;
      if (weight == 1 && std::count(weights.begin(), weights.end(), 0.0) + 1 == static_cast<std::ptrdiff_t>(weights.size())) {
        if (!out.empty()) std::memcpy(out.data(), members[m].data(), out.size());
        return;
      }
      const at::Tensor term = values_of(dtype, members[m], {-1}).to(at::kFloat).mul(weight);
      sum = sum.defined() ? sum.add_(term) : term;
    }
    if (!sum.defined()) throw Error("no member of a merge has a weight");
    store(sum, dtype, out);
  }

  void rows(const DType& dtype, const MemberBytes& members, const UnitParts& units, std::span<std::byte> out) const override {
    merge_units(dtype, members, units, 0, out);
  }
  void columns(const DType& dtype, const MemberBytes& members, const UnitParts& units, std::span<std::byte> out) const override {
    merge_units(dtype, members, units, 1, out);
  }

 private:
  static void check(const DType& dtype, const MemberBytes& members, size_t bytes) {
    conversion_of(dtype);  // UserError: a type that cannot be merged
    for (const auto& member : members) {
      if (member.size() != bytes) throw Error("members of a merge differ in size");
    }
  }

  /// A copy of the bytes on the device.
  at::Tensor values_of(const DType& dtype, std::span<const std::byte> bytes, at::IntArrayRef shape) const {
    auto* const read_only = const_cast<std::byte*>(bytes.data());
    return at::from_blob(read_only, {static_cast<int64_t>(bytes.size()) / dtype.bytes}, dtype.torch).to(device_).view(shape);
  }

  static void store(const at::Tensor& sum, const DType& dtype, std::span<std::byte> out) {
    const at::Tensor rounded = sum.to(dtype.torch).contiguous().cpu();
    if (rounded.nbytes() != out.size()) throw Error("a merged tensor has another size than its place");
    if (!out.empty()) std::memcpy(out.data(), const_data<std::byte>(rounded), out.size());
  }

  /// Units along dimension `along` of every member. The n-th parts of all units are added at a time, so that no sum meets an element twice.
  void merge_units(const DType& dtype, const MemberBytes& members, const UnitParts& units, int64_t along, std::span<std::byte> out) const {
    check(dtype, members, out.size());
    const size_t F = units.first.size() - 1;
    if (F == 0 || out.size() % (F * static_cast<size_t>(dtype.bytes)) != 0)
      throw Error("merged tensors and their units do not fit together");
    const auto size = static_cast<int64_t>(F), other = static_cast<int64_t>(out.size() / F) / dtype.bytes;
    std::vector<at::Tensor> values;
    for (const auto& member : members) {
      values.push_back(values_of(dtype, member, along == 0 ? at::IntArrayRef{size, other} : at::IntArrayRef{other, size}));
    }
    const at::Tensor all = at::cat(values, along);
    at::Tensor sum;
    for (size_t part = 0;; ++part) {
      std::vector<int64_t> from, to;
      std::vector<float> weights;
      for (size_t u = 0; u < F; ++u) {
        if (units.first[u] + part >= units.first[u + 1]) continue;
        const UnitPart& one = units.parts[units.first[u] + part];
        from.push_back(static_cast<int64_t>(one.member) * size + one.unit);
        to.push_back(static_cast<int64_t>(u));
        weights.push_back(one.weight);
      }
      if (to.empty()) break;
      const auto on_device = [&](const auto& list, at::ScalarType type) { return at::tensor(at::ArrayRef(list), type).to(device_); };
      const at::Tensor weight = on_device(weights, at::kFloat);
      const at::Tensor terms = all.index_select(along, on_device(from, at::kLong)).to(at::kFloat);
      const at::Tensor weighted = terms.mul(along == 0 ? weight.unsqueeze(1) : weight);
      sum = part == 0 ? weighted : sum.index_add_(along, on_device(to, at::kLong), weighted);  // every unit has a first part
    }
    store(sum, dtype, out);
  }

  at::Device device_;
};

}  // namespace

std::unique_ptr<Merger> merger_on(at::Device device) {
  if (device.is_cpu()) return std::make_unique<LoopMerger>();
  return std::make_unique<DeviceMerger>(device);
}

}  // namespace hcsmoe
