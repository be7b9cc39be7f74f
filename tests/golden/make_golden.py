"""Makes every checkpoint of checkpoints.py and the golden values that the program is compared with:

    FOLDER/NAME/model/                    the checkpoint
    FOLDER/NAME/ids.npy                   int32 [sequences, length]
    FOLDER/NAME/logits_float32.npy        of the model computed in float32, [sequences, length, V]
    FOLDER/NAME/logits_bfloat16.npy       of the model in bfloat16 throughout, as transformers runs it
    FOLDER/NAME/statistics.safetensors    layer.N.NAME, by the names of include/hcsmoe/statistics.h
    FOLDER/NAME/golden.json               experts, kept, moe layers; trees and clusters of every linkage; clusters of the merged model
    FOLDER/NAME/merged/                   the checkpoint with K experts a layer
    FOLDER/NAME/merged_logits.npy         of it, in float32

    python make_golden.py FOLDER [NAME ...]
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import reference
import torch
from checkpoints import RECIPES, VOCABULARY, save_checkpoint
from safetensors.torch import save_file
from transformers.utils.logging import disable_progress_bar, set_verbosity_error


def make_ids(recipe, folder: Path) -> np.ndarray:
    ids = np.random.default_rng(recipe.seed).integers(0, VOCABULARY, (recipe.sequences, recipe.length), dtype=np.int32)
    np.save(folder / "ids.npy", ids)
    return ids


def cluster_layers(statistics: dict, recipe, top_k: int) -> dict:
    """layer -> {linkage: {tree, clusters of each K}}; insists that rounding of the features cannot change a cluster."""
    layers = {}
    for layer, sums in statistics.items():
        features = reference.mean_outputs(sums)
        noise = 1e-5 * np.abs(features).max() * np.random.default_rng(0).standard_normal(features.shape)
        layers[layer] = {}
        for method in reference.LINKAGES:
            tree, disturbed = reference.merge_tree(features, method), reference.merge_tree(features + noise, method)
            clusters = {}
            for count in range(top_k, len(features) + 1):
                clusters[count] = reference.clusters_of(tree, count)
                if clusters[count] != reference.clusters_of(disturbed, count):
                    raise RuntimeError(f"{recipe.name}: layer {layer}, {method}: clusters hang on rounding, choose another seed")
            layers[layer][method] = {"tree": tree.tolist(), "clusters": clusters}
    return layers


def merge_checkpoint(recipe, folder: Path, config: dict, statistics: dict, clustering: dict) -> dict:
    """Writes merged/ and returns its clusters a layer."""
    clusters = {}
    for layer, sums in statistics.items():
        clusters[layer] = []
        for members in clustering[layer]["average"]["clusters"][recipe.kept]:
            weights = reference.frequency_weights(members, sums["routed_count"])
            clusters[layer].append({"members": members, "weights": weights, "router_weights": weights})
    (folder / "merged").mkdir()
    merged = reference.merge_tensors(reference.model_tensors(folder / "model"), clusters)
    save_file(merged, folder / "merged" / "model.safetensors", metadata={"format": "pt"})
    merged_config = reference.merged_config(config, recipe.kept)
    (folder / "merged" / "config.json").write_text(json.dumps(merged_config, indent=2) + "\n")
    return clusters


def check_coverage(recipe, statistics: dict, margin: float):
    """What the comparison relies on: no near-ties in routing, uneven routing, and unused experts where they were asked for."""
    if margin < 2e-5:
        raise RuntimeError(f"{recipe.name}: routing margin {margin:.1e} is within rounding, choose another seed")
    for layer, sums in statistics.items():
        counts = sums["routed_count"]
        unused = [expert for expert in recipe.unused_experts if counts[expert] != 0]
        if unused or counts.max() < 2 * counts.min():
            raise RuntimeError(f"{recipe.name}: layer {layer}: counts {counts.tolist()} are too even, or experts {unused} are used")


def make(recipe, folder: Path):
    started = time.time()
    folder.mkdir(parents=True)
    save_checkpoint(recipe, folder / "model")
    config = reference.read_config(folder / "model")
    ids = make_ids(recipe, folder)
    model = reference.load_model(folder / "model", torch.float32)
    np.save(folder / "logits_float32.npy", reference.logits(model, ids).numpy())
    np.save(folder / "logits_bfloat16.npy", reference.logits(reference.load_model(folder / "model", torch.bfloat16), ids).numpy())

    statistics, margin = reference.model_statistics(model, ids, config)
    check_coverage(recipe, statistics, margin)
    save_file({f"layer.{layer}.{name}": value for layer, sums in statistics.items() for name, value in sums.items()},
              folder / "statistics.safetensors")  # fmt: skip
    clustering = cluster_layers(statistics, recipe, config["num_experts_per_tok"])
    clusters = merge_checkpoint(recipe, folder, config, statistics, clustering)
    merged_logits = reference.logits(reference.load_model(folder / "merged"), ids)
    np.save(folder / "merged_logits.npy", merged_logits.numpy())
    golden = {
        "family": recipe.family,
        "experts": config[reference.EXPERT_COUNT_KEYS[recipe.family]],
        "top_k": config["num_experts_per_tok"],
        "kept": recipe.kept,
        "moe_layers": list(statistics),
        "clusters": clusters,
        "clustering": clustering,
    }
    (folder / "golden.json").write_text(json.dumps(golden))
    shards = len(list((folder / "model").glob("*.safetensors")))
    print(f"{recipe.name}: {shards} files, routing margin {margin:.1e}, {time.time() - started:.1f} s", flush=True)


def make_all(folder: Path, names=()):
    torch.set_num_threads(1)  # the same sums whatever the machine
    disable_progress_bar()
    set_verbosity_error()  # it warns of layers behind the last, which it leaves out
    unknown = set(names) - {recipe.name for recipe in RECIPES}
    if unknown:
        raise SystemExit(f"no such checkpoint: {', '.join(sorted(unknown))}; there are {', '.join(r.name for r in RECIPES)}")
    for recipe in RECIPES:
        if not names or recipe.name in names:
            make(recipe, Path(folder) / recipe.name)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    make_all(Path(sys.argv[1]), sys.argv[2:])
