"""Every method on the demo model: collected once, then a plan and an output for each, by --set alone."""

import json
import shutil

import numpy as np
import pytest
import reference
from checkpoints import DEMO_MODEL
from conftest import digests, run_job

KEPT = 6
PRUNING = ["f-prune", "s-prune", "o-prune", "reap", "ean", "random"]
VARIANTS = {
    "hc-smoe": [],
    "hc-smoe-logits": ["method=hc-smoe", "feature=router_logits", "metric=cosine", "linkage=complete"],
    "hc-smoe-tokens": ["feature=expert_output_tokens"],
    "hc-smoe-weights": ["feature=weight", "metric=cosine", "linkage=ward"],
    "hc-smoe-cka": ["feature=cka", "linkage=complete"],
    "hc-smoe-capped": ["method=hc-smoe", "max_cluster_size=4", "linkage=ward"],
    "hc-smoe-protected": ["method=hc-smoe", "protect.top=2"],
    "kmeans": ["method=kmeans"],
    "kmeans-random": ["method=kmeans", "init=random", "seed=7", "metric=cosine"],
    "fuzzy-cmeans": ["method=fuzzy-cmeans"],
    "fuzzy-cmeans-protected": ["method=fuzzy-cmeans", "metric=cosine", "protect=[5]"],
    "m-smoe": ["method=m-smoe"],
    "dek": ["method=dek"],
    "dek-weights": ["method=dek", "feature=weight_cka", "max_cluster_size=4", "merge=frequency"],
    **{method: [f"method={method}"] for method in PRUNING},
    "reap-protected": ["method=reap", "protect=[3, 9]"],
    "o-prune-protected": ["method=o-prune", "protect=[3, 9]"],
}  # fmt: skip


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """(configuration, work folder with statistics)"""
    folder = tmp_path_factory.mktemp("methods")
    ids = folder / "ids.npy"
    np.save(ids, np.random.default_rng(5).integers(0, 1024, (4, 64), dtype=np.int32))
    config = {
        "model": str(DEMO_MODEL),
        "work": str(folder / "work"),
        "calibration": {"files": [str(ids)], "sequences": 4, "length": 64},
        "compression": {"method": "hc-smoe", "experts": KEPT},
        "device": {"dtype": "float32"},
    }
    run_job(folder, 1, config, "collect", arguments=["--all"])
    return config, folder / "work"


@pytest.mark.parametrize("variant", VARIANTS)
def test_plan_and_apply(collected, tmp_path, variant):
    config, statistics = collected
    before = digests(statistics / "statistics")
    work = tmp_path / "work"
    shutil.copytree(statistics, work)
    config = config | {"work": str(work), "output": str(tmp_path / "output")}
    sets = [f"compression.{setting}" for setting in VARIANTS[variant]]
    run_job(tmp_path, 1, config, "plan", sets=sets)
    run_job(tmp_path, 2, config, "apply", sets=sets)
    assert digests(work / "statistics") == before, "nothing was collected again"

    plan = json.loads((work / "plan.json").read_text())
    recipe = json.loads((work / "run.json").read_text())["recipe"]
    assert recipe == plan["recipe"]
    for setting in VARIANTS[variant]:
        key, value = setting.split("=")
        if "." not in key and key != "protect":
            assert str(recipe[key]) == value
    assert all(len(layer["clusters"]) == KEPT for layer in plan["layers"])
    dropped = [len(layer["dropped"]) for layer in plan["layers"]]
    assert dropped == [16 - KEPT if recipe["method"] in PRUNING else 0] * len(dropped)
    assert all(layer.get("soft", False) == (recipe["method"] == "fuzzy-cmeans") for layer in plan["layers"])
    if variant in ("dek", "dek-weights"):
        assert (recipe["merge"], recipe["router"]) == ("frequency" if variant == "dek-weights" else "average", "average")
    if variant in ("hc-smoe-capped", "dek-weights"):
        assert all(len(cluster["members"]) <= 4 for layer in plan["layers"] for cluster in layer["clusters"])
    if variant in ("reap-protected", "o-prune-protected"):
        assert all({3, 9} <= {cluster["dominant"] for cluster in layer["clusters"]} for layer in plan["layers"])

    original, found = reference.read_tensors(DEMO_MODEL), reference.read_tensors(tmp_path / "output")
    expected = reference.merge_tensors(original, {layer["layer"]: layer["clusters"] for layer in plan["layers"]})
    assert set(found) == set(expected)
    assert all(found[name].equal(expected[name]) for name in expected)
    if recipe["method"] in PRUNING:
        check_copies(original, found, plan)
    logits = reference.logits(reference.load_model(tmp_path / "output"), np.arange(32)[None])
    assert logits.isfinite().all()


def check_copies(original, found, plan):
    """Expert k of the output is the k-th kept one, byte for byte, and so is its router row."""
    for layer in plan["layers"]:
        prefix = f"model.layers.{layer['layer']}.mlp"
        for k, cluster in enumerate(layer["clusters"]):
            (expert,) = cluster["members"]
            for part in ("gate_proj", "up_proj", "down_proj"):
                source = original[f"{prefix}.experts.{expert}.{part}.weight"]
                assert found[f"{prefix}.experts.{k}.{part}.weight"].equal(source)
            assert found[f"{prefix}.gate.weight"][k].equal(original[f"{prefix}.gate.weight"][expert])


@pytest.mark.parametrize(
    "sets, words",
    [
        (["method=kmeans", "feature=router_logits"], ["kmeans cannot use router_logits", "expert_output"]),
        (["method=kmeans", "feature=cka"], ["kmeans cannot use cka", "expert_output"]),
        (["method=dek", "metric=cosine"], ["method dek does not use it", "hc-smoe"]),
        (["method=fuzzy-cmeans", "merge=average"], ["method fuzzy-cmeans does not use it"]),
        (["method=o-prune", "protect.top=7"], ["6 experts are to be kept, and 7 are protected"]),
        (["method=reap", "linkage=ward"], ["method reap does not use it", "hc-smoe"]),
        (["max_cluster_size=2"], ["16 experts do not fit in 6 clusters of at most 2", "3 or more"]),
        (["method=f-prune", "protect.top=7"], ["6 experts are to be kept, and 7 are protected"]),
        (["protect=[16]"], ["has no expert 16 to protect", "from 0 to 15"]),
    ],
)
def test_impossible_combinations(collected, tmp_path, sets, words):
    config, _ = collected
    result = run_job(tmp_path, 1, config, "plan", sets=[f"compression.{setting}" for setting in sets], expect=2)
    for word in words:
        assert word in result.stdout + result.stderr


def test_an_output_can_be_made_by_run(collected, tmp_path):
    """`run` plans each layer inside the sweep: the same plan."""
    config, statistics = collected
    result = {}
    for name, work in (("fresh", tmp_path / "fresh"), ("again", tmp_path / "again")):
        if name == "again":
            shutil.copytree(statistics, work)
        config = config | {"work": str(work), "output": str(tmp_path / f"{name}_output")}
        run_job(tmp_path, 2, config, "run", sets=["compression.method=kmeans", "compression.init=random"])
        result[name] = (json.loads((work / "plan.json").read_text()), digests(tmp_path / f"{name}_output"))
    assert result["fresh"] == result["again"]
