"""Distances, merge trees and cuts against SciPy, on thousands of random cases, ties included.

cluster_cases (in the folder that the environment variable HCSMOE_BUILD names) answers all cases in one run.
Where distances tie, SciPy's choice among equal pairs follows from its algorithm; ours from a rule (smaller indices first). Cases with
ties are therefore compared with a plain greedy reference that has our rule, with the definition of each linkage, and with whatever of
SciPy's answer does not depend on the choice.
"""
import os
import pathlib
import subprocess

import numpy as np
import pytest
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import pdist, squareform

METRICS = ["euclidean", "cosine"]
LINKAGES = ["single", "complete", "average", "ward"]
RTOL = 1e-12


class Case:
    def __init__(self, features, metric, method, cuts, condensed=None):
        self.features, self.metric, self.method, self.cuts = features, metric, method, cuts
        self.given = condensed  # distances to cluster instead of features
        self.rows = len(features)

    def bytes(self):
        columns = 0 if self.given is not None else self.features.shape[1]
        values = self.given if self.given is not None else self.features
        head = [self.rows, columns, METRICS.index(self.metric), LINKAGES.index(self.method), len(self.cuts), *self.cuts]
        return np.array(head, "<i8").tobytes() + np.ascontiguousarray(values, "<f8").tobytes()


class Answer:
    def __init__(self, case, data, at):
        n, pairs = case.rows, case.rows * (case.rows - 1) // 2
        self.condensed = np.frombuffer(data, "<f8", pairs, at)
        at += pairs * 8
        self.tree = np.frombuffer(data, "<f8", (n - 1) * 4, at).reshape(n - 1, 4)
        at += (n - 1) * 32
        self.labels = np.frombuffer(data, "<i8", len(case.cuts) * n, at).reshape(len(case.cuts), n)
        self.end = at + len(case.cuts) * n * 8


def answers(cases, folder):
    program = pathlib.Path(os.environ.get("HCSMOE_BUILD", "build")) / "cluster_cases"
    assert program.exists(), f"{program} is not there: build it, and set HCSMOE_BUILD to the build folder"
    (folder / "cases").write_bytes(np.array([len(cases)], "<i8").tobytes() + b"".join(case.bytes() for case in cases))
    subprocess.run([program, folder / "cases", folder / "answers"], check=True)
    data, at, result = (folder / "answers").read_bytes(), 0, []
    for case in cases:
        result.append(Answer(case, data, at))
        at = result[-1].end
    assert at == len(data)
    return result


def some_cuts(random, n):
    return sorted({1, n, max(1, n // 2), *random.integers(1, n + 1, 3).tolist()})


def member_sets(tree, n):
    sets = [frozenset([i]) for i in range(n)]
    for a, b, _, _ in tree:
        sets.append(sets[int(a)] | sets[int(b)])
    return sets[n:]


def partition(labels):
    return {frozenset(np.flatnonzero(labels == k).tolist()) for k in np.unique(labels)}


def scipy_labels(tree, cuts):
    return cut_tree(tree, cuts[::-1]).T[::-1]  # it takes many cuts at once, but gives them from the leaves up whatever the order asked for


def relative_error(ours, theirs):
    """Largest error relative to each value; values that are zero must be zero."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if len(ours) == 0:
        return 0.0
    error = np.abs(ours - theirs)
    assert np.all(error[theirs == 0] == 0)
    return float(np.max(error / np.where(theirs == 0, 1, np.abs(theirs))))


def check_form(answer, case):
    """What every tree and every cut must be, whatever the numbers."""
    n, tree = case.rows, answer.tree
    sizes, used = [1] * n, set()
    for i, (a, b, height, size) in enumerate(tree):
        a, b = int(a), int(b)
        assert 0 <= a < b < n + i and not used & {a, b}
        used |= {a, b}
        sizes.append(sizes[a] + sizes[b])
        assert size == sizes[-1] and height >= 0
    assert np.all(np.diff(tree[:, 2]) >= 0)
    merges = member_sets(tree, n)
    for clusters, labels in zip(case.cuts, answer.labels):
        assert len(np.unique(labels)) == clusters
        assert np.all(np.diff([np.flatnonzero(labels == k)[0] for k in range(clusters)]) > 0), "clusters follow their smallest member"
        joined = [frozenset([i]) for i in range(n)]
        for merged in merges[: n - clusters]:
            joined = [s for s in joined if not s <= merged] + [merged]
        assert partition(labels) == set(joined)


def greedy_reference(condensed, n, method):
    """The closest pair by a search of all pairs, each time. Pairs in order of their smallest members: the first of equals is ours.
    Returns (members, height, whether no other pair was as close) of each merge."""
    d = squareform(condensed) if n > 1 else np.zeros((1, 1))
    if method == "ward":
        d = d * d
    members, sizes, merges = {i: [i] for i in range(n)}, np.ones(n), []  # by smallest member
    np.fill_diagonal(d, np.inf)  # also the rows of clusters that are gone
    while len(members) > 1:
        a, b = sorted(np.unravel_index(np.argmin(d), d.shape))
        between, na, nb, nk = d[a, b], sizes[a], sizes[b], sizes
        unique = np.count_nonzero(d <= between * (1 + 1e-9)) == 2  # d is symmetric
        merges.append((frozenset(members[a] + members[b]), np.sqrt(between) if method == "ward" else between, unique))
        with np.errstate(invalid="ignore"):
            if method == "single":
                new = np.minimum(d[a], d[b])
            elif method == "complete":
                new = np.maximum(d[a], d[b])
            elif method == "average":
                new = (na * d[a] + nb * d[b]) / (na + nb)
            else:
                new = ((nk + na) * d[a] + (nk + nb) * d[b] - nk * between) / (nk + na + nb)
        gone = [k for k in range(n) if k not in members] + [a, b]
        new[gone] = np.inf
        d[a], d[:, a], d[b], d[:, b] = new, new, np.inf, np.inf
        members[a] += members.pop(b)
        sizes[a] += sizes[b]
    return merges


def distances_by_definition(clusters, square, features, method):
    """Between all clusters (lists of members): [clusters, clusters]."""
    sizes = np.array([len(c) for c in clusters])
    if method == "ward":
        means = np.array([features[c].mean(0) for c in clusters])
        gap = ((means[:, None] - means[None]) ** 2).sum(2)
        return np.sqrt(2 * np.outer(sizes, sizes) / np.add.outer(sizes, sizes) * gap)
    order, starts = np.concatenate(clusters), np.cumsum(sizes) - sizes
    reduce = {"single": np.minimum, "complete": np.maximum, "average": np.add}[method].reduceat
    between = reduce(reduce(square[np.ix_(order, order)], starts, 0), starts, 1)
    return between / np.outer(sizes, sizes) if method == "average" else between


def check_every_merge_is_closest(answer, case):
    """Each height is the distance of the two clusters by definition, and no other pair was closer. Returns the largest error."""
    n, square, worst = case.rows, squareform(answer.condensed), 0.0
    clusters = {i: [i] for i in range(n)}
    scale = max(answer.condensed.max(), 1e-300)
    for i, (a, b, height, _) in enumerate(answer.tree):
        keys = list(clusters)
        between = distances_by_definition(list(clusters.values()), square, case.features, case.method)
        own = between[keys.index(int(a)), keys.index(int(b))]
        np.fill_diagonal(between, np.inf)
        worst = max(worst, abs(own - height) / scale, abs(between.min() - height) / scale)
        clusters[n + i] = clusters.pop(int(a)) + clusters.pop(int(b))
    return worst


def random_case(random, metric, method):
    n, columns = int(random.integers(2, 65)), int(random.choice([1, 2, 3, 7, 8, 9, 31, 64, 257, 530]))
    if metric == "cosine":
        columns = max(columns, 3)
    features = random.normal(size=(n, columns)) * 10.0 ** random.integers(-6, 7) + random.normal() * random.integers(0, 3)
    return Case(features, metric, method, some_cuts(random, n))


def tied_case(random, method):
    n, kind = int(random.integers(2, random.choice([13, 65]))), random.integers(0, 4)
    features = random.integers(0, random.integers(2, 7), (n, int(random.integers(1, 4)))).astype(float)  # a grid, with duplicates
    if kind == 1:
        features = np.eye(n) * 3.0  # all distances equal
    if kind == 2:
        features = random.normal(size=(n, 5))[random.integers(0, max(1, n // 2), n)]  # duplicates among distinct points
    return Case(features, "euclidean", method, some_cuts(random, n))


def test_without_ties_equals_scipy(tmp_path):
    random = np.random.default_rng(1)
    cases = [random_case(random, metric, method) for _ in range(200) for metric in METRICS for method in LINKAGES]
    worst_distance, worst_height, merges, cuts, larger = 0.0, 0.0, 0, 0, 0
    for case, answer in zip(cases, answers(cases, tmp_path)):
        check_form(answer, case)
        theirs = pdist(case.features, case.metric)
        if case.metric == "euclidean":
            worst_distance = max(worst_distance, relative_error(answer.condensed, theirs))
        else:  # 1 - cos loses digits in SciPy's own form
            assert np.allclose(answer.condensed, theirs, rtol=RTOL, atol=2e-15)
        tree = linkage(answer.condensed, case.method)
        assert np.all(np.diff(tree[:, 2]) > 0), "not meant to have ties"
        assert member_sets(answer.tree, case.rows) == member_sets(tree, case.rows)
        assert np.array_equal(answer.tree[:, [0, 1, 3]], tree[:, [0, 1, 3]])
        worst_height = max(worst_height, relative_error(answer.tree[:, 2], tree[:, 2]))
        for labels, theirs in zip(answer.labels, scipy_labels(tree, case.cuts)):
            assert partition(labels) == partition(theirs)
            cuts += 1
        merges += case.rows - 1
        larger += case.rows > 32
    print(f"\n{len(cases)} cases without ties ({larger} of more than 32 experts), {merges} merges, {cuts} cuts equal SciPy's; "
          f"largest relative error: distances {worst_distance:.1e}, heights {worst_height:.1e}")
    assert worst_distance <= RTOL and worst_height <= RTOL


def test_with_ties_follows_the_rule_and_the_definition(tmp_path):
    random = np.random.default_rng(2)
    cases = [tied_case(random, method) for _ in range(300) for method in LINKAGES]
    worst_height, worst_definition, single, same, ambiguous = 0.0, 0.0, 0, 0, 0
    for case, answer in zip(cases, answers(cases, tmp_path)):
        check_form(answer, case)
        assert relative_error(answer.condensed, pdist(case.features)) <= RTOL
        reference = greedy_reference(answer.condensed, case.rows, case.method)
        assert member_sets(answer.tree, case.rows) == [members for members, _, _ in reference]
        worst_height = max(worst_height, relative_error(answer.tree[:, 2], [height for _, height, _ in reference]))
        worst_definition = max(worst_definition, check_every_merge_is_closest(answer, case))
        tree = linkage(answer.condensed, case.method)
        if case.method == "single":
            assert relative_error(answer.tree[:, 2], np.sort(tree[:, 2])) <= RTOL
            single += 1
        # There is no choice before the first tie; nor once all pairs at a distance are joined, if that is 0 or the linkage is single.
        heights, unique = [height for _, height, _ in reference], [u for _, _, u in reference]
        for clusters, labels, theirs in zip(case.cuts, answer.labels, scipy_labels(tree, case.cuts)):
            joined = case.rows - clusters
            complete = joined == len(heights) or heights[joined] > (heights[joined - 1] if joined else -1) * (1 + 1e-9)
            harmless = all(u or h == 0 or case.method == "single" for u, h in zip(unique[:joined], heights))
            if clusters == 1 or (complete and harmless):
                assert partition(labels) == partition(theirs)
                same += 1
            else:
                ambiguous += 1
    print(f"\n{len(cases)} cases with ties equal the greedy reference: largest relative error of a height {worst_height:.1e}, "
          f"of a merge by definition {worst_definition:.1e}; {single} times single linkage has SciPy's heights; "
          f"{same} unambiguous cuts equal SciPy's, {ambiguous} depend on the choice")
    assert worst_height <= RTOL and worst_definition <= 1e-7 and same > 100


def test_nearly_identical_experts(tmp_path):
    """The difference of two features is far below their size: it must not be lost."""
    random = np.random.default_rng(3)
    cases = []
    for _ in range(20):
        n, columns = int(random.integers(2, 20)), int(random.integers(2, 400))
        features = random.normal(size=columns) + random.normal(size=(n, columns)) * 10.0 ** random.integers(-12, -3)
        cases += [Case(features, "euclidean", "average", [1]), Case(features, "cosine", "average", [1])]
    worst = {metric: 0.0 for metric in METRICS}
    for case, answer in zip(cases, answers(cases, tmp_path)):
        if case.metric == "euclidean":
            exact = pdist(case.features)
        else:
            x = case.features.astype(np.longdouble)
            x /= np.sqrt((x * x).sum(1, keepdims=True))
            gap = x[:, None] - x[None]
            exact = squareform((gap * gap).sum(2) / 2, checks=False)
        allowed = 0 if case.metric == "euclidean" else 1e-31  # rounding of the normalised rows, squared
        error = np.abs(answer.condensed - exact)
        assert np.all(error <= 1e-3 * exact + allowed)
        worst[case.metric] = max(worst[case.metric], float(np.max(error / exact)))
    print(f"\nnearly identical experts, largest relative error: {worst}")
    assert worst["euclidean"] <= RTOL


def test_cosine_of_zero_rows_and_parallel_rows(tmp_path):
    features = np.array([[0, 0, 0], [1, 2, 2], [0, 0, 0], [2, 4, 4], [-1, -2, -2], [1e-200, 0, 0]])
    got = squareform(answers([Case(features, "cosine", "average", [3])], tmp_path)[0].condensed)
    cos = 1 / 3  # of [1, 2, 2] and [1, 0, 0]
    expected = np.array([[0, 1, 0, 1, 1, 1], [1, 0, 1, 0, 2, 1 - cos], [0, 1, 0, 1, 1, 1], [1, 0, 1, 0, 2, 1 - cos],
                         [1, 2, 1, 2, 0, 1 + cos], [1, 1 - cos, 1, 1 - cos, 1 + cos, 0]])
    assert np.allclose(got, expected, rtol=0, atol=1e-15)
    assert got[0, 2] == 0 and got[1, 3] == 0


@pytest.mark.parametrize("method", LINKAGES)
def test_distances_given(tmp_path, method):
    """linkage_tree on distances that are no metric, as another measure may give."""
    random = np.random.default_rng(4)
    cases = []
    for _ in range(50):
        n = int(random.integers(2, 40))
        condensed = random.uniform(1, 2, n * (n - 1) // 2)
        cases.append(Case(np.zeros((n, 1)), "euclidean", method, some_cuts(random, n), condensed))
    worst = 0.0
    for case, answer in zip(cases, answers(cases, tmp_path)):
        check_form(answer, case)
        tree = linkage(case.given, method)
        assert np.array_equal(answer.condensed, case.given)
        assert member_sets(answer.tree, case.rows) == member_sets(tree, case.rows)
        worst = max(worst, relative_error(answer.tree[:, 2], tree[:, 2]))
    print(f"\n{len(cases)} cases of given distances, {method}: largest relative error of a height {worst:.1e}")
    assert worst <= RTOL
