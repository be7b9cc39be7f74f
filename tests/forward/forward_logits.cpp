// forward_logits MODEL IDS.npy OUT.npy float32|bfloat16 [THREADS]: logits of a checkpoint for ids [sequences, length], float32
// [sequences, length, V]. For tests/flow/test_logits.py.

#include <ATen/ops/stack.h>
#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "hcsmoe/calibration.h"
#include "hcsmoe/forward.h"

int main(int argc, char** argv) {
  using namespace hcsmoe;
  if (argc < 5) return 2;
  MPI_Init(&argc, &argv);
  int exit_code = 0;
  try {
    const Ranks ranks(MPI_COMM_SELF);
    const Checkpoint checkpoint = Checkpoint::open(argv[1]);
    const ModelDescription model = describe_model(checkpoint);
    DeviceConfig device;
    device.dtype = std::strcmp(argv[4], "bfloat16") == 0 ? ComputeDtype::bfloat16 : ComputeDtype::float32;
    device.threads = argc > 5 ? std::atoi(argv[5]) : 1;
    const at::Tensor ids = read_npy(argv[2]).to(at::kInt);
    std::vector<at::Tensor> sequences;
    for (int64_t s = 0; s < ids.size(0); ++s) sequences.push_back(ids[s]);
    LayerSweep sweep(checkpoint, model, choose_compute(device, checkpoint, model, ranks), sequences);
    while (sweep.next_layer() < model.layers) sweep.run_layer();
    write_npy(argv[3], at::stack(sweep.logits()));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "forward_logits: %s\n", error.what());
    exit_code = 1;
  }
  MPI_Finalize();
  return exit_code;
}
