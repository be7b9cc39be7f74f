"""Output folders in clients other than the tests' own transformers: the same logits as ours.

HCSMOE_CLIENTS names their interpreters, NAME=PYTHON with blanks between; tests/clients/run.sh makes them. Without it nothing is tested here.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import DEMO_MODEL
from conftest import NAMES, forward_logits, relative_error, run_job, run_program
from transformers import AutoTokenizer

CLIENTS = dict(entry.split("=", 1) for entry in os.environ.get("HCSMOE_CLIENTS", "").split())
LOADERS = {"transformers4": "transformers_logits.py", "transformers5": "transformers_logits.py", "mlx": "mlx_logits.py"}
FOUND = [client for client in LOADERS if client in CLIENTS]
IN_TRANSFORMERS = [name for name in NAMES if not name.startswith("deepseek_") or name.startswith("deepseek_v3")]  # no class in stock transformers
MODELS = ["demo", *IN_TRANSFORMERS]


@pytest.fixture(scope="session")
def demo_job(tmp_path_factory) -> Path:
    """The output folder of the demo model, 8 of 16 experts."""
    folder = tmp_path_factory.mktemp("demo")
    calibration = {"files": [str(DEMO_MODEL.parent / "data" / "calibration.jsonl")], "sequences": 8, "length": 128}
    compression = {"method": "reap", "experts": 8, "reconstruction": "full"}
    run_job(folder, 1, {"model": str(DEMO_MODEL), "output": str(folder / "output"), "calibration": calibration, "compression": compression})
    return folder / "output"


def text_ids(folder: Path) -> Path:
    lines = (DEMO_MODEL.parent / "data" / "validation.jsonl").read_text().splitlines()[:20]
    ids = AutoTokenizer.from_pretrained(DEMO_MODEL)(" ".join(json.loads(line)["text"] for line in lines))["input_ids"]
    np.save(folder / "ids.npy", np.array(ids[:512], dtype=np.int32).reshape(4, 128))
    return folder / "ids.npy"


@pytest.mark.skipif(not FOUND, reason="HCSMOE_CLIENTS names no interpreters: tests/clients/run.sh")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("client", FOUND)
def test_the_same_logits(golden, request, tmp_path, client, name):
    if name == "demo":
        output, ids = request.getfixturevalue("demo_job"), text_ids(tmp_path)
    else:
        output, ids = request.getfixturevalue("main_job")(name)[0], tmp_path / "ids.npy"
        np.save(ids, golden(name).array("ids")[:2])
    theirs = tmp_path / "theirs.npy"
    script = Path(__file__).with_name(LOADERS[client])
    result = run_program([CLIENTS[client], script, output, ids, theirs], timeout=300, environment={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    ours = forward_logits(output, ids, tmp_path, "float32")
    error = relative_error(np.load(theirs), ours)
    print(f"{name}: {result.stdout.strip()}: largest difference {error:.1e} of the largest logit")
    assert error < 1e-4
