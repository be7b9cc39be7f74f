"""What `collect` saves against hooks on the original model."""

import h5py
import numpy as np
import pytest
from conftest import NAMES, relative_error, run_job

COUNTS = {"routed_count"}
SUMS = {
    "routed_weight_sum", "router_probability_sum", "output_sum", "routed_output_norm_sum", "weighted_output_norm_sum",
    "router_logit_sum", "router_logit_gram",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_statistics_equal_the_reference(golden, tmp_path, name):
    case = golden(name)
    run_job(tmp_path, 2, case.job(tmp_path / "output"), "collect")
    work = tmp_path / "output.work"
    assert np.array_equal(np.load(work / "calibration.npy"), case.array("ids"))
    assert not (work / "plan.json").exists() and not (tmp_path / "output").exists()
    files = sorted((work / "statistics").iterdir())
    assert [file.name for file in files] == [f"layer_{layer:04d}.h5" for layer in case.moe_layers]
    worst = 0
    for layer, file in zip(case.moe_layers, files):
        expected = case.statistics(layer)
        with h5py.File(file) as found:
            assert set(found) == COUNTS | SUMS
            assert found.attrs["layer"] == layer and found.attrs["experts"] == case.experts
            assert found.attrs["tokens"] == expected["tokens"] == case.array("ids").size
            for dataset in COUNTS:
                assert np.array_equal(found[dataset][()], expected[dataset]), f"layer {layer} {dataset}"
            for dataset in SUMS:
                assert found[dataset].dtype == np.float64
                error = relative_error(found[dataset][()], expected[dataset])
                worst = max(worst, error)
                assert error <= 1e-5, f"layer {layer} {dataset}: largest error {error:.1e} of the scale"
    print(f"{name}: largest error of a sum {worst:.1e} of its scale")
