"""Plans against plain NumPy and SciPy references: the clusters, kept experts and weights of every method, on random statistics.

plan_cases (in the folder that the environment variable HCSMOE_BUILD names) answers all cases in one run. Random statistics have no ties
in distances; counts have many, and the rule for them (the smaller index) is the references' too. The references know nothing of how the
program computes: distances between clusters are taken from their definition, k-means is a dozen lines of NumPy.
"""
import itertools
import json
import math
import os
import pathlib
import subprocess

import numpy as np
import pytest
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import cdist, pdist, squareform

LINKAGES = ["single", "complete", "average", "ward"]
METRICS = ["euclidean", "cosine"]
PRUNING = ["f-prune", "s-prune", "o-prune", "reap", "ean", "random"]
ALL_SETS = 20_000  # of o-prune: the most sets that it tries them all
MASK = 2**64 - 1
TRIED = []  # how many sets o-prune had to choose from, in the reference
STUCK = []  # how many clusters too many there were where no pair fitted, in the reference


def statistics_of(random, experts):
    """Experts in a few noisy groups, some of them never used, tokens so few that counts tie. In two dimensions at least: on a line all cosines tie."""
    columns, tokens = int(random.integers(2, 24)), int(random.integers(1, 60))
    groups = random.standard_normal((max(1, experts // 3), columns))
    outputs = tokens * (groups[random.integers(0, len(groups), experts)] + 0.5 * random.standard_normal((experts, columns)))
    logits = random.standard_normal((200, experts)) @ (np.eye(experts) + 0.5 * random.standard_normal((experts, experts)))
    counts = random.integers(0, tokens + 1, experts)
    norms = counts * random.uniform(0.5, 2, experts)
    sample = int(random.integers(6, 16))
    token_outputs = (outputs / tokens)[:, None] + 0.3 * random.standard_normal((experts, sample, columns))  # [E, S, columns]
    weights = random.standard_normal((experts, 6, 5)) + groups[:, :1][random.integers(0, len(groups), experts)][:, None]
    upper = np.triu_indices(experts)
    return {
        "layer": int(random.integers(0, 60)),
        "tokens": tokens,
        "routed_count": counts,
        "router_probability_sum": random.uniform(0, tokens, experts),
        "output_sum": outputs,
        "routed_output_norm_sum": norms,
        "weighted_output_norm_sum": norms * random.uniform(0, 1, experts),
        "router_logit_gram": logits.T @ logits,
        "sample_logits": logits[:sample].astype(np.float32),
        "token_output_gram": (token_outputs.transpose(1, 0, 2) @ token_outputs.transpose(1, 2, 0))[:, upper[0], upper[1]].astype(np.float32),
        "output_cka": all_cka(token_outputs),
        "weight_gram": weights.reshape(experts, -1) @ weights.reshape(experts, -1).T,
        "weight_cka": all_cka(weights),
        "routing": routing_of(random, experts, tokens),
    }


def routing_of(random, experts, tokens):
    """Half of them with sigmoid scores and correction biases, some of these with groups."""
    rule = {"top_k": int(random.integers(1, 5)), "renormalise": bool(random.integers(2)), "scale": float(random.choice([1, 2.5]))}
    random = np.random.default_rng(1000 * experts + tokens)  # the other cases' draws do not hang on how many there are here
    if random.integers(2):
        return rule
    sizes = [size for size in range(2, experts + 1) if experts % size == 0]
    groups = experts // int(random.choice(sizes)) if sizes else 1
    fewest = -(-rule["top_k"] * groups // experts)  # that hold top_k experts
    top_groups = int(random.integers(fewest, groups + 1)) if fewest <= groups else groups
    return rule | {"correction": (0.2 * random.standard_normal(experts)).astype(np.float32).tolist(), "groups": groups, "top_groups": top_groups}


def all_cka(features):
    """Linear CKA of features [E, samples, columns]."""
    centred = features - features.mean(1, keepdims=True)
    kernels = (centred @ centred.transpose(0, 2, 1)).reshape(len(features), -1)
    products = kernels @ kernels.T
    return np.clip(products / np.sqrt(np.outer(products.diagonal(), products.diagonal())), 0, 1)


def square_of_gram(gram):
    values, vectors = np.linalg.eigh(gram)
    points = vectors * np.sqrt(np.maximum(values, 0))  # as good as the vectors: the same products
    return points


def answers(cases, folder):
    program = pathlib.Path(os.environ.get("HCSMOE_BUILD", "build")) / "plan_cases"
    assert program.exists(), f"{program} is not there: build it, and set HCSMOE_BUILD to the build folder"
    plain = {np.ndarray: lambda value: value.tolist()}
    lines = [json.dumps(statistics | {"recipe": recipe}, default=lambda value: plain[type(value)](value)) for statistics, recipe in cases]
    (folder / "cases").write_text("".join(line + "\n" for line in lines))
    subprocess.run([program, folder / "cases", folder / "answers"], check=True)
    found = [json.loads(line) for line in (folder / "answers").read_text().splitlines()]
    assert len(found) == len(cases)
    return found


def split_mix(state):
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draws(seed, layer, experts):
    return [split_mix(split_mix(split_mix(seed) ^ layer) ^ expert) for expert in range(experts)]


def best(scores, candidates, count):
    return sorted(sorted(candidates, key=lambda e: (-scores[e], e))[:count])


def per_use(statistics, name):
    counts = statistics["routed_count"]
    return np.divide(statistics[name], counts, out=np.zeros(len(counts)), where=counts > 0).tolist()


def scores_of(statistics, recipe):
    return {
        "f-prune": lambda: statistics["routed_count"].tolist(),
        "s-prune": lambda: statistics["router_probability_sum"].tolist(),
        "reap": lambda: per_use(statistics, "weighted_output_norm_sum"),
        "ean": lambda: statistics["routed_output_norm_sum"].tolist(),
        "random": lambda: draws(recipe["seed"], statistics["layer"], len(statistics["routed_count"])),
    }[recipe["method"]]()


def cosine_of_logits(statistics):
    gram = statistics["router_logit_gram"]
    return gram / np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))


def full_grams(statistics):
    """token_output_gram as [S, E, E]."""
    experts = len(statistics["routed_count"])
    upper = np.triu_indices(experts)
    full = np.zeros((len(statistics["token_output_gram"]), experts, experts))
    full[:, upper[0], upper[1]] = full[:, upper[1], upper[0]] = statistics["token_output_gram"]
    return full


def distances_of(statistics, recipe):
    feature = recipe["feature"]
    if feature == "expert_output":
        return squareform(pdist(statistics["output_sum"] / statistics["tokens"], recipe["metric"]))
    if feature in ("cka", "weight_cka"):
        return 1 - statistics["output_cka" if feature == "cka" else "weight_cka"]
    if feature == "expert_output_tokens":
        gram = full_grams(statistics).sum(0)
    else:
        gram = statistics["router_logit_gram" if feature == "router_logits" else "weight_gram"]
    points = square_of_gram(gram)
    return cdist(points, points, recipe["metric"])


def routed(logits, rule, left):
    """[S, E] routing weights of a router that has only the rows `left`."""
    some = logits[:, left].astype(np.float64)
    if "correction" in rule:
        scores = 1 / (1 + np.exp(-some))
        choosers = scores + np.array(rule["correction"])[left]
        if len(left) == logits.shape[1] and rule["groups"] > 1:  # fewer experts have no groups
            grouped = choosers.reshape(len(some), rule["groups"], -1)
            values = np.sort(grouped, axis=2)[:, :, -2:].sum(2)
            outside = np.argsort(-values, axis=1, kind="stable")[:, rule["top_groups"] :]
            grouped[np.arange(len(some))[:, None], outside] = -np.inf
    else:
        scores, choosers = np.exp(some - some.max(1, keepdims=True)), some
        scores /= scores.sum(1, keepdims=True)
    weights = np.zeros(logits.shape)
    for token, row in enumerate(scores):
        best_rows = np.argsort(-choosers[token], kind="stable")[: rule["top_k"]]
        chosen = row[best_rows]
        if rule["renormalise"]:
            chosen = chosen / chosen.sum()
        weights[token, np.array(left)[best_rows]] = chosen * rule["scale"]
    return weights


def o_prune(statistics, recipe, protect, rest, count, found):
    """The kept experts, by the error of every set of `count` experts, or of sets by lot. Several sets may keep all that the tokens were routed
    to: then `found`, if it is as good as the best."""
    logits, rule, grams = statistics["sample_logits"], statistics["routing"], full_grams(statistics)
    original = routed(logits, rule, list(range(logits.shape[1])))
    if math.comb(len(rest), count) <= ALL_SETS:
        sets = [sorted([*protect, *chosen]) for chosen in itertools.combinations(rest, count)]
    else:
        start = split_mix(split_mix(recipe["seed"]) ^ statistics["layer"])
        sets = []
        for number in range(recipe["candidates"]):
            lot = split_mix(start ^ number)
            scores = [split_mix(lot ^ expert) for expert in range(logits.shape[1])]
            sets.append(sorted([*protect, *best(scores, rest, count)]))
    errors = []
    for left in sets:
        difference = original - routed(logits, rule, left)
        errors.append(np.einsum("se,sef,sf->", difference, grams, difference))
    TRIED.append(len(sets))
    scale = np.einsum("se,sef,sf->", original, grams, original)
    as_good = [left for left, error in zip(sets, errors) if error <= min(errors) * (1 + 1e-9) + 1e-12 * scale]
    return found if found in as_good else as_good[0]


def fuzzy_cmeans(points, first):
    """Memberships [E, K]."""
    centres, memberships = points[first], None
    for _ in range(1000):
        square = ((points[:, None] - centres[None]) ** 2).sum(-1)  # [E, K]
        on = square == 0
        now = np.where(on.any(1, keepdims=True), on, 1 / np.where(on, 1, square))
        now = now / now.sum(1, keepdims=True)
        if memberships is not None and np.abs(now - memberships).max() <= 1e-9:
            return now
        memberships = now
        centres = (now**2).T @ points / (now**2).sum(0)[:, None]
    return memberships


def between(square, a, b, rule):
    """The distance of two clusters, by the definition of the linkage."""
    part = square[np.ix_(a, b)]
    if rule != "ward":
        return {"single": np.min, "complete": np.max, "average": np.mean}[rule](part)
    inner_a, inner_b = np.sum(square[np.ix_(a, a)] ** 2) / 2, np.sum(square[np.ix_(b, b)] ** 2) / 2
    energy = np.mean(part**2) - inner_a / len(a) ** 2 - inner_b / len(b) ** 2
    return np.sqrt(max(0, 2 * len(a) * len(b) / (len(a) + len(b)) * energy))


def capped(square, count, cap, rule):
    clusters = [[i] for i in range(len(square))]
    while len(clusters) > count:
        pairs = [(a, b) for a, b in itertools.combinations(clusters, 2) if len(a) + len(b) <= cap]
        if not pairs:
            break
        a, b = min(pairs, key=lambda pair: between(square, *pair, rule))
        clusters = sorted([c for c in clusters if c is not a and c is not b] + [sorted(a + b)])
    if len(clusters) > count:
        STUCK.append(len(clusters) - count)
    while len(clusters) > count:
        smallest = min(clusters, key=len)
        clusters.remove(smallest)
        for expert in smallest:
            target = min((c for c in clusters if len(c) < cap), key=lambda c: between(square, [expert], c, rule))
            target.append(expert)
            target.sort()
            clusters.sort()
    return clusters


def kmeans(points, first):
    centres, labels = points[first], None
    for _ in range(300):
        square = ((points[:, None] - centres[None]) ** 2).sum(-1)  # [E, K]
        now, own = square.argmin(1), square.min(1)
        for k in range(len(first)):
            if np.any(now == k):
                continue
            movable = np.bincount(now, minlength=len(first))[now] > 1
            moved = np.where(movable, own, -1).argmax()
            now[moved], own[moved] = k, 0
        if labels is not None and np.array_equal(now, labels):
            break
        labels, centres = now, np.stack([points[now == k].mean(0) for k in range(len(first))])
    return sorted(np.flatnonzero(labels == k).tolist() for k in range(len(first)))


def farthest_first(points, count):
    chosen = [int(((points - points.mean(0)) ** 2).sum(1).argmin())]
    while len(chosen) < count:
        nearest = ((points[:, None] - points[chosen][None]) ** 2).sum(-1).min(1)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


def mean_points(statistics, recipe, rest):
    points = statistics["output_sum"][rest] / statistics["tokens"]
    return points / np.linalg.norm(points, axis=1, keepdims=True) if recipe["metric"] == "cosine" else points


def first_centres(statistics, recipe, rest, count, points):
    if recipe["init"] == "farthest":
        return farthest_first(points, count)
    return [rest.index(e) for e in best(draws(recipe["seed"], statistics["layer"], len(statistics["routed_count"])), rest, count)]


def m_smoe(statistics, rest, count):
    dominants = best(statistics["routed_count"], rest, count)
    cosine = cosine_of_logits(statistics)
    groups = {dominant: [dominant] for dominant in dominants}
    for expert in set(rest) - set(dominants):
        groups[max(dominants, key=lambda d: (cosine[expert, d], -d))].append(expert)
    return [sorted(group) for group in groups.values()]


def grouped(statistics, recipe, rest, count):
    """Clusters of the experts `rest`."""
    if recipe["method"] == "m-smoe":
        return m_smoe(statistics, rest, count)
    if recipe["method"] == "kmeans":
        points = mean_points(statistics, recipe, rest)
        labels = kmeans(points, first_centres(statistics, recipe, rest, count, points))
    elif recipe["method"] == "dek" and not recipe["max_cluster_size"]:
        labels = united(distances_of(statistics, recipe)[np.ix_(rest, rest)], count)
    else:
        square = distances_of(statistics, recipe)[np.ix_(rest, rest)]
        if recipe["max_cluster_size"]:
            labels = capped(square, count, recipe["max_cluster_size"], "single" if recipe["method"] == "dek" else recipe["linkage"])
        elif len(rest) == 1:
            labels = [[0]]
        else:
            flat = cut_tree(linkage(squareform(square, checks=False), recipe["linkage"]), count)[:, 0]
            labels = [np.flatnonzero(flat == k).tolist() for k in range(count)]
    return [[rest[i] for i in cluster] for cluster in labels]


def united(distances, count):
    """DEK: the most similar pair of experts in different groups unites the groups."""
    group = list(range(len(distances)))
    pairs = sorted((distances[pair], pair) for pair in itertools.combinations(range(len(distances)), 2))
    for _, (a, b) in pairs:
        if len(set(group)) == count:
            break
        group = [group[a] if g == group[b] else g for g in group]
    return [[e for e, g in enumerate(group) if g == number] for number in dict.fromkeys(group)]


def weights(members, counts, rule, dominant):
    used = [int(counts[e]) for e in members]
    if rule in ("dominant", "representative"):
        return [float(e == dominant) for e in members]
    if rule == "average" or sum(used) == 0:
        return [1 / len(members)] * len(members)
    return [count / sum(used) for count in used]


def reference(statistics, recipe, found):
    """{clusters, dropped} of plan.json."""
    counts = statistics["routed_count"]
    everyone = range(len(counts))
    protect = recipe["protect"]
    if isinstance(protect, dict):
        protect = best(per_use(statistics, "routed_output_norm_sum"), everyone, protect["top"])
    rest = [e for e in everyone if e not in protect]
    count = recipe["experts"] - len(protect)
    if recipe["method"] == "o-prune":
        members = [[e] for e in o_prune(statistics, recipe, protect, rest, count, [cluster["dominant"] for cluster in found["clusters"]])]
    elif recipe["method"] in PRUNING:
        kept = sorted([*protect, *best(scores_of(statistics, recipe), rest, count)])
        members = [[e] for e in kept]
    else:
        members = sorted([[e] for e in protect] + grouped(statistics, recipe, rest, count))
    clusters = []
    for cluster in members:
        dominant = max(cluster, key=lambda e: (counts[e], -e))
        clusters.append({
            "members": cluster,
            "weights": weights(cluster, counts, recipe["merge"], dominant),
            "router_weights": weights(cluster, counts, recipe["router"], dominant),
            "dominant": dominant,
        })  # fmt: skip
    return {"clusters": clusters, "dropped": sorted(set(everyone) - {e for cluster in members for e in cluster})}


def random_recipe(random, experts, **fixed):
    recipe = {
        "experts": int(random.integers(1, experts + 1)),
        "feature": "expert_output",
        "metric": "euclidean",
        "linkage": "average",
        "merge": str(random.choice(["frequency", "average", "dominant"])),
        "router": str(random.choice(["frequency", "average", "representative"])),
        "init": "farthest",
        "seed": int(random.integers(0, 2**63)),
        "max_cluster_size": 0,
        "candidates": 30,
        "protect": [],
    }
    return recipe | fixed


def least_for_o_prune(statistics, recipe):
    if recipe["method"] == "o-prune":
        recipe["experts"] = max(recipe["experts"], statistics["routing"]["top_k"])


VARIANTS = [
    *[
        {"method": "hc-smoe", "feature": feature, "metric": metric, "linkage": rule}
        for feature in ("expert_output", "expert_output_tokens", "router_logits", "weight")
        for metric in METRICS
        for rule in LINKAGES
    ],
    *[{"method": "kmeans", "metric": metric, "init": init} for metric in METRICS for init in ("farthest", "random")],
    *[{"method": "hc-smoe", "feature": feature, "linkage": rule} for feature in ("cka", "weight_cka") for rule in ("complete", "average")],
    *[{"method": "dek", "feature": feature} for feature in ("cka", "weight_cka")],
    {"method": "m-smoe"},
    *[{"method": method} for method in PRUNING],
]


def check(cases, folder):
    for (statistics, recipe), found in zip(cases, answers(cases, folder)):
        assert "error" not in found, (recipe, found)
        expected = reference(statistics, recipe, found)
        assert found["layer"] == statistics["layer"] and found["experts"] == len(statistics["routed_count"])
        assert {key: found[key] for key in expected} == expected, recipe


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.values()))
def test_every_method(tmp_path, variant):
    """Weights are equal to the last bit: both sides divide whole numbers."""
    random = np.random.default_rng(1)
    cases = []
    for experts in (4, 5, 8, 15, 16, 60, 64):
        for _ in range(8):
            cases.append((statistics_of(random, experts), random_recipe(random, experts, **variant)))
            least_for_o_prune(*cases[-1])
    check(cases, tmp_path)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.values()))
def test_protected_experts(tmp_path, variant):
    random = np.random.default_rng(2)
    cases = []
    for experts in (4, 8, 15, 60):
        for _ in range(5):
            statistics = statistics_of(random, experts)
            recipe = random_recipe(random, experts, **variant)
            recipe["experts"] = int(random.integers(2, experts + 1))
            count = int(random.integers(0, recipe["experts"]))  # leaves a place for the others
            listed = sorted(random.choice(experts, count, replace=False).tolist())
            recipe["protect"] = {"top": count} if random.integers(2) else listed
            least_for_o_prune(statistics, recipe)
            cases.append((statistics, recipe))
    check(cases, tmp_path)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rule", LINKAGES)
def test_max_cluster_size(tmp_path, rule, metric):
    random = np.random.default_rng(3)
    cases = []
    for experts in (4, 7, 9, 15, 24):
        for turn in range(6):
            recipe = random_recipe(random, experts, method="hc-smoe", metric=metric, linkage=rule)
            if turn % 2:  # threes fill K clusters to the brim: pairs that were joined early leave no pair that fits
                recipe["experts"] = -(-experts // 3)
            least = -(-experts // recipe["experts"])
            recipe["max_cluster_size"] = least if turn % 2 else int(random.integers(least, least + 3))
            cases.append((statistics_of(random, experts), recipe))
    STUCK.clear()
    check(cases, tmp_path)
    assert len(STUCK) >= 3, "the fallback is not tested"
    for (_, recipe), found in zip(cases, answers(cases, tmp_path)):
        assert max(len(cluster["members"]) for cluster in found["clusters"]) <= recipe["max_cluster_size"]


def test_the_rules_for_ties_are_reached(tmp_path):
    """Counts of 0 to 2: nearly every choice is a tie."""
    random = np.random.default_rng(4)
    cases = []
    for variant in [{"method": "f-prune"}, {"method": "m-smoe"}, {"method": "hc-smoe"}]:
        for _ in range(20):
            statistics = statistics_of(random, 16)
            statistics["routed_count"] = random.integers(0, 3, 16)
            cases.append((statistics, random_recipe(random, 16, **variant)))
    check(cases, tmp_path)


def test_o_prune_tries_all_sets_and_sets_by_lot(tmp_path):
    random = np.random.default_rng(5)
    cases = []
    for experts, kept in ((8, 4), (8, 6), (12, 6), (16, 13), (20, 10), (60, 30)):
        for _ in range(3):
            statistics = statistics_of(random, experts)
            cases.append((statistics, random_recipe(random, experts, method="o-prune") | {"experts": kept}))
    TRIED.clear()
    check(cases, tmp_path)
    assert TRIED[0] == math.comb(8, 4) == 70 and TRIED[-1] == 30 and TRIED[9] == math.comb(16, 13)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("init", ["farthest", "random"])
def test_fuzzy_cmeans(tmp_path, metric, init):
    """Every expert in every cluster, weighted by its membership, and the router rows like the experts."""
    random = np.random.default_rng(6)
    cases = []
    for experts in (4, 8, 15, 60):
        for protected in (0, 1):
            statistics = statistics_of(random, experts)
            count = int(random.integers(2, experts))
            recipe = random_recipe(random, experts, method="fuzzy-cmeans", metric=metric, init=init) | {"experts": count}
            recipe["protect"] = [experts // 2] * protected
            cases.append((statistics, recipe))
    worst = 0
    for (statistics, recipe), found in zip(cases, answers(cases, tmp_path)):
        experts = len(statistics["routed_count"])
        rest = [e for e in range(experts) if e not in recipe["protect"]]
        points = mean_points(statistics, recipe, rest)
        count = recipe["experts"] - len(recipe["protect"])
        memberships = fuzzy_cmeans(points, first_centres(statistics, recipe, rest, count, points))
        expected = [np.eye(experts)[e] for e in recipe["protect"]]
        for column in (memberships / memberships.sum(0)).T:
            expected.append(np.zeros(experts))
            expected[-1][rest] = column
        assert found["soft"] is True and found["dropped"] == [] and len(found["clusters"]) == recipe["experts"]
        ours = []
        for cluster in found["clusters"]:
            ours.append(np.zeros(experts))
            ours[-1][cluster["members"]] = cluster["weights"]
            assert cluster["router_weights"] == cluster["weights"]
            assert cluster["dominant"] == np.argmax(ours[-1]), "the member of the largest weight"
        # Clusters with the same smallest member have no order that both sides must share.
        distance = cdist(np.array(ours), np.array(expected))
        assert sorted(distance.argmin(1)) == list(range(len(expected))) or np.allclose(distance.min(1), 0, atol=1e-5)
        worst = max(worst, distance.min(1).max(), distance.min(0).max())
    print(f"largest error of memberships {worst:.1e}")
    assert worst < 1e-5
