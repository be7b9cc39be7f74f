#pragma once
// How the tensors of a layer lie in memory that holds the layer as one, and the pieces in which it is brought there. Tensors follow each
// other as in the files, each at a multiple of 256 bytes, so what is one range there mostly is one range here.

#include <cstdint>
#include <string>
#include <vector>

#include "hcsmoe/checkpoint.h"

namespace hcsmoe {

struct PlacedTensor {
  const TensorInfo* info;  // the checkpoint's
  uint64_t at = 0;         // its first byte
};

struct LayerLayout {
  std::vector<PlacedTensor> tensors;  // by file and place in it
  uint64_t bytes = 0;
};
LayerLayout layer_layout(const Checkpoint&, const std::vector<std::string>& names);

/// Bytes of one file.
struct FileRange {
  int file = 0;
  uint64_t begin = 0, end = 0;
  uint64_t at = 0;  // in the layer, of `begin`
};

/// Consecutive bytes of a layer, and what they are read from. Bytes between ranges are padding.
struct Piece {
  int64_t layer = 0;
  uint64_t begin = 0, end = 0;
  std::vector<FileRange> ranges;
};
/// Pieces of at most `largest` bytes that cover the layer, in order.
std::vector<Piece> layer_pieces(const LayerLayout&, int64_t layer, uint64_t largest);

}  // namespace hcsmoe
