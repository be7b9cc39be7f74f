"""Log-probabilities of the next token by llama.cpp's runtime (xllamacpp), in float32: MODEL.gguf IDS.npy STRIDE OUT.npy; prints the version.

OUT: [sequences, prefixes, V], after the first STRIDE, 2 STRIDE, ... tokens of each sequence.
"""

import sys
from importlib.metadata import version

import numpy as np
import xllamacpp

model, ids, stride, out = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
params = xllamacpp.CommonParams()
params.model.path = model
params.n_ctx = 1024
params.n_parallel = 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup = False
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)


def log_probabilities(prefix: np.ndarray) -> np.ndarray:
    request = {"prompt": prefix.tolist(), "max_tokens": 1, "temperature": -1, "n_probs": 1 << 20, "logprobs": 1 << 20, "cache_prompt": False}
    answer = server.handle_completions(request)
    if "choices" not in answer:
        sys.exit(f"llama.cpp: {answer}")
    entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    values = np.full(len(entries), np.nan)
    for entry in entries:
        values[entry["id"]] = entry["logprob"]
    return values


np.save(out, [[log_probabilities(row[:end]) for end in range(stride, len(row) + 1, stride)] for row in ids])
print(f"llama.cpp through xllamacpp {version('xllamacpp')}")
