"""Logits of a checkpoint folder by whatever transformers this interpreter has: MODEL IDS.npy OUT.npy; prints the version."""

import sys

import numpy as np
import torch
import transformers

model, ids, out = sys.argv[1:]
loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
with torch.no_grad():
    logits = torch.cat([loaded(torch.from_numpy(row[None].astype(np.int64))).logits for row in np.load(ids)])
np.save(out, logits.float().numpy())
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
