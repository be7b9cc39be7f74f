"""The steps of reconstruction against plain float64 PyTorch (tests/golden/reconstruction_reference.py) on small blocks, and their bytes on
several ranks and threads."""
import json

import numpy as np
import pytest
import torch

from conftest import BUILD, need, run_program

import reconstruction_reference as reference

SEQUENCES, LENGTH, D, F, E = 20, 48, 12, 10, 6
CLUSTERS = [[0, 3], [1], [2, 4, 5]]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def make_case(seed, renormalise, top_k=2, sigmoid=False, length=LENGTH, D=D):
    """A random block, its tokens and a compressed block that is merged from it."""
    draw = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64).float().double()  # the values that the program reads
    x = random(SEQUENCES * length, D)
    experts = [[random(F, D) * 0.5, random(F, D) * 0.5, random(D, F) * 0.5] for _ in range(E)]
    rows = random(E, D) * 0.7
    correction = random(E) * 0.1 if sigmoid else None
    y = reference.routed(x, experts, rows, top_k, renormalise, correction)
    gates = reference.gates(x, rows, top_k, renormalise, correction)
    count = (gates > 0).sum(0).double()
    weights = [[p.float().double() for p in reference.merged(x, experts, count, c)] for c in CLUSTERS]
    start = reference.mean_rows(rows, count, CLUSTERS).float().double()
    held = torch.arange(SEQUENCES).repeat_interleave(length) % 5 == 4
    return dict(x=x, y=y.float().double(), held=held, original=rows.float().double(), weights=weights, rows=start, top_k=top_k,
                renormalise=renormalise, gates=gates, correction=correction,
                biases=torch.stack([correction[c].mean() for c in CLUSTERS]).float().double() if sigmoid else None)


def run_case(folder, case, steps, ranks=1, threads=1):
    folder.mkdir(exist_ok=True)
    clusters = [{"members": c, "weights": [1 / len(c)] * len(c)} for c in CLUSTERS]
    biases = {} if case["biases"] is None else {"correction": {"original": case["correction"].tolist(), "rows": case["biases"].tolist()}}
    (folder / "case.json").write_text(json.dumps(biases | {
        "sequences": SEQUENCES, "length": len(case["x"]) // SEQUENCES, "top_k": case["top_k"], "renormalise": case["renormalise"], "scale": 1.0,
        "threads": threads, "steps": steps, "plan": {"layer": 0, "experts": E, "clusters": clusters}}))
    arrays = {"input": case["x"], "target": case["y"], "original": case["original"], "rows": case["rows"]}
    for i, name in enumerate(("gate", "up", "down")):
        arrays[name] = torch.stack([w[i] for w in case["weights"]])
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values.float().contiguous().numpy())
    done = run_program(["mpirun", "-np", ranks, need(BUILD / "reconstruct_cases"), folder], timeout=120)
    assert done.returncode == 0, done.stderr
    return {name: np.load(folder / f"out_{name}.npy") for name in ("rows", "biases", "gate", "up", "down")} | {"error": float(done.stdout)}


def largest_difference(ours, theirs):
    """Relative to the largest value."""
    theirs = np.asarray(theirs, dtype=np.float64)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def compare(ours, weights=None, rows=None, tolerance=1e-5):
    found = {}
    if rows is not None:
        found["rows"] = largest_difference(ours["rows"], rows)
    for i, name in enumerate(("gate", "up", "down") if weights is not None else ()):
        found[name] = largest_difference(ours[name], torch.stack([w[i] for w in weights]))
    print({k: f"{v:.1e}" for k, v in found.items()})
    assert all(value < tolerance for value in found.values()), found


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_rows_by_least_squares(tmp_path, seed, renormalise):
    case = make_case(seed, renormalise)
    train = ~case["held"]
    x, prior = case["x"][train], case["rows"]
    logits = x @ case["original"].T
    target = torch.stack([logits[:, c].logsumexp(1) for c in CLUSTERS], 1)
    rows = prior + torch.cholesky_solve(x.T @ (target - x @ prior.T), reference.ridge_cholesky(x.T @ x, 1e-3)).T
    compare(run_case(tmp_path, case, ["least squares"]), rows=rows)


@pytest.mark.parametrize("renormalise", [False, True])
def test_rows_by_cross_entropy_reach_the_minimum(tmp_path, renormalise):
    """Both L-BFGS end at the minimum of a convex function; the value is compared, and the rows more loosely."""
    case = make_case(2, renormalise)
    train = ~case["held"]
    x = case["x"][train]
    logits = x @ case["original"].T
    share = torch.stack([(case["gates"][train] if renormalise else logits.softmax(-1))[:, c].sum(1) for c in CLUSTERS], 1)
    share = share / share.sum(1, keepdim=True)
    start = case["rows"]

    def loss(rows):
        return (-(share * (x @ rows.T).log_softmax(-1)).sum(-1).mean() + 1e-4 * x.pow(2).mean() * (rows - start).pow(2).sum()).item()
    rows = start.clone().requires_grad_(True)
    with torch.enable_grad():
        optimiser = torch.optim.LBFGS([rows], max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

        def closure():
            optimiser.zero_grad()
            value = -(share * (x @ rows.T).log_softmax(-1)).sum(-1).mean() + 1e-4 * x.pow(2).mean() * (rows - start).pow(2).sum()
            value.backward()
            return value
        optimiser.step(closure)
    ours = run_case(tmp_path, case, ["cross entropy"])
    best, found, before = loss(rows.detach()), loss(torch.from_numpy(ours["rows"])), loss(start)
    print(f"start {before:.6f}, minimum {best:.6f}, ours {found:.6f}")
    assert found - best < 1e-3 * (before - best)
    assert found < before


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("seed", [3, 4])
def test_rows_by_output_error(tmp_path, seed, renormalise):
    case = make_case(seed, renormalise)
    rows = reference.router_step(case["x"], case["y"], case["held"], case["weights"], case["rows"], case["top_k"], renormalise)
    assert (rows - case["rows"]).abs().max() > 0.01, "a case in which the step is undone shows nothing"
    compare(run_case(tmp_path, case, ["output error"]), rows=rows, tolerance=1e-4)  # 60 steps of Adam from float32 gradients


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("seed", [10, 11])
def test_sigmoid_rows_by_least_squares(tmp_path, seed, renormalise):
    case = make_case(seed, renormalise, sigmoid=True)
    train = ~case["held"]
    x, prior = case["x"][train], case["rows"]
    logits = x @ case["original"].T
    target = reference.any_member_fires(logits, CLUSTERS)
    assert torch.allclose(target.sigmoid()[:, 0], 1 - (1 - logits[:, 0].sigmoid()) * (1 - logits[:, 3].sigmoid()))
    assert torch.allclose(target[:, 1], logits[:, 1]), "a cluster of one has its member's logit"
    rows = prior + torch.cholesky_solve(x.T @ (target - x @ prior.T), reference.ridge_cholesky(x.T @ x, 1e-3)).T
    compare(run_case(tmp_path, case, ["least squares"]), rows=rows)


def sigmoid_share(case, renormalise):
    """Of the clusters of a token [T, K]: of weights after top-k, or each cluster's probability."""
    if not renormalise:
        return reference.any_member_fires(case["x"] @ case["original"].T, CLUSTERS).sigmoid()
    share = torch.stack([case["gates"][:, c].sum(1) for c in CLUSTERS], 1)
    return share / share.sum(1, keepdim=True)


@pytest.mark.parametrize("renormalise", [False, True])
def test_sigmoid_rows_by_cross_entropy_reach_a_minimum(tmp_path, renormalise):
    case = make_case(12, renormalise, sigmoid=True)
    train = ~case["held"]
    x, start, share = case["x"][train], case["rows"], sigmoid_share(case, renormalise)[train]

    def loss(rows):
        z, pull = x @ rows.T, 1e-4 * x.pow(2).mean() * (rows - start).pow(2).sum()
        if not renormalise:
            return torch.nn.functional.binary_cross_entropy_with_logits(z, share) + pull
        score = z.sigmoid()
        return -(share * (score / score.sum(-1, keepdim=True)).log()).sum(-1).mean() + pull
    rows = start.clone().requires_grad_(True)
    with torch.enable_grad():
        optimiser = torch.optim.LBFGS([rows], max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

        def closure():
            optimiser.zero_grad()
            value = loss(rows)
            value.backward()
            return value
        optimiser.step(closure)
    ours = run_case(tmp_path, case, ["cross entropy"])
    best, found, before = loss(rows.detach()).item(), loss(torch.from_numpy(ours["rows"])).item(), loss(start).item()
    print(f"start {before:.6f}, minimum {best:.6f}, ours {found:.6f}")
    assert found - best < 1e-2 * (before - best)
    assert found < before


@pytest.mark.parametrize("top_k", [1, 2])
def test_matched_biases(tmp_path, top_k):
    case = make_case(13, True, top_k, sigmoid=True)
    train = ~case["held"]
    x, chosen = case["x"][train], case["gates"][train] > 0
    biases = reference.matched_biases(x, chosen, CLUSTERS, case["rows"], top_k, case["biases"])
    ours = torch.from_numpy(run_case(tmp_path, case, ["biases"])["biases"]).double()
    assert (ours - biases).abs().max() < 1e-3, "a token may be counted elsewhere"
    wanted = torch.stack([chosen[:, c].any(1) for c in CLUSTERS], 1).double().mean(0)
    share = (wanted / wanted.sum() * top_k).clamp(max=1)
    distance = lambda correction: ((reference.gates(x, case["rows"], top_k, True, correction) > 0).double().mean(0) - share).abs().max().item()
    before, after = distance(case["biases"]), distance(ours)
    print(f"frequencies, largest distance {before:.4f} -> {after:.4f}")
    assert after < 0.01 and after < before


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("seed", [14, 15])
def test_sigmoid_rows_by_output_error(tmp_path, seed, renormalise):
    case = make_case(seed, renormalise, sigmoid=True)
    rows = reference.router_step(case["x"], case["y"], case["held"], case["weights"], case["rows"], case["top_k"], renormalise,
                                 correction=case["biases"])
    assert (rows - case["rows"]).abs().max() > 0.01, "a case in which the step is undone shows nothing"
    compare(run_case(tmp_path, case, ["output error"]), rows=rows, tolerance=1e-4)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("step, shape", [("down", {}), ("experts", {}), ("experts", {"length": 300}), ("down", {"D": 600})],
                         ids=["down", "experts", "experts, sampled tokens", "down, sampled outputs"])
def test_experts(tmp_path, seed, renormalise, step, shape):
    case = make_case(seed, renormalise, **shape)
    weights = reference.visit(case["x"], case["y"], case["held"], case["weights"], case["rows"], case["top_k"], renormalise, step == "experts")
    moved = max((new[2] - old[2]).abs().max().item() for new, old in zip(weights, case["weights"]))
    assert moved > 0.01
    if step == "experts":
        assert all((new[0] - old[0]).abs().max() > 1e-3 for new, old in zip(weights, case["weights"])), "a step was undone: it shows nothing"
    ours = run_case(tmp_path, case, [step])
    compare(ours, weights=weights)
    error = reference.block_error(case["x"][case["held"]], case["y"][case["held"]], weights, case["rows"], case["top_k"], renormalise)
    assert ours["error"] == pytest.approx(error, rel=1e-5)


def test_scale(tmp_path):
    """A target a million times smaller gives the same fit, a million times smaller: nothing depends on the scale."""
    case = make_case(7, False)
    small = dict(case, y=case["y"] * 2.0**-20, weights=[[g, u, d * 2.0**-20] for g, u, d in case["weights"]])
    ours, tiny = run_case(tmp_path / "a", case, ["experts"]), run_case(tmp_path / "b", small, ["experts"])
    assert tiny["error"] == pytest.approx(ours["error"], rel=1e-4)
    assert largest_difference(tiny["down"] * 2.0**20, ours["down"]) < 1e-4


@pytest.mark.parametrize("sigmoid", [False, True])
def test_bytes_do_not_depend_on_ranks_and_threads(tmp_path, sigmoid):
    case = make_case(8, sigmoid, sigmoid=sigmoid)
    steps = ["least squares", "cross entropy", *(["biases"] if sigmoid else []), "down", "output error", "experts"]
    first = run_case(tmp_path / "first", case, steps)
    for ranks, threads in ((1, 2), (2, 1), (3, 2), (4, 1)):
        other = run_case(tmp_path / f"{ranks}_{threads}", case, steps, ranks, threads)
        for name in first:
            assert np.array_equal(first[name], other[name]), f"{name} on {ranks} ranks x {threads} threads"
