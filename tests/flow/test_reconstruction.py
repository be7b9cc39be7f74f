"""Blocks that are fitted to the original's outputs, and method auto, in real jobs: what they gain, that bytes depend on nothing but the
configuration, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import reference
import torch
from checkpoints import DEMO_MODEL
from conftest import digests, model_digests, forward_logits, job_digests, relative_error, run_job
from safetensors.torch import save_file
from transformers import AutoTokenizer

DEMO_DATA = DEMO_MODEL.parent / "data"
FULL = {"reconstruction": "full", "propagate": "compressed", "rounds": 1}
AUTO = {"method": "auto", "rounds": 1}
FITTED = {"router": "fitted"}


def demo_job(folder, sequences=16, length=256, documents=0, **compression) -> dict:
    """documents: of the text on which original and output are measured; 0: they are not."""
    job = {
        "model": str(DEMO_MODEL),
        "output": str(folder / "output"),
        "calibration": {"files": [str(DEMO_DATA / "calibration.jsonl")], "sequences": sequences, "length": length},
        "compression": {"experts": 8} | compression,
        "device": {"dtype": "float32"},
    }
    if documents:
        lines = (DEMO_DATA / "validation.jsonl").read_text().splitlines()[:documents]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
        job["evaluation"] = {"perplexity": str(folder / "text.jsonl"), "length": 128}
    return job


def summary(work) -> dict:
    return json.loads((work / "run.json").read_text())


def said(result) -> str:
    return result.stdout + result.stderr


def test_reconstruction_brings_back_most_of_what_pruning_lost(tmp_path):
    found = {}
    for name, compression in {"pruned": {}, "reconstructed": {"reconstruction": "full", "router": "fitted", "propagate": "compressed"}}.items():
        folder = tmp_path / name
        run_job(folder, 2, demo_job(folder, documents=80, method="reap", **compression))
        found[name] = summary(folder / "output.work")["evaluation"]["models"][1]["perplexity"][0]
    print({name: f"KL {text['kl_divergence']['value']:.4f}, perplexity {text['perplexity']:.3f}" for name, text in found.items()})
    assert found["reconstructed"]["kl_divergence"]["value"] < 0.4 * found["pruned"]["kl_divergence"]["value"]
    assert found["reconstructed"]["top1_agreement"]["value"] > found["pruned"]["top1_agreement"]["value"]

    output = tmp_path / "reconstructed" / "output"
    original, ours = reference.read_tensors(DEMO_MODEL), reference.read_tensors(output)
    assert all(ours[name].dtype == original[name].dtype for name in ours)
    tokenizer, ids = AutoTokenizer.from_pretrained(output), []
    for line in (tmp_path / "reconstructed" / "text.jsonl").read_text().splitlines():
        ids += [*tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    expected, _ = reference.perplexity(reference.load_model(output), np.array(ids), 128)
    assert found["reconstructed"]["perplexity"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "name, compression",
    [
        ("mixtral_bf16_window", FULL),
        ("qwen2_moe_f32_sparse_step", AUTO),
        ("deepseek_f16_linear", AUTO),
        ("deepseek_f16_linear", FULL | {"method": "reap"} | FITTED),
        ("mixtral_bf16_window", FITTED),
        ("glm4_moe_bf16_mtp", FULL | FITTED),
        ("deepseek_v3_bf16_yarn", AUTO),
    ],
    ids=["mixtral, full", "qwen2_moe, auto", "deepseek, auto", "deepseek, reap and full", "mixtral, fitted router", "glm4_moe, full",
         "deepseek_v3, auto"],
)
def test_ranks_and_threads_do_not_matter(golden, tmp_path, name, compression):
    expected = None
    for ranks, threads in ((1, 1), (1, 2), (2, 1), (3, 1)):
        folder = tmp_path / f"{ranks}_{threads}"
        run_job(folder, ranks, golden(name).job(folder / "output", **compression), threads=threads)
        found = job_digests(folder / "output", folder / "output.work")
        expected = expected or found
        assert found == expected, f"{ranks} ranks, {threads} threads"
    steps = [step for layer in summary(folder / "output.work")["reconstruction"] for step in layer["steps"]]
    assert any(step["kept"] for step in steps), "nothing was fitted"


@pytest.mark.parametrize("compression", [AUTO, FULL | FITTED], ids=["auto", "full"])
@pytest.mark.parametrize("name", ["mixtral_bf16_window", "qwen2_moe_f32_sparse_step", "deepseek_f16_linear", "deepseek_v3_bf16_yarn"])
def test_all_experts_kept_are_the_originals(golden, tmp_path, name, compression):
    case = golden(name)
    run_job(tmp_path, 2, case.job(tmp_path / "output", **compression | {"experts": case.experts}))
    original, found = reference.read_tensors(case.model), reference.read_tensors(tmp_path / "output")
    assert set(found) == set(original)
    assert [tensor for tensor in found if not found[tensor].equal(original[tensor])] == []
    assert reference.read_config(tmp_path / "output") == case.config, "groups and layers behind the last stay"


@torch.no_grad()
def with_permuted_copies(case, folder):
    """The checkpoint with, in each layer, its first expert in all places, the units of each in an order of its own."""
    tensors = reference.read_tensors(case.model)
    generator = torch.Generator().manual_seed(3)
    for layer in case.moe_layers:
        prefix = f"model.layers.{layer}.block_sparse_moe.experts."
        first = {part: tensors[f"{prefix}0.{part}.weight"] for part in ("w1", "w3", "w2")}
        for expert in range(1, case.experts):
            order = torch.randperm(first["w1"].shape[0], generator=generator)
            tensors[f"{prefix}{expert}.w1.weight"] = first["w1"][order].contiguous()
            tensors[f"{prefix}{expert}.w3.weight"] = first["w3"][order].contiguous()
            tensors[f"{prefix}{expert}.w2.weight"] = first["w2"][:, order].contiguous()
    shutil.copytree(case.model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("compression", [AUTO, FULL | FITTED | {"merge": "frequency-aligned"}], ids=["auto", "full"])
@pytest.mark.parametrize("name", ["mixtral_f32_tied", "mixtral_bf16_window"])
def test_permuted_copies_are_merged_without_loss(golden, tmp_path, name, compression):
    """Mixtral's routing weights sum to 1, so that a token's output is the same whichever copies it is sent to."""
    case = golden(name)
    model = with_permuted_copies(case, tmp_path / "model")
    result = run_job(tmp_path, 2, case.job(tmp_path / "output", **compression) | {"model": str(model)})
    layers = summary(tmp_path / "output.work")["reconstruction"]
    assert [layer["layer"] for layer in layers] == case.moe_layers
    print({layer["layer"]: (layer["start_error"], layer["error"]) for layer in layers})
    assert all(layer["error"] <= 1e-5**2 for layer in layers), "squares"
    assert said(result).count("-> 0.00 %") == len(case.moe_layers)
    ids = case.array("ids")
    expected, found = (reference.logits(reference.load_model(folder), ids) for folder in (model, tmp_path / "output"))
    error = ((found - expected).norm() / expected.norm()).item()
    print(f"{name}: logits, relative error {error:.1e}")
    assert error <= 1e-5


@pytest.mark.parametrize("compression", [AUTO, FULL | FITTED], ids=["auto", "full"])
def test_a_plan_and_shards_are_used_again(golden, tmp_path, compression):
    case = golden("qwen2_moe_f32_sparse_step")
    job, work = case.job(tmp_path / "output", **compression), tmp_path / "output.work"
    run_job(tmp_path, 2, job)
    made = model_digests(tmp_path / "output")
    plan = json.loads((work / "plan.json").read_text())
    if compression is AUTO:
        for layer in plan["layers"]:
            chosen = [score for score in layer["scores"] if score["method"] == layer["method"]]
            assert len(chosen) == 1 and chosen[0]["error"] == min(score["error"] for score in layer["scores"] if "error" in score)

    folder = tmp_path / "apply"
    shutil.copytree(work / "statistics", folder / "output.work" / "statistics")  # of the tokens on which units are compared
    run_job(folder, 3, job | {"output": str(folder / "output")}, "apply", arguments=["--plan", work / "plan.json"])
    assert model_digests(folder / "output") == made

    before = {file: file.stat().st_mtime_ns for part in ("statistics", "shards") for file in (work / part).iterdir()}
    again = job | {"output": str(tmp_path / "again"), "work": str(work)}
    for command in ("run", "apply"):
        result = run_job(tmp_path / "second", 1, again, command)
        assert model_digests(tmp_path / "again") == made
        assert {file: file.stat().st_mtime_ns for file in before} == before
        assert "sweep" not in summary(work)["seconds"] and (command == "apply" or "are valid and not collected again" in said(result))
        shutil.rmtree(tmp_path / "again")
    assert json.loads((work / "plan.json").read_text()) == plan

    more = {"compression": job["compression"] | {"rounds": 2}}
    run_job(tmp_path / "third", 1, again | more)
    assert "sweep" in summary(work)["seconds"], "another recipe, other shards"
    run_job(tmp_path / "fresh", 1, job | more | {"output": str(tmp_path / "fresh" / "output")})
    assert model_digests(tmp_path / "again") == model_digests(tmp_path / "fresh" / "output")


def assert_never_worse(layers):
    for layer in layers:
        assert 0 < layer["error"] <= layer["start_error"]
        error = layer["start_error"]
        for step in layer["steps"]:
            assert step["error"] <= error if step["kept"] else step["error"] >= error, f"layer {layer['layer']}: {step}"
            error = step["error"] if step["kept"] else error
        assert error == layer["error"]


@pytest.mark.parametrize("compression", [{"method": "auto"}, {"method": "reap", "router": "fitted", "reconstruction": "full"}], ids=["auto", "reap"])
def test_few_tokens_never_make_a_block_worse(tmp_path, compression):
    run_job(tmp_path, 2, demo_job(tmp_path, sequences=8, length=64, **compression))
    layers = summary(tmp_path / "output.work")["reconstruction"]
    assert [layer["layer"] for layer in layers] == [0, 1, 2, 3]
    assert_never_worse(layers)


@pytest.mark.parametrize("method", ["hc-smoe", "reap"])
@pytest.mark.parametrize("name", ["glm4_moe_bf16_mtp", "glm4_moe_f32_groups", "deepseek_v3_bf16_yarn"])
def test_routers_with_correction_biases(golden, tmp_path, name, method):
    """Rows and biases are fitted, exported in their own types, and what transformers computes with them is what was measured."""
    case = golden(name)
    run_job(tmp_path, 2, case.job(tmp_path / "output", method=method, reconstruction="full", router="fitted"))
    layers = summary(tmp_path / "output.work")["reconstruction"]
    assert [layer["layer"] for layer in layers] == case.moe_layers
    assert_never_worse(layers)
    for layer in layers:
        print(f"layer {layer['layer']}: {layer['start_error']:.4f}", ", ".join(
            f"{step['step']} {step['error']:.4f}{'' if step['kept'] else ' (undone)'}" for step in layer["steps"]))  # fmt: skip
    routers = [step["kept"] for layer in layers for step in layer["steps"] if step["step"].startswith("router")]
    assert any(routers) and all(layer["error"] < layer["start_error"] for layer in layers)

    original, found = reference.read_tensors(case.model), reference.read_tensors(tmp_path / "output")
    biases = [tensor for tensor in found if tensor.endswith("e_score_correction_bias")]
    assert len(biases) == len(case.moe_layers) and not any("layers.3." in tensor for tensor in found)
    for tensor in biases:
        assert found[tensor].shape == (case.kept,) and found[tensor].dtype == original[tensor].dtype == torch.float32
    ours = forward_logits(tmp_path / "output", case.ids_file, tmp_path, "float32")
    assert relative_error(ours, reference.logits(reference.load_model(tmp_path / "output"), case.array("ids"))) <= 1e-4


REFUSED = {
    "plan with auto": ("plan", AUTO, ["method auto", "hcsmoe_dist run"]),
    "auto without reconstruction": ("run", {"method": "auto", "reconstruction": "none"}, ["method auto", "allowed with it: full"]),
    "auto with routers alone": ("run", {"method": "auto", "reconstruction": "router"}, ["method auto", "allowed with it: full"]),
    "auto with a linkage": ("run", {"method": "auto", "linkage": "ward"}, ["compression.linkage", "method auto does not use it"]),
    "aliased rows": ("run", AUTO | {"router": "alias"}, ["compression.router: alias", "fitted"]),
    "soft clusters": ("run", {"method": "fuzzy-cmeans", "reconstruction": "full"}, ["compression.reconstruction", "fuzzy-cmeans", "none"]),
    "soft clusters, routers": ("run", {"method": "fuzzy-cmeans", "router": "fitted"}, ["compression.router", "fuzzy-cmeans does not use it"]),
    "no rounds": ("run", FULL | {"rounds": 0}, ["compression.rounds", "from 1 to 100"]),
}  # fmt: skip


@pytest.mark.parametrize("command, compression, words", REFUSED.values(), ids=REFUSED)
def test_impossible_combinations(golden, main_job, tmp_path, command, compression, words):
    name = "qwen2_moe_f32_sparse_step"
    if command == "plan":
        shutil.copytree(main_job(name)[1], tmp_path / "output.work")
        run_job(tmp_path, 1, golden(name).job(tmp_path / "output", **compression), "collect")
    result = run_job(tmp_path, 2, golden(name).job(tmp_path / "output", **compression), command, expect=2)
    assert all(word in said(result) for word in words), said(result)
    assert not (tmp_path / "output").exists()


def test_plans_that_need_tokens(golden, main_job, tmp_path):
    """Neither measured without a checkpoint, nor applied on other text or on none."""
    name = "qwen2_moe_f32_sparse_step"
    case, file = golden(name), tmp_path / "mine.json"
    plan = json.loads((main_job(name)[1] / "plan.json").read_text())
    (tmp_path / "text.jsonl").write_text('{"text": "The bright stone carries the queen."}\n' * 20)

    def refused(command, job, words):
        result = run_job(tmp_path, 2, job, command, arguments=["--plan", file], expect=2)
        assert all(word in said(result) for word in words), said(result)
        assert not (tmp_path / "output").exists()

    for recipe in (FITTED, {"reconstruction": "router"}, {"reconstruction": "full"}):
        file.write_text(json.dumps(plan | {"recipe": plan["recipe"] | recipe}))
        evaluation = {"evaluation": {"perplexity": str(tmp_path / "text.jsonl"), "length": 32}}
        refused("evaluate", case.job(tmp_path / "output") | evaluation, ["mine.json", "evaluate --plan", "hcsmoe_dist apply"])

    job = case.job(tmp_path / "output")
    ids = case.array("ids")
    np.save(tmp_path / "ids.npy", (ids + 1) % 1024)
    other = job["calibration"] | {"files": [str(tmp_path / "ids.npy")]}
    refused("apply", job | {"calibration": other}, ["other calibration text", "name the same"])
    refused("apply", {key: job[key] for key in job if key != "calibration"}, ["mine.json", "calibration.files", "calibration tokens"])
    refused("apply", job | {"calibration": job["calibration"] | {"files": [str(tmp_path / "gone.npy")]}}, ["gone.npy"])
