"""Merges that align units, through the whole program on the demo model: run, apply and evaluate agree, on any number of ranks and threads."""

import json
import shutil

import numpy as np
import pytest
import reference
from checkpoints import DEMO_MODEL
from conftest import digests, job_digests, run_job

MERGES = ["frequency-aligned", "average-aligned", "fix-dominant", "zipit"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A configuration without output, and the folder of `collect` for merges that align."""
    folder = tmp_path_factory.mktemp("aligned")
    ids = folder / "ids.npy"
    np.save(ids, np.random.default_rng(6).integers(0, 1024, (6, 64), dtype=np.int32))
    config = {
        "model": str(DEMO_MODEL),
        "work": str(folder / "work"),
        "calibration": {"files": [str(ids)], "sequences": 6, "length": 64, "sample": 200},
        "compression": {"method": "hc-smoe", "experts": 5, "merge": "frequency-aligned"},
        "device": {"dtype": "float32"},
        "evaluation": {"perplexity": [str(DEMO_MODEL.parent / "data" / "validation.jsonl")], "length": 64},
    }
    run_job(folder, 2, {key: config[key] for key in config if key != "evaluation"}, "collect")
    return config, folder / "work"


def with_folders(config, folder, merge):
    return config | {
        "work": str(folder / "work"),
        "output": str(folder / "output"),
        "compression": config["compression"] | {"merge": merge},
        "evaluation": {},
    }


@pytest.mark.parametrize("merge", MERGES)
def test_plan_and_apply_equal_run_on_any_ranks(job, tmp_path, merge):
    config, collected = job
    whole, steps = with_folders(config, tmp_path / "whole", merge), with_folders(config, tmp_path / "steps", merge)
    run_job(tmp_path, 1, whole, "run")
    shutil.copytree(collected, tmp_path / "steps" / "work")
    run_job(tmp_path, 1, steps, "plan")
    run_job(tmp_path, 3, steps, "apply", threads=2)
    expected, found = (job_digests(tmp_path / part / "output", tmp_path / part / "work") for part in ("whole", "steps"))
    assert found == expected

    plan = json.loads((tmp_path / "steps" / "work" / "plan.json").read_text())
    assert plan["recipe"]["merge"] == merge
    plain = reference.merge_tensors(reference.read_tensors(DEMO_MODEL), {layer["layer"]: layer["clusters"] for layer in plan["layers"]})
    ours = reference.read_tensors(tmp_path / "steps" / "output")
    assert set(ours) == set(plain)
    changed = [name for name in ours if not ours[name].equal(plain[name])]
    assert changed and all(".experts." in name for name in changed), "alignment moves units of merged experts, and nothing else"
    for layer in plan["layers"]:
        for k, cluster in enumerate(layer["clusters"]):
            alone = len(cluster["members"]) == 1
            parts = [name for name in changed if f"layers.{layer['layer']}.mlp.experts.{k}." in name]
            assert not (alone and parts)


def test_shards_of_another_merge_or_sample_are_not_reused(job, tmp_path):
    config, collected = job
    outputs = {}
    shutil.copytree(collected, tmp_path / "work")
    for merge in ("average", "average-aligned", "average"):
        job_config = with_folders(config, tmp_path, merge) | {"output": str(tmp_path / f"{len(outputs)}")}
        run_job(tmp_path, 1, job_config, "plan")
        run_job(tmp_path, 1, job_config, "apply")
        outputs[len(outputs)] = digests(tmp_path / f"{len(outputs)}")
    safetensors = [{name: digest for name, digest in outputs[i].items() if name.endswith(".safetensors")} for i in range(3)]
    assert safetensors[0] == safetensors[2] != safetensors[1]


def test_a_plan_is_evaluated_as_its_output_is(job, tmp_path):
    config, collected = job
    applied = with_folders(config, tmp_path, "zipit")
    shutil.copytree(collected, tmp_path / "work")
    run_job(tmp_path, 1, applied, "plan")
    run_job(tmp_path, 2, applied, "apply")
    evaluated = config | {"work": str(tmp_path / "work"), "compression": {}}
    run_job(tmp_path, 2, evaluated, "evaluate", arguments=["--plan", tmp_path / "work" / "plan.json"])
    models = json.loads((tmp_path / "work" / "evaluation.json").read_text())["models"]
    run_job(tmp_path, 1, evaluated | {"model": str(tmp_path / "output"), "work": str(tmp_path / "alone")}, "evaluate")
    output = json.loads((tmp_path / "alone" / "evaluation.json").read_text())["models"]
    assert models[-1]["perplexity"][0]["perplexity"] == output[-1]["perplexity"][0]["perplexity"]


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_without_sampled_tokens_the_message_says_how_to_collect_them(job, tmp_path, command):
    config, collected = job
    without = with_folders(config, tmp_path, "frequency")
    run_job(tmp_path, 1, without, "collect")
    run_job(tmp_path, 1, without, "plan")
    plan = json.loads((tmp_path / "work" / "plan.json").read_text())
    plan["recipe"]["merge"] = "fix-dominant"
    (tmp_path / "work" / "plan.json").write_text(json.dumps(plan))
    result = run_job(tmp_path, 2, with_folders(config, tmp_path, "fix-dominant"), command, expect=2)
    for word in ("sample_input", "fix-dominant", "hcsmoe_dist collect"):
        assert word in result.stdout + result.stderr
