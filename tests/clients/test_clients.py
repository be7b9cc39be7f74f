"""Output folders in clients other than the tests' own transformers: the same logits as ours.

HCSMOE_CLIENTS names their interpreters, NAME=PYTHON with blanks between, HCSMOE_LLAMA_CPP the folder of llama.cpp's sources; tests/clients/run.sh makes
both. Without them nothing is tested here.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import DEMO_MODEL
from conftest import NAMES, forward_logits, relative_error, run_job, run_program
from transformers import AutoTokenizer

CLIENTS = dict(entry.split("=", 1) for entry in os.environ.get("HCSMOE_CLIENTS", "").split())
LOADERS = {"transformers4": "transformers_logits.py", "transformers5": "transformers_logits.py", "mlx": "mlx_logits.py"}
IN_TRANSFORMERS = [name for name in NAMES if not name.startswith("deepseek_") or name.startswith("deepseek_v3")]  # no class in stock transformers
# mlx-lm refuses the others by name: a head size of its own (Mixtral), dense layers among sparse ones (Qwen2-MoE), YaRN
IN_MLX = ["demo", "mixtral_f32_tied", "glm4_moe_bf16_mtp"]
PAIRS = [(client, name) for client in LOADERS if client in CLIENTS for name in (IN_MLX if client == "mlx" else ["demo", *IN_TRANSFORMERS])]
IN_LLAMA_CPP = ["demo"]


@pytest.fixture(scope="session")
def demo_job(tmp_path_factory) -> Path:
    """The output folder of the demo model, 8 of 16 experts."""
    folder = tmp_path_factory.mktemp("demo")
    calibration = {"files": [str(DEMO_MODEL.parent / "data" / "calibration.jsonl")], "sequences": 8, "length": 128}
    compression = {"method": "reap", "experts": 8, "reconstruction": "full"}
    run_job(folder, 1, {"model": str(DEMO_MODEL), "output": str(folder / "output"), "calibration": calibration, "compression": compression})
    return folder / "output"


def text_ids(folder: Path) -> Path:
    lines = (DEMO_MODEL.parent / "data" / "validation.jsonl").read_text().splitlines()[:20]
    ids = AutoTokenizer.from_pretrained(DEMO_MODEL)(" ".join(json.loads(line)["text"] for line in lines))["input_ids"]
    np.save(folder / "ids.npy", np.array(ids[:512], dtype=np.int32).reshape(4, 128))
    return folder / "ids.npy"


def output_and_ids(golden, request, folder: Path, name: str) -> tuple:
    if name == "demo":
        return request.getfixturevalue("demo_job"), text_ids(folder)
    np.save(folder / "ids.npy", golden(name).array("ids")[:2])
    return request.getfixturevalue("main_job")(name)[0], folder / "ids.npy"


@pytest.mark.skipif(not PAIRS, reason="HCSMOE_CLIENTS names no interpreters: tests/clients/run.sh")
@pytest.mark.parametrize("client, name", PAIRS)
def test_the_same_logits(golden, request, tmp_path, client, name):
    output, ids = output_and_ids(golden, request, tmp_path, name)
    theirs = tmp_path / "theirs.npy"
    script = Path(__file__).with_name(LOADERS[client])
    result = run_program([CLIENTS[client], script, output, ids, theirs], timeout=300, environment={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    ours = forward_logits(output, ids, tmp_path, "float32")
    error = relative_error(np.load(theirs), ours)
    print(f"{name}: {result.stdout.strip()}: largest difference {error:.1e} of the largest logit")
    assert error < 1e-4


@pytest.mark.skipif("llama_cpp" not in CLIENTS, reason="HCSMOE_CLIENTS names no llama_cpp: tests/clients/run.sh")
@pytest.mark.parametrize("name", IN_LLAMA_CPP)
def test_the_same_log_probabilities_in_llama_cpp(golden, request, tmp_path, name):
    """Converted to GGUF by llama.cpp's own converter and run by its runtime, which gives log-probabilities of the next token."""
    output, ids = output_and_ids(golden, request, tmp_path, name)
    folder, stride = Path(__file__).parent, 16
    run = lambda script, *arguments: run_program(
        [CLIENTS["llama_cpp"], folder / script, *arguments], timeout=300, environment={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    )
    converted = run("llama_cpp_gguf.py", os.environ["HCSMOE_LLAMA_CPP"], output, tmp_path / "model.gguf")
    assert converted.returncode == 0, converted.stderr
    result = run("llama_cpp_log_probabilities.py", tmp_path / "model.gguf", ids, stride, tmp_path / "theirs.npy")
    assert result.returncode == 0, result.stderr
    theirs = np.load(tmp_path / "theirs.npy")
    ours = torch.from_numpy(forward_logits(output, ids, tmp_path, "float32")).double().log_softmax(-1).numpy()[:, stride - 1 :: stride]
    assert theirs.shape == ours.shape
    error = np.abs(theirs - ours).max()
    print(f"{name}: {result.stdout.strip()}: log-probabilities down to {ours.min():.1f}, largest difference {error:.1e}")
    assert error < 1e-3
