#include "checkpoint/layer_layout.h"

#include <algorithm>
#include <tuple>

namespace hcsmoe {
namespace {

constexpr uint64_t alignment = 256;  // of matrix products on a GPU

}  // namespace

LayerLayout layer_layout(const Checkpoint& checkpoint, const std::vector<std::string>& names) {
  LayerLayout layout;
  for (const std::string& name : names) layout.tensors.push_back({&checkpoint.info(name)});
  std::sort(layout.tensors.begin(), layout.tensors.end(), [](const PlacedTensor& a, const PlacedTensor& b) {
    return std::tie(a.info->file, a.info->begin, a.info->name) < std::tie(b.info->file, b.info->begin, b.info->name);
  });
  for (PlacedTensor& tensor : layout.tensors) {
    tensor.at = (layout.bytes + alignment - 1) / alignment * alignment;
    layout.bytes = tensor.at + tensor.info->bytes();
  }
  return layout;
}

std::vector<Piece> layer_pieces(const LayerLayout& layout, int64_t layer, uint64_t largest) {
  std::vector<Piece> pieces;
  for (uint64_t begin = 0; begin < layout.bytes; begin += largest) {
    pieces.push_back({layer, begin, std::min(layout.bytes, begin + largest), {}});
  }
  for (const PlacedTensor& tensor : layout.tensors) {
    for (uint64_t at = tensor.at, end = tensor.at + tensor.info->bytes(); at < end;) {
      Piece& piece = pieces[at / largest];
      const uint64_t stop = std::min(end, piece.end), from = tensor.info->begin + (at - tensor.at);
      FileRange* last = piece.ranges.empty() ? nullptr : &piece.ranges.back();
      if (last && last->file == tensor.info->file && last->end == from && last->at + (last->end - last->begin) == at) {
        last->end += stop - at;
      } else {
        piece.ranges.push_back({tensor.info->file, from, from + (stop - at), at});
      }
      at = stop;
    }
  }
  return pieces;
}

}  // namespace hcsmoe
