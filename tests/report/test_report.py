"""`report`: the numbers of the page, recomputed from the files of the work folder; what it says when something is missing; hostile names."""

import json
import re
import shutil
import subprocess

import h5py
import numpy as np
import pytest
import report_data as reference
from conftest import BUILD, ONE_A_FAMILY, need, run_job
from safetensors.torch import load_file

CASES = {
    "hc_smoe": {},
    "hc_smoe_logits_cosine_ward": {"feature": "router_logits", "metric": "cosine", "linkage": "complete"},
    "hc_smoe_tokens_ward": {"feature": "expert_output_tokens", "linkage": "ward"},
    "hc_smoe_weight_cka": {"feature": "weight_cka", "linkage": "single"},
    "dek": {"method": "dek"},
    "kmeans": {"method": "kmeans"},
    "m_smoe": {"method": "m-smoe"},
    "fuzzy_cmeans": {"method": "fuzzy-cmeans"},
    "capped": {"max_cluster_size": 4},
    "reap": {"method": "reap"},
    "s_prune": {"method": "s-prune"},
    "o_prune": {"method": "o-prune", "candidates": 50},
}  # fmt: skip


@pytest.fixture(scope="module")
def collected(golden, tmp_path_factory):
    """A work folder with every statistic of a model whose router is a softmax: (golden checkpoint, configuration, work folder)."""
    case = golden("qwen2_moe_bf16")
    folder = tmp_path_factory.mktemp("collected")
    job = case.job(folder / "output") | {"work": str(folder / "work")}
    run_job(folder, 1, job, "collect", arguments=["--all"])
    return case, job, folder / "work"


def made(folder, collected, **compression) -> tuple:
    """Plans and reports anew. (plan.json, the page's data, its text)"""
    case, job, work = collected
    job = job | {"compression": {"method": "hc-smoe", "experts": case.kept} | compression}
    run_job(folder, 1, job, "plan")
    run_job(folder, 1, job, "report")
    page = work / "report.html"
    return json.loads((work / "plan.json").read_text()), reference.data_of(page), page.read_text()


def close(found, expected, digits=5):
    """As equal as numbers of five digits can be."""
    np.testing.assert_allclose(found, expected, rtol=0.6 * 10 ** (1 - digits), atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_numbers(collected, tmp_path, name):
    plan, data, _ = made(tmp_path, collected, **CASES[name])
    config, work = collected[0].config, collected[2]
    top_k, renormalise = config["num_experts_per_tok"], config["norm_topk_prob"]
    assert [layer["layer"] for layer in data["layers"]] == [layer["layer"] for layer in plan["layers"]]
    for planned, shown in zip(plan["layers"], data["layers"]):
        statistics, E, K = reference.statistics_of(work, planned["layer"]), planned["experts"], len(planned["clusters"])
        usage, members = statistics["routed_count"], [cluster["members"] for cluster in shown["clusters"]]
        assert sorted(expert for cluster in members for expert in cluster) + sorted(shown.get("dropped", [])) == list(range(E)) or "dropped" in shown
        if name != "fuzzy_cmeans":
            assert members == [cluster["members"] for cluster in planned["clusters"]]
            assert shown.get("dropped", []) == planned["dropped"]
        else:
            weights = np.zeros((K, E))
            for k, cluster in enumerate(planned["clusters"]):
                weights[k, cluster["members"]] = cluster["weights"]
            assert all(weights[:, e].argmax() == k for k in range(K) for e in members[k])

        # What is compared, and how far experts are from each other.
        feature, metric = shown["feature"], shown.get("metric")
        wanted = CASES[name].get("feature", "cka" if name == "dek" else "router_logits" if name == "m_smoe" else "expert_output")
        assert (feature, shown["compared_by_plan"]) == (wanted, not planned["dropped"])
        matrix = reference.distances(statistics, feature, metric)
        pairs = matrix[np.triu_indices(E, 1)]
        close([shown["distances"]["low"], shown["distances"]["high"]], [pairs.min(), pairs.max()])
        largest = np.abs(reference.shown_distances(shown) - matrix).max()
        assert largest <= (pairs.max() - pairs.min()) * (0.5 / 255 + 3e-5), "a byte a pair, rounded"

        # The tree, the order of experts, the cut.
        tree = reference.tree_of(matrix, shown["linkage"])
        close([merge[2] for merge in shown["tree"]], tree[:, 2])
        assert [merge[3] for merge in shown["tree"]] == tree[:, 3].tolist()
        has_tree = name.startswith("hc_smoe") or name == "dek"
        assert shown["tree_source"] == ("plan" if has_tree else "reference")
        if has_tree:
            assert members == reference.cut(tree, K)
            assert shown["linkage"] == ("single" if name == "dek" else CASES[name].get("linkage", "average"))
        if has_tree or planned["dropped"]:
            assert shown["order_of_tree"] and shown["order"] == reference.leaves(tree)
        else:
            assert not shown["order_of_tree"] and shown["order"] == [expert for cluster in members for expert in cluster]

        # Differences inside clusters, of every cut and of the plan.
        squared = metric != "euclidean"
        whole = reference.spread(list(range(E)), matrix, usage, squared)
        curve = [sum(reference.spread(cluster, matrix, usage, squared) for cluster in reference.cut(tree, k)) / whole for k in range(1, E + 1)]
        close(shown["spread"], curve)
        assert curve[0] == pytest.approx(1) and curve[-1] == 0
        assert shown.get("knee", 0) == reference.knee(curve)
        if planned["dropped"]:
            assert "cluster_spreads" not in shown
        else:
            close(shown["cluster_spreads"], [reference.spread(cluster, matrix, usage, squared) / whole if cluster else 0 for cluster in members])

        # Usage: collect --all has sampled the block's input, but nothing was made of the plan yet.
        assert shown["usage"] == usage.tolist() and not shown["usage_measured"]
        close(shown["usage_after"], [usage[cluster].sum() / usage.sum() for cluster in members])

        # Predicted error of the output.
        clusters = [(cluster["members"], cluster["weights"], cluster["router_weights"]) for cluster in planned["clusters"]]
        close(shown["output_error"], reference.output_error(statistics, clusters, top_k, renormalise), 4)
        swept = dict(shown["output_errors"])
        if name == "o_prune":
            assert list(swept) == [K]
        else:
            assert list(swept) == list(range(top_k, E + 1)) and swept[E] == pytest.approx(0, abs=1e-6)
        for k in swept if name == "hc_smoe" else []:
            cuts = [(cluster, *[reference.frequencies(usage[cluster])] * 2) for cluster in reference.cut(tree, k)]
            close(swept[k], reference.output_error(statistics, cuts, top_k, renormalise), 4)
        if planned["dropped"]:
            kept = dict(shown["kept_share"])
            close(kept[K], usage[[cluster[0] for cluster in members]].sum() / usage.sum())
            if name == "s_prune":
                best = np.argsort(-statistics["router_probability_sum"], kind="stable")
                close([kept[k] for k in sorted(kept)], [usage[best[:k]].sum() / usage.sum() for k in sorted(kept)])


def test_spread_is_that_of_vectors(collected, tmp_path):
    """For Euclidean distances: the weighted sum of squared distances to the cluster's weighted mean."""
    _, data, _ = made(tmp_path, collected)
    for layer in data["layers"]:
        statistics = reference.statistics_of(collected[2], layer["layer"])
        x, f = statistics["output_sum"] / statistics["tokens"], statistics["routed_count"].astype(float)
        inside = lambda m: (f[m, None] * (x[m] - np.average(x[m], axis=0, weights=f[m])) ** 2).sum() if f[m].sum() else 0.0  # noqa: E731
        expected = [inside(cluster["members"]) / inside(list(range(len(f)))) for cluster in layer["clusters"]]
        close(layer["cluster_spreads"], expected)


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_run_writes_it(golden, tmp_path, name):
    """Into the work folder and beside the weights, with what the run took; the new router's usage is measured on the sampled tokens."""
    case = golden(name)
    job = case.job(tmp_path / "output", merge="frequency-aligned")
    run_job(tmp_path, 2, job)
    work, output = tmp_path / "output.work", tmp_path / "output"
    page = (work / "report.html").read_text()
    assert page == (output / "report.html").read_text()
    assert str(tmp_path) not in page and str(case.model) not in page, "names of folders, not where they are"
    data, run = reference.data_of(work / "report.html"), json.loads((work / "run.json").read_text())
    assert data["model"]["bytes"] == run["bytes"]["model"] and data["model"]["output_bytes"] == run["bytes"]["output"]
    assert data["run"]["seconds"] == run["seconds"] and data["notes"] == []
    weights = {}
    for file in output.glob("*.safetensors"):
        weights |= {key: value.float().numpy() for key, value in load_file(file).items() if "gate" in key}
    for layer in data["layers"]:
        (router,) = [value for key, value in weights.items() if re.search(rf"layers\.{layer['layer']}\..*(mlp|moe)\.gate\.weight$", key)]
        with h5py.File(work / "statistics" / f"layer_{layer['layer']:04}.h5") as file:
            x = file["sample_input"][()]
        logits = x.astype(np.float64) @ router.astype(np.float64).T
        k = case.config["num_experts_per_tok"]
        biased = logits
        bias = [value for key, value in weights.items() if re.search(rf"layers\.{layer['layer']}\..*e_score_correction_bias$", key)]
        if bias:
            biased = 1 / (1 + np.exp(-logits)) + bias[0]
        chosen = np.argsort(-biased, axis=-1)[:, :k]
        counts = np.bincount(chosen.ravel(), minlength=len(router)) / chosen.size
        assert layer["usage_measured"]
        assert np.abs(np.array(layer["usage_after"]) - counts).max() < 2.5 / chosen.size, "ties of rounding aside"


def test_results_of_the_run(golden, tmp_path, collected):
    """Held-out errors, quality and candidates come from the files as they are; another plan's run is left out."""
    case = golden("qwen2_moe_bf16")
    text = tmp_path / "some <b>text&.txt"
    text.write_text("".join(chr(97 + i % 26) + (" " if i % 5 else "\n") for i in range(4000)))
    task = tmp_path / "task.jsonl"
    task.write_text("\n".join(json.dumps({"context": "a b", "choices": [" c", " d"], "answer": i % 2}) for i in range(6)))
    job = case.job(tmp_path / "output") | {"compression": {"experts": case.kept}, "evaluation": {"perplexity": [str(text)], "length": 32, "tasks": [str(task)]}}
    run_job(tmp_path, 1, job)
    work = tmp_path / "output.work"
    data, run, plan = reference.data_of(work / "report.html"), json.loads((work / "run.json").read_text()), json.loads((work / "plan.json").read_text())
    for shown, fitted, planned in zip(data["layers"], run["reconstruction"], plan["layers"]):
        close(shown["held_out"], [fitted["start_error"], fitted["error"]])
        assert [step["step"] for step in shown["steps"]] == [step["step"] for step in fitted["steps"]]
        assert shown["method"] == planned["method"]
        close([score["start_error"] for score in shown["scores"]], [score["start_error"] for score in planned["scores"]])
        assert [score["method"] for score in shown["scores"]] == [score["method"] for score in planned["scores"]]
    models = data["evaluation"]["models"]
    assert [model["perplexity"][0]["perplexity"] for model in models] == [model["perplexity"][0]["perplexity"] for model in run["evaluation"]["models"]]
    assert models[0]["perplexity"][0]["file"] == text.name
    assert any("Perplexity on some <b>text&.txt went from" in fact for fact in data["facts"])
    run_job(tmp_path, 1, job, "report")
    assert reference.data_of(work / "report.html") == data, "the command makes of the work folder what the run made"

    saved = json.loads((work / "run.json").read_text())
    (work / "run.json").write_text(json.dumps(saved | {"plan": "0" * 32}))
    run_job(tmp_path, 1, job, "report")
    other = reference.data_of(work / "report.html")
    assert "seconds" not in other["run"] and other["model"]["output_bytes"] is None and len(other["notes"]) == 1
    (work / "run.json").write_text(json.dumps(saved | {"plan": saved["plan"], "evaluation": {"models": [{}, 3]}}))
    result = run_job(tmp_path, 1, job, "report", expect=2)
    assert "run.json or evaluation.json is not as this version writes it" in result.stderr


def test_what_is_missing(collected, tmp_path):
    case, job, work = collected
    nothing = job | {"work": str(tmp_path / "nothing"), "output": str(tmp_path / "none")}
    result = run_job(tmp_path, 1, nothing, "report", expect=2)
    assert "no plan at" in result.stderr and "hcsmoe_dist run CONFIG" in result.stderr

    made(tmp_path, collected)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(work / "plan.json", bare / "plan.json")
    run_job(tmp_path, 1, nothing | {"work": str(bare)}, "report")
    data = reference.data_of(bare / "report.html")
    assert len(data["notes"]) == 1 and "No valid statistics of layers 0, 2" in data["notes"][0]
    assert all("distances" not in layer and "usage" not in layer and layer["clusters"] for layer in data["layers"])

    edited = json.loads((work / "plan.json").read_text())
    first = edited["layers"][0]["clusters"]
    first[0], first[1] = {"members": first[0]["members"][:1], "weights": [1]}, {
        "members": sorted(first[0]["members"][1:] + first[1]["members"]),
        "weights": [1 / (len(first[0]["members"]) - 1 + len(first[1]["members"]))] * (len(first[0]["members"]) - 1 + len(first[1]["members"])),
    }
    first.sort(key=lambda cluster: cluster["members"][0])
    (tmp_path / "edited.json").write_text(json.dumps(edited))
    run_job(tmp_path, 1, job, "report", arguments=["--plan", tmp_path / "edited.json"])
    layer = reference.data_of(work / "report.html")["layers"][0]
    if len(edited["layers"][0]["clusters"]) and layer["tree_source"] == "reference":
        assert layer["order"] == [expert for cluster in first for expert in cluster["members"]], "no cut of the tree: cluster by cluster"


def test_hostile_names(collected, tmp_path):
    """Names are text wherever they stand: no element, no script, no end of the data."""
    case, job, work = collected
    made(tmp_path, collected)
    model, bare = tmp_path / "<img src=x onerror=alert(1)>&\"'--><!--<script>\u2028", tmp_path / "work"
    shutil.copytree(case.model, model)
    shutil.copytree(work, bare)
    run_job(tmp_path, 1, job | {"model": str(model), "work": str(bare)}, "report")
    page = (bare / "report.html").read_text()
    data = reference.data_of(bare / "report.html")
    assert data["model"]["name"] == model.name
    assert "<img" not in page and "&lt;img src=x onerror=alert(1)&gt;&amp;" in page
    assert page.count("<script") == 2 and page.count("</script") == 2 and "<!--" not in page


@pytest.mark.parametrize("pruned", [0, 1])
def test_size(tmp_path, pruned):
    """60 layers of 256 experts, with every part that a report can have but sampled products."""
    page = tmp_path / "large.html"
    subprocess.run([need(BUILD / "report_of_size"), "60", "256", str(pruned), page], check=True, timeout=300)
    assert page.stat().st_size < 5_000_000
    data = reference.data_of(page)
    assert len(data["layers"]) == 60
    assert all(reference.shown_distances(layer).shape == (256, 256) for layer in data["layers"][::20])
