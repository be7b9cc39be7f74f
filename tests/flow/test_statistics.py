"""What `collect` saves against hooks on the original model, and what it collects when."""

import h5py
import numpy as np
import pytest
import reference
from conftest import NAMES, ONE_A_FAMILY, digests, relative_error, run_job

COUNTS = {"routed_count"}
ALWAYS = {
    "routed_weight_sum", "router_probability_sum", "routed_output_norm_sum", "weighted_output_norm_sum", "router_logit_sum",
    "router_logit_gram",
}  # fmt: skip
OF_SAMPLE = {"sample_input", "sample_logits", "token_output_gram"}
ON_REQUEST = {"output_sum", "output_cka", "weight_gram", "weight_cka"}
SAMPLE = [f"calibration.sample={reference.SAMPLE}"]


def files(work):
    return sorted((work / "statistics").iterdir())


def there(work, layer=0) -> set:
    """Which statistics that are not always collected a layer has."""
    with h5py.File(files(work)[layer]) as file:
        return set(file) - COUNTS - ALWAYS


@pytest.mark.parametrize("name", NAMES)
def test_statistics_equal_the_reference(golden, tmp_path, name):
    case = golden(name)
    run_job(tmp_path, 2, case.job(tmp_path / "output"), "collect", sets=SAMPLE, arguments=["--all"])
    work = tmp_path / "output.work"
    assert np.array_equal(np.load(work / "calibration.npy"), case.array("ids"))
    assert not (work / "plan.json").exists() and not (tmp_path / "output").exists()
    assert [file.name for file in files(work)] == [f"layer_{layer:04d}.h5" for layer in case.moe_layers]
    worst = {}
    for layer, file in zip(case.moe_layers, files(work)):
        expected = case.statistics(layer)
        with h5py.File(file) as found:
            assert set(found) == COUNTS | ALWAYS | OF_SAMPLE | ON_REQUEST
            assert found.attrs["layer"] == layer and found.attrs["experts"] == case.experts
            assert found.attrs["tokens"] == expected["tokens"] == case.array("ids").size
            for dataset in COUNTS:
                assert np.array_equal(found[dataset][()], expected[dataset]), f"layer {layer} {dataset}"
            for dataset in ALWAYS | OF_SAMPLE | ON_REQUEST:
                assert found[dataset].dtype == (np.float32 if dataset in OF_SAMPLE else np.float64)
                error = relative_error(found[dataset][()], expected[dataset])
                worst[dataset] = max(worst.get(dataset, 0), error)
                assert error <= 1e-5, f"layer {layer} {dataset}: largest error {error:.1e} of the scale"
    print(f"{name}: largest errors, of the scale:", ", ".join(f"{dataset} {error:.1e}" for dataset, error in sorted(worst.items())))


@pytest.mark.parametrize("name", ONE_A_FAMILY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranks_and_threads_do_not_matter(golden, tmp_path, name, dtype):
    expected = None
    for ranks, threads in ((1, 1), (1, 2), (2, 1), (3, 2)):
        folder = tmp_path / f"{ranks}_{threads}"
        run_job(folder, ranks, golden(name).job(folder / "output"), "collect", threads=threads,
                sets=["calibration.sample=100", f"device.dtype={dtype}"], arguments=["--all"])  # fmt: skip
        found = digests(folder / "output.work" / "statistics")
        expected = expected or found
        assert found == expected, f"{ranks} ranks, {threads} threads"


WANTS = {
    "method=hc-smoe": {"output_sum"},
    "method=kmeans": {"output_sum"},
    "method=fuzzy-cmeans": {"output_sum"},
    "feature=router_logits": set(),
    "feature=weight": {"weight_gram"},
    "feature=weight_cka": {"weight_cka"},
    "feature=expert_output_tokens": OF_SAMPLE,
    "method=dek": {"sample_input", "output_cka"},
    "method=o-prune": OF_SAMPLE,
    "method=f-prune": set(),
    "method=reap": set(),
}


@pytest.mark.parametrize("setting", WANTS)
def test_only_what_the_method_needs(golden, tmp_path, setting):
    job, work = golden(ONE_A_FAMILY[0]).job(tmp_path / "output"), tmp_path / "output.work"
    run_job(tmp_path, 2, job, "collect", sets=[f"compression.{setting}"])
    assert there(work) == WANTS[setting]
    run_job(tmp_path, 1, job, "plan", sets=[f"compression.{setting}"])


def test_what_was_there_stays(golden, tmp_path):
    """A plan that lacks a statistic says so; collecting it keeps the others, and nothing is collected twice."""
    job, work = golden(ONE_A_FAMILY[0]).job(tmp_path / "output"), tmp_path / "output.work"
    run_job(tmp_path, 1, job, "collect")
    refused = run_job(tmp_path, 1, job, "plan", sets=["compression.method=dek"], expect=2)
    text = refused.stdout + refused.stderr
    assert "have no output_cka, which method dek with merge average needs" in text and "hcsmoe_dist collect CONFIG" in text and "--all" in text
    again = run_job(tmp_path, 1, job, "collect", sets=["compression.method=dek"])
    assert "have no output_cka" in again.stdout + again.stderr
    assert there(work) == {"output_sum", "sample_input", "output_cka"}
    before = digests(work / "statistics")
    for sets in ([], ["compression.method=dek"], ["compression.method=f-prune"]):
        result = run_job(tmp_path, 1, job, "collect", sets=sets)
        assert "nothing to do" in result.stdout + result.stderr
    assert digests(work / "statistics") == before

    run_job(tmp_path, 1, job, "collect", sets=["compression.method=dek", "calibration.sample=50"])
    with h5py.File(files(work)[0]) as file:
        assert len(file["sample_input"]) == 50 and "output_sum" in file


def test_all_belongs_to_collect(golden, tmp_path):
    result = run_job(tmp_path, 1, golden(ONE_A_FAMILY[0]).job(tmp_path / "output"), "plan", arguments=["--all"], expect=2)
    assert "--all belongs to the command 'collect'" in result.stdout + result.stderr
