"""The jobs that the tests of this folder run, and when they are where a test wants them."""

import functools
import re
import tempfile
from pathlib import Path

from checkpoints import DEMO_MODEL
from conftest import job_digests, run_job, write_config
from namespaces import wait_until

TEXT = DEMO_MODEL.parent / "data" / "calibration.jsonl"
ONE_THREAD = ["--set", "device.threads=1"]
SHORT, MIDDLE, LONG = 6, 20, 200  # calibration sequences: some 2, 6 and 40 s on two cores


def demo_job(output: Path, sequences: int) -> dict:
    return {
        "model": str(DEMO_MODEL),
        "output": str(output),
        "calibration": {"files": [str(TEXT)], "sequences": sequences, "length": 256},
        "compression": {"experts": 0.5, "rounds": 1},
    }


def write_job(folder: Path, sequences: int) -> list:
    """The arguments of a launcher."""
    return [write_config(folder, demo_job(folder / "output", sequences)), *ONE_THREAD]


@functools.cache
def undisturbed(sequences: int) -> dict:
    """Digests of the same job from mpirun on this machine."""
    with tempfile.TemporaryDirectory(prefix="undisturbed-") as folder:
        run_job(Path(folder), 2, demo_job(Path(folder) / "output", sequences), timeout=600)
        return digests_of(Path(folder))


def digests_of(folder: Path) -> dict:
    return job_digests(folder / "output", folder / "output.work")


def finished_layers(log: Path) -> list:
    """The numbers of the layers whose fit is reported in a log, in order."""
    return [int(layer) for layer in re.findall(r"\] layer (\d+): ", log.read_text())] if log.exists() else []


def wait_for_layer(log: Path, layer=0, seconds=600):
    wait_until(lambda: layer in finished_layers(log), seconds, f"end of layer {layer}")
