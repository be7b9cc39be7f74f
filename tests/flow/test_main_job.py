"""The main job: a checkpoint folder in, a smaller one out, on any number of ranks."""

import json

import numpy as np
import pytest
import reference
import torch
from checkpoints import DEMO_MODEL
from conftest import NAMES, ONE_A_FAMILY, forward_logits, job_digests, relative_error, run_job
from transformers import AutoTokenizer

DEMO_TEXT = DEMO_MODEL.parent / "data" / "calibration.jsonl"


def read_plan(work) -> dict:
    """layer -> its plan, router weights filled in."""
    plan = json.loads((work / "plan.json").read_text())
    assert plan["format"] == "hcsmoe-plan/1"
    for layer in plan["layers"]:
        for cluster in layer["clusters"]:
            cluster.setdefault("router_weights", cluster["weights"])
    return {layer["layer"]: layer for layer in plan["layers"]}


def largest_difference(found: dict, expected: dict) -> float:
    """0 if every tensor is bit-equal (signs of zeros aside)."""
    assert set(found) == set(expected)
    worst = 0.0
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        if not torch.equal(found[name], tensor):
            worst = max(worst, (found[name].double() - tensor.double()).abs().max().item(), 1e-300)
            print(f"{name} differs by {worst:.2e}")
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_clusters_are_scipys(golden, main_job, name):
    case, plan = golden(name), read_plan(main_job(name)[1])
    assert list(plan) == case.moe_layers
    worst = 0
    for layer, found in plan.items():
        expected = case.clusters[str(layer)]
        assert found["experts"] == case.experts
        assert [cluster["members"] for cluster in found["clusters"]] == [cluster["members"] for cluster in expected]
        counts = case.statistics(layer)["routed_count"]
        for ours, theirs in zip(found["clusters"], expected):
            assert np.allclose(ours["weights"], theirs["weights"], rtol=0, atol=1e-15)
            assert np.allclose(ours["router_weights"], theirs["router_weights"], rtol=0, atol=1e-15)
            assert ours["dominant"] == max(ours["members"], key=lambda member: (counts[member], -member))
        tree, expected_tree = np.array(found["tree"]), np.array(case.clustering[str(layer)]["average"]["tree"])
        assert np.array_equal(tree[:, [0, 1, 3]], expected_tree[:, [0, 1, 3]])
        worst = max(worst, relative_error(tree[:, 2], expected_tree[:, 2]))
    print(f"{name}: largest error of a height {worst:.1e} of the scale")
    assert worst <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_merged_tensors_are_exact(golden, main_job, name):
    case, (output, work) = golden(name), main_job(name)
    plan = {layer: found["clusters"] for layer, found in read_plan(work).items()}
    original, found = reference.model_tensors(case.model), reference.read_tensors(output)
    assert largest_difference(found, reference.merge_tensors(original, plan)) == 0
    assert largest_difference(found, reference.read_tensors(case.folder / "merged")) == 0


@pytest.mark.parametrize("name", NAMES)
def test_output_folder(golden, main_job, name):
    """config.json with another expert count and nothing else changed, the index, and every other file as it was."""
    case, (output, _) = golden(name), main_job(name)
    config = reference.read_config(output)
    assert config == reference.merged_config(case.config, case.kept) and list(config) == list(case.config)
    for file in case.model.iterdir():
        if file.suffix != ".safetensors" and file.name not in ("config.json", "model.safetensors.index.json"):
            assert (output / file.name).read_bytes() == file.read_bytes(), file.name
    shards = sorted(output.glob("*.safetensors"))
    if not (case.model / "model.safetensors.index.json").exists():
        assert [file.name for file in shards] == ["model.safetensors"]
    else:
        index = json.loads((output / "model.safetensors.index.json").read_text())
        tensors = {file.name: reference.load_file(file) for file in shards}
        assert list(tensors) == [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        assert len(shards) > 3 and all(len(t) == 1 or sum(x.nbytes for x in t.values()) <= 60_000 for t in tensors.values())
        assert index["weight_map"] == {tensor: file for file, content in tensors.items() for tensor in content}
        assert index["metadata"]["total_size"] == sum(t.nbytes for content in tensors.values() for t in content.values())
    assert not output.with_name("output.partial").exists()
    left_out = json.loads((main_job(name)[1] / "run.json").read_text()).get("left_out", [])
    behind = [f"layer {case.config['num_hidden_layers']}: for multi-token prediction"] * case.config.get("num_nextn_predict_layers", 0)
    assert [line.partition(",")[0] for line in left_out] == behind


@pytest.mark.parametrize("name", NAMES)
def test_output_runs_in_transformers(golden, main_job, tmp_path, name):
    case, (output, _) = golden(name), main_job(name)
    loaded = reference.logits(reference.load_model(output), case.array("ids")).numpy()
    to_golden = relative_error(loaded, case.array("merged_logits"))
    to_ours = relative_error(forward_logits(output, case.ids_file, tmp_path, "float32"), loaded)
    print(f"{name}: merged logits, largest error {to_golden:.1e} to the golden ones, ours {to_ours:.1e}")
    assert to_golden <= 1e-4 and to_ours <= 1e-4


def assert_same_bytes(tmp_path, job, expected, ranks, threads, sets=()):
    run_job(tmp_path, ranks, job, threads=threads, sets=sets, timeout=300)
    found = job_digests(tmp_path / "output", tmp_path / "output.work")
    assert found.keys() == expected.keys()
    assert not [file for file in expected if found[file] != expected[file]]


ALL = [(name, ranks, threads) for name in ONE_A_FAMILY for ranks in (1, 2, 3, 4, 8) for threads in (1, 2) if (ranks, threads) != (1, 1)]
ALL += [(name, *case) for name in NAMES if name not in ONE_A_FAMILY for case in ((1, 2), (3, 1))]
QUICK = [(ONE_A_FAMILY[0], 2, 2), (ONE_A_FAMILY[0], 8, 1), (ONE_A_FAMILY[1], 3, 1), (ONE_A_FAMILY[2], 4, 2), (ONE_A_FAMILY[3], 3, 2),
         (ONE_A_FAMILY[4], 2, 2)]  # fmt: skip


@pytest.mark.parametrize(
    "name, ranks, threads", [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in ALL]
)  # fmt: skip
def test_ranks_and_threads_do_not_matter(golden, main_job, tmp_path, name, ranks, threads):
    assert_same_bytes(tmp_path, golden(name).job(tmp_path / "output"), job_digests(*main_job(name)), ranks, threads)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == ONE_A_FAMILY[0] else pytest.mark.slow) for name in ONE_A_FAMILY])
def test_ranks_do_not_matter_in_bfloat16(golden, tmp_path, name):
    sets = ["device.dtype=bfloat16"]
    alone = tmp_path / "alone"
    run_job(alone, 1, golden(name).job(alone / "output"), sets=sets)
    expected = job_digests(alone / "output", alone / "output.work")
    for ranks, threads in ((3, 2), (2, 1)):
        folder = tmp_path / f"{ranks}_{threads}"
        assert_same_bytes(folder, golden(name).job(folder / "output"), expected, ranks, threads, sets)


def demo_job(output) -> dict:
    return {
        "model": str(DEMO_MODEL),
        "output": str(output),
        "calibration": {"files": [str(DEMO_TEXT)], "sequences": 12, "length": 128},
        "compression": {"experts": 0.5, "rounds": 1},  # by the default method
    }


def test_from_text(tmp_path):
    """The demo model on real text: half the experts, the same bytes on 1 and 3 ranks, and ids that the tokenizer agrees with."""
    alone = tmp_path / "alone"
    run_job(alone, 1, demo_job(alone / "output"), threads=2)
    work = alone / "output.work"
    assert_same_bytes(tmp_path / "three", demo_job(tmp_path / "three" / "output"), job_digests(alone / "output", work), 3, 1)
    assert reference.read_config(alone / "output")["num_experts"] == 8

    ids = np.load(work / "calibration.npy")
    assert ids.shape == (12, 128) and ids.dtype == np.int32
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    texts = [json.loads(line)["text"] for line in DEMO_TEXT.read_text().splitlines()]
    known = {tuple(document) for document in tokenizer(texts, add_special_tokens=False)["input_ids"]}
    stream = ids.ravel().tolist()
    documents, begin = [], 0
    for position, token in enumerate(stream):
        if token == tokenizer.eos_token_id:
            documents.append(tuple(stream[begin:position]))
            begin = position + 1
    assert len(documents) > 10 and set(documents) <= known
    assert documents != [tuple(d) for d in tokenizer(texts[: len(documents)], add_special_tokens=False)["input_ids"]], "not shuffled"
