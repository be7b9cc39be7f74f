"""A checkpoint much larger than what the program may hold: resident memory must not follow the size of the model."""

import json
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import DEMO_MODEL
from conftest import MPI_ENVIRONMENT, job_command, write_config
from rank_memory import wait_and_watch

LAYERS, HIDDEN, INTERMEDIATE, EXPERTS = 6, 2048, 1408, 60  # Qwen1.5-MoE-A2.7B, with a quarter of its layers
LAYER_BYTES = EXPERTS * 3 * HIDDEN * INTERMEDIATE * 2

CONFIG = dict(
    architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", hidden_act="silu", vocab_size=1024, hidden_size=HIDDEN,
    intermediate_size=5632, moe_intermediate_size=INTERMEDIATE, shared_expert_intermediate_size=5632, num_hidden_layers=LAYERS,
    num_attention_heads=16, num_key_value_heads=16, num_experts=EXPERTS, num_experts_per_tok=4, norm_topk_prob=False, decoder_sparse_step=1,
    mlp_only_layers=[], max_position_embeddings=8192, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False, torch_dtype="bfloat16",
    bos_token_id=0, eos_token_id=0,
)  # fmt: skip


def tensor_shapes() -> dict:
    shapes = {"model.embed_tokens.weight": [1024, HIDDEN], "model.norm.weight": [HIDDEN], "lm_head.weight": [1024, HIDDEN]}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for projection in "qkv":
            shapes[f"{prefix}self_attn.{projection}_proj.weight"] = [HIDDEN, HIDDEN]
            shapes[f"{prefix}self_attn.{projection}_proj.bias"] = [HIDDEN]
        shapes[f"{prefix}self_attn.o_proj.weight"] = [HIDDEN, HIDDEN]
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = [HIDDEN]
        shapes[f"{prefix}mlp.gate.weight"], shapes[f"{prefix}mlp.shared_expert_gate.weight"] = [EXPERTS, HIDDEN], [1, HIDDEN]
        blocks = {f"experts.{expert}": INTERMEDIATE for expert in range(EXPERTS)} | {"shared_expert": 5632}
        for block, width in blocks.items():
            for projection in ("gate_proj", "up_proj"):
                shapes[f"{prefix}mlp.{block}.{projection}.weight"] = [width, HIDDEN]
            shapes[f"{prefix}mlp.{block}.down_proj.weight"] = [HIDDEN, width]
    return shapes


def make_sparse_checkpoint(folder: Path) -> int:
    """One file of holes with random embedding, norms and routers: it takes no disk. Returns its size."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / file, folder / file)
    header, end = {}, 0
    for name, shape in tensor_shapes().items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    generator = np.random.default_rng(1)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, entry in header.items():
            if "embed_tokens" in name or "norm" in name or name.endswith("mlp.gate.weight"):
                values = generator.standard_normal(entry["shape"], dtype=np.float32)
                out.seek(8 + len(encoded) + entry["data_offsets"][0])
                out.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())  # truncated to bfloat16
        out.truncate(8 + len(encoded) + end)
    return end


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_collect_streams(tmp_path, dtype):
    size = make_sparse_checkpoint(tmp_path / "model")
    assert size > 6e9 and (tmp_path / "model" / "model.safetensors").stat().st_blocks * 512 < 200e6
    np.save(tmp_path / "ids.npy", np.random.default_rng(2).integers(0, 1024, (4, 16), dtype=np.int32))
    job = {
        "model": str(tmp_path / "model"),
        "output": str(tmp_path / "output"),
        "calibration": {"files": [str(tmp_path / "ids.npy")], "sequences": 4, "length": 16},
        "compression": {"method": "hc-smoe", "experts": 30},
        "device": {"dtype": dtype},
    }
    command = job_command(2, write_config(tmp_path, job), "collect")
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=os.environ | MPI_ENVIRONMENT)
        peak, _ = wait_and_watch(process, deadline=time.monotonic() + 600)
        if process.poll() is None:
            process.kill()
    assert process.wait() == 0, (tmp_path / "log.txt").read_text()
    print(f"{dtype}: checkpoint {size / 1e9:.1f} GB, a layer {LAYER_BYTES / 1e6:.0f} MB, peak anonymous MB a rank "
          f"{[round(held / 1e6) for held in peak.values()]}")  # fmt: skip
    assert len(peak) == 2
    assert max(peak.values()) < 0.6 * LAYER_BYTES  # libtorch itself, tensors in float32 one at a time, hidden states
