"""The kernels of devices, in the whole program: tests/host_device.h is a device in host memory, on which any access to elements that is not
meant for devices is an error. Its results are held against those of the CPU's own kernels, and against the reference."""

import json

import h5py
import numpy as np
import pytest
from checkpoints import DEMO_MODEL
from conftest import BUILD, NAMES, ONE_A_FAMILY, job_digests, model_digests, need, relative_error, run_job, run_program, write_config
from test_main_job import read_plan

PROGRAM = BUILD / "hcsmoe_dist_on_host_device"
FORWARD_LOGITS = BUILD / "forward_logits_on_host_device"
FEATURES = {"float32": 1e-5, "bfloat16": 1e-2}


def run_on_device(folder, ranks: int, config, command=None, sets=(), arguments=(), timeout=300):
    file = write_config(folder, config)
    parts = ["mpirun", "-np", ranks, need(PROGRAM), *([command] if command else []), file]
    for override in ["device.threads=1", *sets]:
        parts += ["--set", override]
    result = run_program(parts + list(arguments), timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def statistics(work) -> dict:
    """file -> name -> values"""
    found = {}
    for file in sorted((work / "statistics").iterdir()):
        with h5py.File(file) as datasets:
            found[file.name] = {name: datasets[name][()] for name in datasets}
    return found


def labels(work) -> dict:
    return {layer: [cluster["members"] for cluster in plan["clusters"]] for layer, plan in read_plan(work).items()}


@pytest.mark.parametrize("name", NAMES)
def test_logits(golden, tmp_path, name):
    case = golden(name)
    out = tmp_path / "logits.npy"
    result = run_program([need(FORWARD_LOGITS), case.model, case.ids_file, out, "float32"], timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    error = relative_error(np.load(out), case.array("logits_float32"))
    print(f"{name}: float32 logits, largest error {error:.2e} of the scale")
    assert error <= 1e-4


def norm_of_difference(found, expected) -> float:
    """As a share of the norm of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "name, dtype",
    [pytest.param(name, dtype, marks=[] if dtype == "float32" or name in ONE_A_FAMILY else pytest.mark.slow)
     for name in NAMES for dtype in FEATURES],
)  # fmt: skip
def test_features_labels_and_shards_are_the_cpus(golden, tmp_path, name, dtype):
    """In bfloat16, a token near a tie may go to another expert: features and labels must still be the same."""
    sets = [f"device.dtype={dtype}", "calibration.sample=100", "compression.reconstruction=none"]
    for where, run in (("cpu", run_job), ("device", run_on_device)):
        job = golden(name).job(tmp_path / where / "output")
        run(tmp_path / where, 1, job, "collect", sets=sets, arguments=["--all"])
        run(tmp_path / where, 1, job, sets=sets)
    works = [tmp_path / where / "output.work" for where in ("cpu", "device")]
    worst, features = {}, 0
    expected, found = map(statistics, works)
    assert found.keys() == expected.keys()
    for file, datasets in expected.items():
        assert found[file].keys() == datasets.keys()
        features = max(features, norm_of_difference(found[file]["output_sum"], datasets["output_sum"]))
        for dataset, values in datasets.items():
            worst[dataset] = max(worst.get(dataset, 0), relative_error(found[file][dataset], values))
    print(f"{name} {dtype}: features {features:.1e}; largest differences, of the scale:",
          ", ".join(f"{dataset} {error:.1e}" for dataset, error in worst.items()))  # fmt: skip
    assert features <= FEATURES[dtype]
    assert labels(works[1]) == labels(works[0])
    if dtype == "float32":
        assert max(worst.values()) <= 1e-5 and worst["routed_count"] == 0
        # Merges are the same bits: plans differ in the rounding of a height at most.
        assert model_digests(tmp_path / "device" / "output") == model_digests(tmp_path / "cpu" / "output")


@pytest.mark.parametrize("name", ONE_A_FAMILY)
@pytest.mark.parametrize("dtype", FEATURES)
def test_ranks_do_not_matter(golden, tmp_path, name, dtype):
    sets = [f"device.dtype={dtype}", "calibration.sample=100", "compression.reconstruction=none"]
    expected = None
    for ranks in (1, 2, 3, 6) if name == ONE_A_FAMILY[0] else (1, 3):  # 6: some ranks have no sequence
        folder = tmp_path / str(ranks)
        job = golden(name).job(folder / "output")
        run_on_device(folder, ranks, job, "collect", arguments=["--all"], sets=sets)
        run_on_device(folder, ranks, job, sets=sets)
        found = job_digests(folder / "output", folder / "output.work")
        expected = expected or found
        assert found.keys() == expected.keys()
        assert not [file for file in expected if found[file] != expected[file]], f"{ranks} ranks"


def test_evaluation(golden, tmp_path):
    """Perplexity, divergence and tasks of the original, of a plan that aliases its router rows, and of aligned merges."""
    case = golden(ONE_A_FAMILY[0])
    text = DEMO_MODEL.parent / "data" / "validation.jsonl"
    few = tmp_path / "text.jsonl"
    few.write_text("\n".join(text.read_text().splitlines()[:20]) + "\n")
    task = DEMO_MODEL.parent / "tasks" / "arith.jsonl"
    questions = tmp_path / "arith.jsonl"
    questions.write_text("\n".join(task.read_text().splitlines()[:20]) + "\n")
    found = {}
    for where, run in (("cpu", run_job), ("device", run_on_device)):
        folder = tmp_path / where
        job = case.job(folder / "output", merge="frequency-aligned", router="alias")
        job["evaluation"] = {"perplexity": [str(few)], "tasks": [str(questions)], "length": 90}
        run(folder, 2, job, "collect", sets=["calibration.sample=100"])
        run(folder, 2, job, "plan")
        run(folder, 2, job, "evaluate", arguments=["--plan", folder / "output.work" / "plan.json"])
        found[where] = json.loads((folder / "output.work" / "evaluation.json").read_text())["models"]
    assert len(found["cpu"]) == len(found["device"]) == 2
    for expected, ours in zip(found["cpu"], found["device"]):
        (a,), (b,) = expected["perplexity"], ours["perplexity"]
        assert b["perplexity"] == pytest.approx(a["perplexity"], rel=1e-5) and b["tokens"] == a["tokens"]
        assert a["perplexity"] > 1
        assert ours["tasks"] == expected["tasks"], "the same answers"
    divergence = [models[1]["perplexity"][0]["kl_divergence"]["value"] for models in found.values()]
    assert divergence[1] == pytest.approx(divergence[0], rel=1e-4) and divergence[0] > 0.01


def test_reconstruction_takes_its_tokens_from_the_device(golden, tmp_path):
    errors = []
    for where, run in (("cpu", run_job), ("device", run_on_device)):
        folder = tmp_path / where
        run(folder, 2, golden(ONE_A_FAMILY[1]).job(folder / "output", reconstruction="full", propagate="compressed", rounds=1))
        report = json.loads((folder / "output.work" / "run.json").read_text())["reconstruction"]
        errors.append([layer["error"] for layer in report])
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
