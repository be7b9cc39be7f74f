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
def inner_step(x, g, r, held, w, iterations=2, damping=0.1, lengths=(1.0, 0.5)):
    """Gauss-Newton for gate and up of one expert. x [n, D], g [n, 1], r [n, D]: the tokens routed to it, their gates, the block's residual.
    Preconditioned CG from zero; each iterate is judged by the true (nonlinear) held-out error. Returns the weights or None."""
    gate, up, down = w
    units = len(gate)
    z, u = x @ gate.T, x @ up.T
    sigma = z.sigmoid()
    s = z * sigma
    train = ~held
    xt = x[train]
    slope_gate = (g * sigma * (1 + z * (1 - sigma)) * u)[train]                   # d(g h)/d z
    slope_up = (g * s)[train]                                                    # d(g h)/d u

    def adjoint(v):
        p = v @ down
        return torch.cat([(p * slope_gate).T @ xt, (p * slope_up).T @ xt])        # [2F, D]

    def forward(v):
        return (slope_gate * (xt @ v[:units].T) + slope_up * (xt @ v[units:].T)) @ down.T

    q = torch.cat([slope_gate, slope_up], 1)
    left = ridge_cholesky((down.T @ down).repeat(2, 2) * (q.T @ q), damping)      # [2F, 2F]
    weighted = xt * g[train]
    right = ridge_cholesky(weighted.T @ weighted / g[train].pow(2).sum(), damping)  # [D, D]
    precondition = lambda b: torch.cholesky_solve(torch.cholesky_solve(b, left).T.contiguous(), right).T

    before = (s * u)[held]
    best, result = r[held].pow(2).sum().item(), None
    rest = r[train].clone()
    total = torch.zeros(2 * units, x.shape[1], dtype=x.dtype)
    b = adjoint(rest)
    direction = preconditioned = precondition(b)
    rz = (b * preconditioned).sum()
    for it in range(iterations):
        if not rz > 0:
            break
        moved = forward(direction)
        alpha = rz / moved.pow(2).sum()
        total = total + alpha * direction
        rest = rest - alpha * moved
        improved = False
        for length in lengths:
            candidate = [gate + length * total[:units], up + length * total[units:], down]
            error = (r[held] - g[held] * ((hidden(x[held], candidate) - before) @ down.T)).pow(2).sum().item()
            if error < best:
                best, result, improved = error, candidate, True
                break
        if not improved or it + 1 == iterations:
            break
        b = adjoint(rest)
        preconditioned = precondition(b)
        new = (b * preconditioned).sum()
        direction = preconditioned + (new / rz) * direction
        rz = new
    return result


def down_step(a, r, held, grid=(1e-3, 1e-2, 1e-1)):
    """Ridge least squares for the change of one down projection. a = g h [n, F], r [n, D]. Returns the change [F, D] or None."""
    t = a[~held]
    gram, right = t.T @ t, t.T @ r[~held]
    best, result = r[held].pow(2).sum().item(), None
    if not gram.diagonal().mean() > 0:
        return None
    for relative in grid:
        step = torch.cholesky_solve(right, ridge_cholesky(gram, relative))
        error = (r[held] - a[held] @ step).pow(2).sum().item()
        if error < best:
            best, result = error, step
    return result


def visit(x, y, held, weights, rows, top_k, renormalise, iterations=2):
    """One Gauss-Seidel pass over the experts in ascending order: gate and up (iterations > 0), then down."""
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
        if iterations:
            new = inner_step(xk, gk, r, h_t, weights[k], iterations)
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


def reconstruct(x, y, held, weights, rows, top_k, renormalise, rounds=3, iterations=2):
    """One block: down projections, then rounds of router step and visit. A half step that does not lower the held-out block error is undone."""
    error = lambda w, r: block_error(x[held], y[held], w, r, top_k, renormalise)
    now = error(weights, rows)

    def keep(new_weights, new_rows):
        nonlocal weights, rows, now
        e = error(new_weights, new_rows)
        if e < now:
            weights, rows, now = new_weights, new_rows, e
    keep(visit(x, y, held, weights, rows, top_k, renormalise, 0), rows)
    for _ in range(rounds):
        keep(weights, router_step(x, y, held, weights, rows, top_k, renormalise))
        keep(visit(x, y, held, weights, rows, top_k, renormalise, iterations), rows)
    return weights, rows, now


def propagated_target(y, shared_original, residual_original, residual_compressed, shared_compressed):
    """Target of the routed part when the inputs come from compressed layers: residuals are those before the block (after attention),
    shared_* the shared expert's output (zero without one) on each stream's own normed input."""
    return y + (residual_original - residual_compressed) + (shared_original - shared_compressed)


if __name__ == '__main__':
    torch.manual_seed(0)
    for renormalise in (False, True):
        T, D, F, E, K, top = 640, 10, 6, 5, 3, 2
        x = torch.randn(T, D, dtype=torch.float64)
        experts = [[torch.randn(F, D).double() * .4, torch.randn(F, D).double() * .4, torch.randn(D, F).double() * .4] for _ in range(E)]
        rows = torch.randn(E, D).double()
        y = routed(x, experts, rows, top, renormalise)
        held = (torch.arange(T) // 16) % 5 == 4
        g = gates(x, rows, top, renormalise)
        count = (g > 0).sum(0).double()
        clusters = [[0, 3], [1], [2, 4]]
        weights = [merged(x, experts, count, c) for c in clusters]
        alias = torch.stack([g[:, c].sum(1) for c in clusters], 1)
        k_rows = fitted_rows(x[~held], (x @ rows.T)[~held], clusters, mean_rows(rows, count, clusters), alias[~held] if renormalise else None)
        start = block_error(x[held], y[held], weights, k_rows, top, renormalise)
        print('renormalise', renormalise, 'held-out error', round(start, 4), '->', round(reconstruct(x, y, held, weights, k_rows, top, renormalise)[2], 4))
    order = torch.randperm(F)
    permuted = [experts[0][0][order], experts[0][1][order], experts[0][2][:, order]]
    assert (order[aligned_order(x, experts[0], permuted)] == torch.arange(F)).all()
    print('ok')
