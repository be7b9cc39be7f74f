"""Reference arithmetic of block reconstruction (float64 capable), for comparison with the C++ on tiny blocks.

Shapes: T tokens, D hidden, F expert units, E experts, K kept. An expert is [gate F x D, up F x D, down D x F]. `held` is a bool[T]: sequence % 5 == 4.
Every function works in the dtype of its inputs; nothing is random.

A router has softmax scores, or, where `correction` [K] is given, sigmoid scores: chosen by score + correction, weighted by the score alone.
"""
import math
import torch
from scipy.optimize import linear_sum_assignment


def hidden(x, w):
    z = x @ w[0].T
    return z * z.sigmoid() * (x @ w[1].T)


def gates(x, rows, top_k, renormalise, correction=None):
    """Hard routing weights, zero where not chosen. [T, K]"""
    z = x @ rows.T
    p = z.softmax(-1) if correction is None else z.sigmoid()
    i = (p if correction is None else p + correction).topk(min(top_k, p.shape[1]), -1).indices
    w = p.gather(1, i)
    if renormalise:
        w = w / w.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter(1, i, w)


def routed(x, weights, rows, top_k, renormalise, correction=None):
    g = gates(x, rows, top_k, renormalise, correction)
    return sum(g[:, k, None] * (hidden(x, w) @ w[2].T) for k, w in enumerate(weights))


def block_error(x, y, weights, rows, top_k, renormalise):
    return ((y - routed(x, weights, rows, top_k, renormalise)).pow(2).sum() / y.pow(2).sum()).item()


def ridge_cholesky(m, relative):
    return torch.linalg.cholesky(m + relative * m.diagonal().mean() * torch.eye(len(m), dtype=m.dtype))


# ---------------------------------------------------------------- start: merged experts and rows
def aligned_order(x, lead, member):
    """order[i] = unit of `member` that goes to place i of `lead`."""
    a, b = hidden(x, lead), hidden(x, member)
    standard = lambda h: (h - h.mean(0)) / (h.std(0) + 1e-6)                     # unbiased standard deviation
    unit = lambda w: torch.nn.functional.normalize(torch.cat([w[0], w[1], w[2].T], 1), dim=1)
    score = standard(a).T @ standard(b) / len(x) + unit(lead) @ unit(member).T
    return torch.as_tensor(linear_sum_assignment(-score.numpy())[1])


def merged(x, experts, count, cluster, align=True):
    """Usage-weighted mean of a cluster's experts, units in the order of the most used member."""
    share = count[cluster] / count[cluster].sum() if count[cluster].sum() > 0 else torch.full((len(cluster),), 1 / len(cluster)).to(x)
    lead = cluster[int(count[cluster].argmax())]
    out = [torch.zeros_like(p) for p in experts[lead]]
    for s, e in zip(share.to(x), cluster):
        o = aligned_order(x, experts[lead], experts[e]) if align and e != lead else torch.arange(len(experts[e][0]))
        for q, p in enumerate((experts[e][0][o], experts[e][1][o], experts[e][2][:, o])):
            out[q] += s * p
    return out


def mean_rows(rows, count, clusters):
    share = [count[c] / count[c].sum() if count[c].sum() > 0 else torch.full((len(c),), 1 / len(c)) for c in clusters]
    return torch.stack([(s.to(rows)[:, None] * rows[c]).sum(0) for s, c in zip(share, clusters)])


def fitted_rows(x, logits, clusters, prior, target_gates=None, ridge=1e-3, iterations=60):
    """Least squares to log sum exp of the members' logits (ridge towards `prior`), then L-BFGS on the cross entropy from the summed
    member probabilities, or from `target_gates` [T, K] (aliased gates after top-k, where the router renormalises). x: training tokens."""
    target = torch.stack([logits[:, c].logsumexp(1) for c in clusters], 1)
    rows = prior + torch.cholesky_solve(x.T @ (target - x @ prior.T), ridge_cholesky(x.T @ x, ridge)).T
    share = torch.stack([logits.softmax(-1)[:, c].sum(1) for c in clusters], 1) if target_gates is None else target_gates
    start, rows = rows, rows.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([rows], max_iter=iterations, history_size=10, line_search_fn='strong_wolfe')

    def closure():
        optimiser.zero_grad()
        loss = -(share * (x @ rows.T).log_softmax(-1)).sum(-1).mean() + 1e-4 * x.pow(2).mean() * (rows - start).pow(2).sum()
        loss.backward()
        return loss
    with torch.enable_grad():
        optimiser.step(closure)
    return rows.detach()


def any_member_fires(logits, clusters):
    """Logit of 1 - prod(1 - sigmoid(z)) over the members. [T, K]"""
    none = torch.stack([torch.nn.functional.softplus(logits[:, c]).sum(1) for c in clusters], 1)
    return none + (-torch.expm1(-none)).log()


def matched_biases(x, chosen, clusters, rows, top_k, start, steps=60):
    """Correction biases with which each cluster is chosen as often, in proportion, as one of its members is: chosen bool[T, E]."""
    wanted = torch.stack([chosen[:, c].any(1) for c in clusters], 1).double().sum(0)
    share = (wanted / wanted.sum() * top_k).clamp(max=1)
    scores = (x @ rows.T).sigmoid()
    spread, bias = scores.std(correction=0), start.clone()
    for it in range(steps):
        best = (scores + bias).topk(top_k, -1).indices
        found = torch.zeros_like(scores).scatter(1, best, 1.0).mean(0)
        bias = bias - spread * (1 - it / steps) * (found - share)
    return bias


# ---------------------------------------------------------------- router step
def token_grams(x, y, weights):
    """G [T, K, K] and b [T, K] of a token sample; the block error is sum g'Gg - 2 g'b + |y|^2."""
    o = torch.stack([hidden(x, w) @ w[2].T for w in weights], 1)
    return o @ o.transpose(1, 2), (o @ y[:, :, None])[:, :, 0]


def soft_gates(x, rows, top_k, renormalise, tau, correction=None):
    z = x @ rows.T
    if correction is not None:
        p = z.sigmoid()
        if top_k < z.shape[1]:
            value = p + correction
            top = value.topk(top_k + 1, -1).values
            p = p * ((value - ((top[:, -2] + top[:, -1]) / 2)[:, None]) / (tau / 4)).sigmoid()
        return p / p.sum(-1, keepdim=True) if renormalise else p
    if top_k >= z.shape[1]:
        return z.softmax(-1)
    top = z.topk(top_k + 1, -1).values
    chosen = ((z - ((top[:, -2] + top[:, -1]) / 2)[:, None]) / tau).sigmoid()    # the gradient goes through the threshold too
    if renormalise:
        p = (z - z.max(-1, keepdim=True).values).exp() * chosen
        return p / p.sum(-1, keepdim=True)
    return z.softmax(-1) * chosen


def gram_loss(g, grams, right, squares):
    return (((g[:, None] @ grams)[:, 0] * g).sum() - 2 * (g * right).sum() + squares.sum()) / squares.sum()


def router_step(x, y, held, weights, rows, top_k, renormalise, steps=60, tau=0.5, check=20, correction=None):
    """Full-batch Adam on the block error through soft gates whose temperature falls to zero; the best checked rows by HARD held-out error."""
    grams, right = token_grams(x, y, weights)
    squares = y.pow(2).sum(-1)
    train = ~held
    held_loss = lambda r: gram_loss(gates(x[held], r, top_k, renormalise, correction), grams[held], right[held], squares[held]).item()
    best, best_rows = held_loss(rows), rows
    rate = rows.std().item() / 20
    r = rows.clone()
    first, second = torch.zeros_like(r), torch.zeros_like(r)
    for it in range(steps):
        r.requires_grad_(True)
        with torch.enable_grad():
            g = soft_gates(x[train], r, top_k, renormalise, tau * (1 - it / steps) + 1e-3, correction)
            grad, = torch.autograd.grad(gram_loss(g, grams[train], right[train], squares[train]), r)
        r = r.detach()
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad * grad
        lr = rate * (0.5 * (1 + math.cos(math.pi * it / steps)) + 0.02)
        r = r - lr * (first / (1 - 0.9 ** (it + 1))) / ((second / (1 - 0.999 ** (it + 1))).sqrt() + 1e-8)
        if (it + 1) % check == 0 or it + 1 == steps:
            loss = held_loss(r)
            if loss < best:
                best, best_rows = loss, r.clone()
    return best_rows


# ---------------------------------------------------------------- expert step
def inner_step(x, g, r, held, w, position, damping=0.03, lengths=(1.0, 0.5), fewest_sampled=1024):
    """Gauss-Newton for gate and up of one expert. x [n, D], g [n, 1], r [n, D]: the tokens routed to it, their gates, the block's residual.
    One preconditioned step, the preconditioner and the length from a sample of the training tokens (`position` [n] of each token among all),
    judged by the true (nonlinear) held-out error. Returns the weights or None."""
    gate, up, down = w
    units = len(gate)
    z, u = x @ gate.T, x @ up.T
    sigma = z.sigmoid()
    s = z * sigma
    train = ~held
    xt = x[train]
    slope_gate = (g * sigma * (1 + z * (1 - sigma)) * u)[train]                   # d(g h)/d z
    slope_up = (g * s)[train]                                                    # d(g h)/d u
    back = r[train] @ down
    gradient = torch.cat([(back * slope_gate).T @ xt, (back * slope_up).T @ xt])  # [2F, D]

    every = min(max(int(train.sum()) // fewest_sampled, 1), 2)
    some = position[train] % every == 0
    q = torch.cat([slope_gate, slope_up], 1)[some]
    left = ridge_cholesky((down.T @ down).repeat(2, 2) * (q.T @ q), damping)      # [2F, 2F]
    weighted = (xt * g[train])[some]
    right = ridge_cholesky(weighted.T @ weighted / g[train][some].pow(2).sum(), damping)  # [D, D]
    direction = torch.cholesky_solve(torch.cholesky_solve(gradient, left).T.contiguous(), right).T
    change = (slope_gate[some] * (xt[some] @ direction[:units].T) + slope_up[some] * (xt[some] @ direction[units:].T)) @ down.T
    along = (change * r[train][some]).sum()
    if not along > 0:
        return None
    step = along / change.pow(2).sum() * direction

    before = (s * u)[held]
    for length in lengths:
        candidate = [gate + length * step[:units], up + length * step[units:], down]
        error = (r[held] - g[held] * ((hidden(x[held], candidate) - before) @ down.T)).pow(2).sum().item()
        if error < r[held].pow(2).sum().item():
            return candidate
    return None


def down_step(a, r, held, grid=(1e-3, 1e-2, 1e-1), most_outputs=256):
    """Ridge least squares for the change of one down projection. a = g h [n, F], r [n, D]. Evenly spaced outputs choose the ridge, all of them
    whether the step stays. Returns the change [F, D] or None."""
    t = a[~held]
    gram, right = t.T @ t, t.T @ r[~held]
    if not gram.diagonal().mean() > 0:
        return None
    some = slice(None, None, -(-r.shape[1] // most_outputs))
    steps = [torch.cholesky_solve(right, ridge_cholesky(gram, relative)) for relative in grid]
    error = lambda step, of: (r[held] - a[held] @ step)[:, of].pow(2).sum().item()
    best = min(steps, key=lambda step: error(step, some))
    return best if error(best, slice(None)) < r[held].pow(2).sum().item() else None


def visit(x, y, held, weights, rows, top_k, renormalise, gate_and_up=True):
    """One Gauss-Seidel pass over the experts in ascending order: gate and up, if asked for, then down."""
    g = gates(x, rows, top_k, renormalise)
    rest = y - routed(x, weights, rows, top_k, renormalise)
    weights = [list(w) for w in weights]
    for k in range(len(weights)):
        t = (g[:, k] > 0).nonzero()[:, 0]
        h_t = held[t]
        if (~h_t).sum() < 8 or h_t.sum() < 2:
            continue
        xk, gk, r = x[t], g[t, k, None], rest[t]
        h = hidden(xk, weights[k])
        if gate_and_up:
            new = inner_step(xk, gk, r, h_t, weights[k], t)
            if new is not None:
                after = hidden(xk, new)
                r = r - gk * ((after - h) @ new[2].T)
                h, weights[k] = after, list(new)
        step = down_step(gk * h, r, h_t)
        if step is not None:
            weights[k][2] = weights[k][2] + step.T
            r = r - (gk * h) @ step
        rest[t] = r
    return weights
