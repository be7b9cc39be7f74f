"""Makes the seeds of the fuzz targets, seeds/TARGET/*: small files as the program meets them, from the libraries that write them. They are
committed; this is how they came to be.

    .deps/python/bin/python tests/fuzz/make_seeds.py WORK

WORK: the work folder of a run on a checkpoint of a few kilobytes, for statistics and shards (the flow tests leave such).
"""

import gzip
import io
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

HERE = Path(__file__).resolve().parent


def write(target: str, name: str, content):
    folder = HERE / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def safetensors():
    tensors = {"a.weight": torch.arange(6).reshape(2, 3).to(torch.bfloat16), "b": torch.zeros(4), "c": torch.zeros(0, 3, dtype=torch.int64)}
    whole = save(tensors, metadata={"format": "pt"})
    write("safetensors", "whole", b"\0\0" + whole)
    header = whole[: 8 + struct.unpack("<Q", whole[:8])[0]]
    write("safetensors", "header", struct.pack("<H", len(whole) - len(header)) + header)
    write("safetensors", "empty", b"\0\0" + struct.pack("<Q", 2) + b"{}")


def index():
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write("index", "two", json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": files[0], "b": files[1]}}))
    write("index", "outside", json.dumps({"weight_map": {"a": "../../etc/passwd"}}))


def model_configs():
    common = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "num_attention_heads": 4, "num_key_value_heads": 2,
              "rms_norm_eps": 1e-6, "num_experts_per_tok": 2, "hidden_act": "silu", "max_position_embeddings": 128,
              "tie_word_embeddings": False}  # fmt: skip
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0, "mscale_all_dim": 1.0}
    groups = {"n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 16, "intermediate_size": 32,
              "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True}  # fmt: skip
    families = {
        "mixtral": {"num_local_experts": 8, "intermediate_size": 32, "sliding_window": 16},
        "qwen2_moe": {"num_experts": 8, "moe_intermediate_size": 16, "intermediate_size": 32, "shared_expert_intermediate_size": 32,
                      "decoder_sparse_step": 1, "mlp_only_layers": [0]},
        "deepseek": {"n_routed_experts": 8, "moe_intermediate_size": 16, "intermediate_size": 32,
                     "rope_scaling": {"type": "linear", "factor": 2.0}},
        "deepseek_v3": groups | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
                                 "rope_scaling": yarn, "num_nextn_predict_layers": 1},
        "glm4_moe": groups | {"head_dim": 16, "partial_rotary_factor": 0.5, "use_qk_norm": True, "attention_bias": True},
    }  # fmt: skip
    for family, keys in families.items():
        write("model_config", family, json.dumps({"model_type": family} | common | keys))


def configurations():
    write("yaml", "short", "model: /tmp\noutput: /tmp/x\ncompression:\n  experts: 0.5\n")
    write("yaml", "long", """# every section
model: /tmp
output: "/tmp/x"
work: null
output_shard_size: 5GB
calibration: {files: [a.jsonl.gz, 'b.txt'], text_key: text, sequences: 4, length: 16, seed: 42, add_bos: auto, sample: 64}
compression:
  method: hc-smoe
  experts: 50%
  feature: expert_output
  metric: cosine
  linkage: average
  merge: frequency
  router: fitted
  reconstruction: full
  protect: {top: 1}
  max_cluster_size: 4
device: {type: cpu, dtype: float32, threads: 2, memory: 80GB}
evaluation:
  perplexity: [a.txt]
  tasks:
    - b.jsonl
""")  # fmt: skip


def tokenizers():
    vocabulary = {character: i for i, character in enumerate("<s> </s> <unk> l o w e r n s t Ġ Ċ é 1 2 3 lo low er lowest".split())}
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary,
             "merges": ["l o", "lo w", "e r"]}  # fmt: skip
    added = [{"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True},
             {"id": 21, "content": "123", "single_word": True, "lstrip": True, "rstrip": False, "normalized": True,
              "special": False}]  # fmt: skip
    pattern = "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}  # fmt: skip
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    kinds = {
        "byte_level": {"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}},
        "metaspace": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"},
                                     {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]},
                      "pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": True}},
        "digits": {"normalizer": None, "pre_tokenizer": {"type": "Digits", "individual_digits": True}},
    }  # fmt: skip
    for name, parts in kinds.items():
        write("tokenizer", name, json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts,
                                             "post_processor": template, "decoder": None, "model": model}))  # fmt: skip
    write("encode", "text", "The bright stone carries 1234 queens.\n\n  It's\té€😀 <s></s>")


def documents():
    lines = '{"text": "Some text."}\n\n{"input_ids": [1, 2]}\n{"messages": []}\n'
    question = '{"context": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0, "delimiter": " "}\n'
    write("documents", "lines", b"\0" + lines.encode())
    write("documents", "plain", b"\1A text of two\nlines.\n")
    for name, kind, content in [("packed_lines", 2, lines), ("packed_plain", 3, "A text."), ("packed_questions", 6, question)]:
        write("documents", name, bytes([kind]) + gzip.compress(content.encode(), mtime=0))
    write("documents", "questions", b"\4" + question.encode())
    write("documents", "bomb", b"\2" + gzip.compress(b"\n" * (8 << 20), 9, mtime=0))


def arrays():
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    for name, array in [("ids", ids), ("long", np.zeros(3, np.int64)), ("empty", np.zeros((0, 4), np.float32))]:
        file = io.BytesIO()
        np.save(file, array)
        write("npy", name, file.getvalue())


def plans(work: Path):
    shutil.copyfile(work / "plan.json", HERE / "seeds" / "plan" / "whole")
    overlapping = [{"members": [0, 1], "weights": [0.5, 0.5]}, {"members": [1, 2], "weights": [1, 0]}]
    soft = {"layer": 0, "experts": 3, "soft": True, "clusters": overlapping}
    write("plan", "soft", json.dumps({"format": "hcsmoe-plan/1", "layers": [soft]}))
    hard = {"layer": 3, "experts": 3, "clusters": [{"members": [0, 2], "weights": [0.25, 0.75], "dominant": 2}], "dropped": [1],
            "tree": [[0, 2, 0.5, 2], [1, 3, 1.5, 3]], "method": "reap",
            "scores": [{"method": "reap", "start_error": 0.5, "first_error": 0.4, "error": 0.3}]}  # fmt: skip
    recipe = {"method": "hc-smoe", "experts": 1, "protect": [2]}
    write("plan", "hard", json.dumps({"format": "hcsmoe-plan/1", "recipe": recipe, "layers": [hard]}))


def main(work: Path):
    for target in ("plan", "hdf5"):
        (HERE / "seeds" / target).mkdir(parents=True, exist_ok=True)
    safetensors()
    index()
    model_configs()
    configurations()
    tokenizers()
    documents()
    arrays()
    plans(work)
    for part in ("statistics", "shards"):
        smallest = min((work / part).glob("*.h5"), key=lambda file: file.stat().st_size)
        shutil.copyfile(smallest, HERE / "seeds" / "hdf5" / part)
    write("checksums", "two", f"{'0123456789abcdef' * 2}  config.json\n{'f' * 32}  model.safetensors\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
