"""Logits of a checkpoint folder by whatever transformers this interpreter has: MODEL IDS.npy OUT.npy; prints the version."""

import sys

import numpy as np
import torch
import transformers

model, ids, out = sys.argv[1:]
# The grouped product that transformers 5 takes by default wants rows of 16 bytes, which the smallest test models do not have.
eager = {"attn_implementation": "eager"} | ({"experts_implementation": "eager"} if int(transformers.__version__.split(".")[0]) >= 5 else {})
loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **eager).eval()
with torch.no_grad():
    logits = torch.cat([loaded(torch.from_numpy(row[None].astype(np.int64))).logits for row in np.load(ids)])
np.save(out, logits.float().numpy())
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
