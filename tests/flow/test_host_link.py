"""The whole program with its weights read into pinned buffers, copied to devices and broadcast from there, as on GPUs; the devices are memory
of the host, so the result must be the same bytes."""

import json

import h5py
import pytest
from conftest import BUILD, ONE_A_FAMILY, job_command, job_digests, need, relative_error, run_program, write_config

JOB = BUILD / "host_link_job"


def command(folder, ranks, job, name="run", sets=()):
    parts = job_command(ranks, write_config(folder, job), name, sets=sets)
    return [need(JOB) if "hcsmoe_dist" in str(part) else part for part in parts]


@pytest.mark.parametrize("name", ONE_A_FAMILY)
@pytest.mark.parametrize("ranks", [1, 3])
def test_same_bytes(golden, main_job, tmp_path, name, ranks):
    result = run_program(command(tmp_path, ranks, golden(name).job(tmp_path / "output")), timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr
    assert job_digests(tmp_path / "output", tmp_path / "output.work") == job_digests(*main_job(name))


def test_with_the_kernels_of_devices(golden, main_job, tmp_path):
    """Streamed weights, sums over the link and the kernels of devices together, on a device whose tensors are no CPU tensors."""
    name, found = ONE_A_FAMILY[0], []
    for ranks in (1, 3):
        folder = tmp_path / str(ranks)
        result = run_program(command(folder, ranks, golden(name).job(folder / "output")), timeout=180, environment={"HOST_LINK_DEVICE": "1"})
        assert result.returncode == 0, result.stdout + result.stderr
        found.append(job_digests(folder / "output", folder / "output.work"))
    assert found[0] == found[1]
    worst = 0.0
    for file in sorted((main_job(name)[1] / "statistics").iterdir()):
        with h5py.File(file) as cpu, h5py.File(tmp_path / "3" / "output.work" / "statistics" / file.name) as device:
            worst = max(worst, relative_error(device["output_sum"][()], cpu["output_sum"][()]))
    print(f"largest error of a feature {worst:.1e} of the scale")
    assert worst <= 1e-5


def test_blocks_on_compressed_layers(golden, tmp_path):
    """compression.propagate: compressed has two streams at a time."""
    digests = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        job = golden(ONE_A_FAMILY[0]).job(folder / "output", reconstruction="router", propagate="compressed")
        result = run_program(command(folder, ranks, job), timeout=180)
        assert result.returncode == 0, result.stdout + result.stderr
        digests.append(job_digests(folder / "output", folder / "output.work"))
    assert digests[0] == digests[1]


def test_the_trace_shows_each_owner_reading(golden, tmp_path):
    """A rank's reader reads the layers that it owns; the flow waits for what the others bring."""
    case, ranks, file = golden(ONE_A_FAMILY[0]), 2, tmp_path / "trace.json"
    result = run_program([*command(tmp_path, ranks, case.job(tmp_path / "output"), "collect"), "--trace", file], timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr
    events = json.loads(file.read_text())["traceEvents"]
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [event | {"thread": names[event["pid"], event["tid"]]} for event in events if event["ph"] == "X"]
    layers = {span["args"]["layer"] for span in spans if span["name"] == "wait for the weights"}
    for rank in range(ranks):
        of_rank = [span for span in spans if span["pid"] == rank]
        assert {(span["thread"], span["args"]["layer"]) for span in of_rank if span["name"] == "weights"} == {
            ("reader", layer) for layer in layers if layer % ranks == rank
        }
        waits = [span for span in of_rank if span["name"] == "wait for copies and broadcasts"]
        assert {span["args"]["layer"] for span in waits} == layers and {span["cat"] for span in waits} == {"copying"}
        assert {span["thread"] for span in waits} == {"main"}


def test_a_failing_link_ends_the_job(golden, tmp_path):
    job = golden(ONE_A_FAMILY[0]).job(tmp_path / "output")
    result = run_program(command(tmp_path, 3, job), timeout=60, environment={"HOST_LINK_FAILS": "1"})
    assert result.returncode == 1, result.stdout + result.stderr
    assert "a collective failed on the way" in result.stdout + result.stderr
    assert not (tmp_path / "output").exists()
