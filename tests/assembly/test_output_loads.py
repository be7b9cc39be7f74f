"""An assembled folder as others see it: safetensors, transformers and h5py read it (and the shards) without any code of ours.

assemble_first_experts (in the folder that the environment variable HCSMOE_BUILD names) keeps the first experts of each layer unchanged,
so that every tensor of the output is known.
"""
import json
import os
import pathlib
import shutil
import subprocess

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = pathlib.Path(__file__).parents[1] / "data" / "demo" / "model"
KEPT = 5


def tensors(folder):
    result = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():
                assert name not in result
                result[name] = opened.get_tensor(name)
    return result


def expected_tensors():
    """The original's tensors with experts 0 .. KEPT - 1 and the first KEPT router rows."""
    result = {}
    for name, tensor in tensors(MODEL).items():
        if ".experts." in name and int(name.split(".experts.")[1].split(".")[0]) >= KEPT:
            continue
        result[name] = tensor[:KEPT] if name.endswith(".mlp.gate.weight") else tensor
    return result


@pytest.fixture(scope="module", params=[(1, 5_000_000_000), (1, 400_000), (3, 400_000)], ids=["one-file", "files", "files-3-ranks"])
def assembled(request, tmp_path_factory):
    ranks, max_shard_bytes = request.param
    folder = tmp_path_factory.mktemp("assembled")
    program = pathlib.Path(os.environ["HCSMOE_BUILD"]) / "assemble_first_experts"
    command = [program, MODEL, folder / "work", folder / "output", str(KEPT), str(max_shard_bytes)]
    if ranks > 1:
        command = [shutil.which("mpirun"), "--oversubscribe", "-np", str(ranks)] + command
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def test_safetensors(assembled):
    expected, found = expected_tensors(), tensors(assembled / "output")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_index(assembled):
    files = sorted((assembled / "output").glob("*.safetensors"))
    index = assembled / "output" / "model.safetensors.index.json"
    if len(files) == 1:
        assert files[0].name == "model.safetensors" and not index.exists()
        return
    content = json.loads(index.read_text())
    # As huggingface_hub writes it.
    assert index.read_text() == json.dumps(content, indent=2, sort_keys=True) + "\n"
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= {name: file.name for name in opened.keys()}
    assert content["weight_map"] == found
    all_tensors = tensors(assembled / "output").values()
    assert content["metadata"] == {
        "total_size": sum(t.numel() * t.element_size() for t in all_tensors),
        "total_parameters": sum(t.numel() for t in all_tensors),
    }


def test_transformers(assembled):
    model, report = AutoModelForCausalLM.from_pretrained(assembled / "output", output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.num_experts == KEPT
    expected = expected_tensors()
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name].float(), tensor.float()), name
    ids = AutoTokenizer.from_pretrained(assembled / "output")("the quick brown fox", return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()


def test_h5py_reads_the_shards(assembled):
    expected = expected_tensors()
    shards = sorted((assembled / "work" / "shards").glob("*.h5"))
    assert [shard.name for shard in shards] == [f"layer_{layer:04}.h5" for layer in range(4)]
    for layer, shard in enumerate(shards):
        with h5py.File(shard) as file:
            assert file.attrs["layer"] == layer
            assert len(file) == 1 + 3 * KEPT
            for name, dataset in file.items():
                assert np.array_equal(dataset[:].astype(np.float32), expected[name].float().numpy()), name
