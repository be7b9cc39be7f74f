"""inspect, collect, plan, apply, evaluate: each alone, one after another, and on a plan edited by hand."""

import copy
import json
import re
import shutil

import numpy as np
import pytest
import reference
from checkpoints import DEMO_MODEL
from conftest import ONE_A_FAMILY, PROGRAM, digests, job_digests, need, relative_error, run_job, run_program, write_config
from transformers import AutoTokenizer

FIRST = ONE_A_FAMILY[0]
VALIDATION = DEMO_MODEL.parent / "data" / "validation.jsonl"


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_inspect_says_what_run_will_do(golden, main_job, tmp_path, name):
    case = golden(name)
    result = run_program([need(PROGRAM), "inspect", write_config(tmp_path, case.job(tmp_path / "output"))], timeout=60)  # without mpirun
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    assert case.family in text
    assert re.search(rf"\b{case.experts}\b", text) and re.search(rf"\b{case.kept}\b", text)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"], "inspect is a dry run"


def test_inspect_estimates_the_cost(golden, tmp_path):
    case = golden(FIRST)
    config = write_config(tmp_path, case.job(tmp_path / "output"))
    rates = ["--machine", "ranks=2", "--machine", "read=1e-3", "--machine", "write=5e-4"]  # 1 MB/s and half of it
    result = run_program([need(PROGRAM), "inspect", config, *rates], timeout=60)
    assert result.returncode == 0 and "2 ranks of 312 TFLOP/s" in result.stdout and "limited by reading" in result.stdout
    size = sum(tensor.nbytes for tensor in reference.read_tensors(case.model).values())
    reading = float(re.search(r"reading ([\d.]+) (ms|s)", result.stdout)[1]) * (1e-3 if "ms" in re.search(r"reading [\d.]+ \w+", result.stdout)[0] else 1)
    assert abs(reading - size / 1e6) <= 0.01 * reading + 0.1
    wrong = run_program([need(PROGRAM), "inspect", config, "--machine", "disk=1"], timeout=60)
    assert wrong.returncode == 2 and "no rate 'disk'" in wrong.stderr and wrong.stdout == ""


def test_inspect_needs_neither_calibration_nor_output(golden, tmp_path):
    result = run_job(tmp_path, 2, {"model": str(golden(FIRST).model), "compression": {"experts": 3}}, "inspect")
    assert (result.stdout + result.stderr).count(golden(FIRST).family) < 10, "rank 0 alone speaks"


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_stages_one_by_one_equal_run(golden, main_job, tmp_path, name):
    job = golden(name).job(tmp_path / "output")
    work = tmp_path / "output.work"
    run_job(tmp_path, 2, job, "collect")
    assert not (work / "plan.json").exists()
    run_job(tmp_path, 1, job, "plan")
    assert (work / "plan.json").exists() and not (tmp_path / "output").exists()
    run_job(tmp_path, 3, job, "apply")
    assert job_digests(tmp_path / "output", work) == job_digests(*main_job(name))


@pytest.mark.parametrize("linkage", reference.LINKAGES)
def test_plan_again_from_the_same_statistics(golden, main_job, tmp_path, linkage):
    """Another K and linkage: no forward pass, so the calibration file may even be gone, and the statistics stay as they are."""
    case = golden(FIRST)
    work = tmp_path / "work"
    shutil.copytree(main_job(FIRST)[1], work)
    statistics = digests(work / "statistics")
    job = case.job(tmp_path / "output") | {"work": str(work)}
    for count in (case.top_k, case.experts - 1):
        run_job(tmp_path, 1, job, "plan", sets=[f"compression.experts={count}", f"compression.linkage={linkage}"])
        plan = json.loads((work / "plan.json").read_text())
        for layer in plan["layers"]:
            expected = case.clustering[str(layer["layer"])][linkage]
            assert [cluster["members"] for cluster in layer["clusters"]] == expected["clusters"][str(count)]
            assert relative_error([row[2] for row in layer["tree"]], [row[2] for row in expected["tree"]]) < 1e-5
    assert digests(work / "statistics") == statistics


def test_apply_after_another_plan_remakes_the_shards(golden, main_job, tmp_path):
    """The work folder of a finished job, another K: nothing stale may end in the output."""
    case = golden(FIRST)
    shutil.copytree(main_job(FIRST)[1], tmp_path / "output.work")
    job = case.job(tmp_path / "output", experts=case.kept + 1)
    run_job(tmp_path, 2, job, "plan")
    run_job(tmp_path, 2, job, "apply")
    fresh = tmp_path / "fresh"
    run_job(fresh, 1, case.job(fresh / "output", experts=case.kept + 1))
    assert digests(tmp_path / "output") == digests(fresh / "output")


def moved(plan: dict) -> dict:
    """An expert moved to another cluster and weighted by hand."""
    plan = copy.deepcopy(plan)
    for layer in plan["layers"]:
        source = next(cluster for cluster in layer["clusters"] if len(cluster["members"]) > 1)
        target = next(cluster for cluster in layer["clusters"] if cluster is not source)
        expert = source["members"].pop()
        target["members"] = sorted([*target["members"], expert])
        for cluster in (source, target):
            count = len(cluster["members"])
            cluster["weights"] = [0.75, 0.25] if count == 2 else [1 / count] * count
            if "router_weights" in cluster:
                cluster["router_weights"] = cluster["weights"]
            cluster["dominant"] = cluster["members"][0]
        layer["clusters"].sort(key=lambda cluster: cluster["members"][0])
        layer["tree"] = []
    return plan


def pruned(plan: dict) -> dict:
    """The first member of every cluster stays, the others are dropped."""
    plan = copy.deepcopy(plan)
    for layer in plan["layers"]:
        layer["dropped"] = sorted(member for cluster in layer["clusters"] for member in cluster["members"][1:])
        layer["clusters"] = [{"members": cluster["members"][:1], "weights": [1.0]} for cluster in layer["clusters"]]
        del layer["tree"]
    return plan


@pytest.mark.parametrize("edited", [moved, pruned])
@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_apply_a_plan_edited_by_hand(golden, main_job, tmp_path, name, edited):
    case = golden(name)
    plan = edited(json.loads((main_job(name)[1] / "plan.json").read_text()))
    (tmp_path / "mine.json").write_text(json.dumps(plan, indent=1))
    job = {"model": str(case.model), "output": str(tmp_path / "output")}  # the plan says all the rest
    run_job(tmp_path, 2, job, "apply", arguments=["--plan", tmp_path / "mine.json"])
    clusters = {layer["layer"]: layer["clusters"] for layer in plan["layers"]}
    for layer in clusters.values():
        for cluster in layer:
            cluster.setdefault("router_weights", cluster["weights"])
    expected = reference.merge_tensors(reference.model_tensors(case.model), clusters)
    found = reference.read_tensors(tmp_path / "output")
    assert set(found) == set(expected)
    assert all(found[tensor].equal(expected[tensor]) for tensor in expected)
    reference.logits(reference.load_model(tmp_path / "output"), case.array("ids")[:1])


def first_merged(plan):
    return next(cluster for cluster in plan["layers"][0]["clusters"] if len(cluster["members"]) > 1)


def expert_twice(plan):
    first_merged(plan)["members"][0] = first_merged(plan)["members"][1]


def expert_out_of_range(plan):
    first_merged(plan)["members"][-1] = 1000


def weights_do_not_sum_to_one(plan):
    first_merged(plan)["weights"][0] += 0.5


def weight_missing(plan):
    first_merged(plan)["weights"].pop()


def weight_is_text(plan):
    first_merged(plan)["weights"][0] = "half"


def layer_missing(plan):
    plan["layers"].pop()


def layer_not_of_the_model(plan):
    plan["layers"][0]["layer"] = 77


def expert_in_no_cluster(plan):
    plan["layers"][0]["experts"] += 1


def other_expert_count(plan):
    plan["layers"][0]["dropped"] = [plan["layers"][0]["experts"]]
    plan["layers"][0]["experts"] += 1
    plan["layers"][0]["tree"] = []


def other_format(plan):
    plan["format"] = "somebody-else/3"


def layers_with_different_counts(plan):
    """Splits one cluster of the first layer only."""
    cluster = first_merged(plan)
    plan["layers"][0]["clusters"].append(dict(cluster, members=[cluster["members"].pop()], weights=[1.0], router_weights=[1.0]))
    count = len(cluster["members"])
    cluster["weights"] = cluster["router_weights"] = [1 / count] * count
    cluster["dominant"] = cluster["members"][0]
    plan["layers"][0]["clusters"][-1]["dominant"] = plan["layers"][0]["clusters"][-1]["members"][0]
    plan["layers"][0]["clusters"].sort(key=lambda entry: entry["members"][0])


def everything_in_one(plan):
    for layer in plan["layers"]:
        members = list(range(layer["experts"]))
        weights = [1 / len(members)] * len(members)
        layer["clusters"] = [dict(members=members, weights=weights, router_weights=weights, dominant=0)]


BAD_EDITS = [
    (expert_twice, r"layer \d"),
    (expert_out_of_range, r"1000"),
    (weights_do_not_sum_to_one, r"weights.*(sum|add)"),
    (weight_missing, r"weights"),
    (weight_is_text, r"weights|number"),
    (layer_missing, r"layer \d"),
    (layer_not_of_the_model, r"77"),
    (expert_in_no_cluster, r"expert 5.*no cluster"),
    (other_expert_count, r"\b6 experts.*\b5\b"),
    (other_format, r"somebody-else/3|format"),
    (layers_with_different_counts, r"layer|experts|clusters"),
    (everything_in_one, r"top-?_?k|num_experts_per_tok"),
]


@pytest.mark.parametrize("edit, words", BAD_EDITS, ids=[edit.__name__ for edit, _ in BAD_EDITS])
def test_a_bad_edit_is_refused(golden, main_job, tmp_path, edit, words):
    plan = json.loads((main_job(FIRST)[1] / "plan.json").read_text())
    edit(plan)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(plan))
    result = run_job(tmp_path, 1, golden(FIRST).job(tmp_path / "output"), "apply", arguments=["--plan", file], expect=2)
    assert re.search(words, result.stderr, re.IGNORECASE | re.DOTALL) and "mine.json" in result.stderr, result.stderr
    assert not (tmp_path / "output").exists()


def test_a_plan_with_a_syntax_error_is_refused_with_its_place(golden, tmp_path):
    (tmp_path / "mine.json").write_text('{\n  "format": "hcsmoe-plan/1",\n  "layers": [,]\n}\n')
    result = run_job(tmp_path, 2, golden(FIRST).job(tmp_path / "output"), "apply", arguments=["--plan", tmp_path / "mine.json"], expect=2)
    assert re.search(r"mine\.json.*\b3\b", result.stderr), result.stderr


def text_stream(folder, documents: int):
    """A text file, and its ids as the reference tokenizer joins them: each document ended by EOS."""
    lines = VALIDATION.read_text().splitlines()[:documents]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    ids = []
    for line in lines:
        ids += [*tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return np.array(ids)


def perplexity_said(result) -> float:
    """In the last column of the model's line, with its standard error."""
    found = re.search(r"\bmodel .*  ([0-9.]+) ± [0-9.]+\n", result.stdout + result.stderr)
    assert found, result.stdout + result.stderr
    return float(found[1])


@pytest.mark.parametrize("name", [*ONE_A_FAMILY, "demo"])
def test_evaluate_perplexity(golden, tmp_path, name):
    model = DEMO_MODEL if name == "demo" else golden(name).model
    ids, length = text_stream(tmp_path, 20), 90
    assert len(ids) > 4 * length and len(ids) % length > 1, "several windows, and a shorter last one"
    expected, scored = reference.perplexity(reference.load_model(model), ids, length)
    values = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        job = {
            "model": str(model),
            "work": str(folder / "work"),
            "device": {"dtype": "float32"},
            "evaluation": {"perplexity": [str(tmp_path / "text.jsonl")], "length": length},
        }
        result = run_job(folder, ranks, job, "evaluate")
        said = perplexity_said(result)
        (entry,) = json.loads((folder / "work" / "evaluation.json").read_text())["models"]
        (measured,) = entry["perplexity"]
        values.append(measured["perplexity"])
        print(f"{name} on {ranks} ranks: perplexity {values[-1]} over {scored} tokens, transformers {expected}")
        assert measured["tokens"] == scored and measured["windows"] == -(-len(ids) // length)
        assert values[-1] == pytest.approx(expected, rel=1e-4) and said == pytest.approx(expected, rel=1e-2)
    assert values[0] == values[1]
