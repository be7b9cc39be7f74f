"""Logits of a checkpoint folder by mlx-lm, on a CPU and in float32: MODEL IDS.npy OUT.npy; prints the versions."""

import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

mx.set_default_device(mx.cpu)
model, ids, out = sys.argv[1:]
loaded, _ = load_model(Path(model))
loaded.set_dtype(mx.float32)
np.save(out, np.concatenate([np.array(loaded(mx.array(row[None].astype(np.int32)))) for row in np.load(ids)]))
print(f"mlx-lm {version('mlx-lm')}, mlx {version('mlx')}")
