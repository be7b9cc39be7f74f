"""The kernels of devices, in the whole program: tests/host_device.h is a device in host memory, on which any access to elements that is not
meant for devices is an error. Its results are held against those of the CPU's own kernels, and against the reference."""

import h5py
import numpy as np
import pytest
from conftest import BUILD, NAMES, ONE_A_FAMILY, digests, job_digests, need, relative_error, run_job, run_program, write_config
from test_main_job import read_plan

PROGRAM = BUILD / "hcsmoe_dist_on_host_device"
FORWARD_LOGITS = BUILD / "forward_logits_on_host_device"
FEATURES = {"float32": 1e-5, "bfloat16": 1e-2}


def run_on_device(folder, ranks: int, config, command=None, sets=(), arguments=(), timeout=300):
    file = write_config(folder, config)
    parts = ["mpirun", "-np", ranks, need(PROGRAM), *([command] if command else []), file]
    for override in ["device.threads=1", *sets]:
        parts += ["--set", override]
    result = run_program(parts + list(arguments), timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def statistics(work) -> dict:
    """file -> name -> values"""
    found = {}
    for file in sorted((work / "statistics").iterdir()):
        with h5py.File(file) as datasets:
            found[file.name] = {name: datasets[name][()] for name in datasets}
    return found


def labels(work) -> dict:
    return {layer: [cluster["members"] for cluster in plan["clusters"]] for layer, plan in read_plan(work).items()}


@pytest.mark.parametrize("name", NAMES)
def test_logits(golden, tmp_path, name):
    case = golden(name)
    out = tmp_path / "logits.npy"
    result = run_program([need(FORWARD_LOGITS), case.model, case.ids_file, out, "float32"], timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    error = relative_error(np.load(out), case.array("logits_float32"))
    print(f"{name}: float32 logits, largest error {error:.2e} of the scale")
    assert error <= 1e-4


@pytest.mark.parametrize("dtype", FEATURES)
@pytest.mark.parametrize("name", NAMES)
def test_features_and_labels_are_the_cpus(golden, tmp_path, name, dtype):
    """And the clusters; the statistics that are collected on request as well."""
    sets = [f"device.dtype={dtype}", "calibration.sample=100", "compression.reconstruction=none"]
    run_job(tmp_path / "cpu", 1, golden(name).job(tmp_path / "cpu" / "output"), sets=sets)
    run_on_device(tmp_path / "device", 1, golden(name).job(tmp_path / "device" / "output"), sets=sets)
    works = [tmp_path / where / "output.work" for where in ("cpu", "device")]
    worst = {}
    expected, found = map(statistics, works)
    assert found.keys() == expected.keys()
    for file, datasets in expected.items():
        assert found[file].keys() == datasets.keys()
        for dataset, values in datasets.items():
            worst[dataset] = max(worst.get(dataset, 0), relative_error(found[file][dataset], values))
    print(f"{name} {dtype}: largest differences, of the scale:", ", ".join(f"{dataset} {error:.1e}" for dataset, error in worst.items()))
    assert worst["output_sum"] <= FEATURES[dtype]
    assert labels(works[1]) == labels(works[0])
    if dtype == "float32":
        assert max(worst.values()) <= 1e-5 and worst["routed_count"] == 0
        assert digests(tmp_path / "device" / "output").keys() == digests(tmp_path / "cpu" / "output").keys()


@pytest.mark.parametrize("name", ONE_A_FAMILY)
@pytest.mark.parametrize("dtype", FEATURES)
def test_ranks_do_not_matter(golden, tmp_path, name, dtype):
    expected = None
    for ranks in (1, 2, 3):
        folder = tmp_path / str(ranks)
        run_on_device(folder, ranks, golden(name).job(folder / "output"), "collect", arguments=["--all"],
                      sets=[f"device.dtype={dtype}", "calibration.sample=100"])  # fmt: skip
        run_on_device(folder, ranks, golden(name).job(folder / "output"),
                      sets=[f"device.dtype={dtype}", "calibration.sample=100", "compression.reconstruction=none"])  # fmt: skip
        found = job_digests(folder / "output", folder / "output.work")
        expected = expected or found
        assert found.keys() == expected.keys()
        assert not [file for file in expected if found[file] != expected[file]], f"{ranks} ranks"
