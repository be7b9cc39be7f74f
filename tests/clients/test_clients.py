"""Output folders in clients of other versions than the tests' own: the same logits as ours.

HCSMOE_CLIENTS names their interpreters, NAME=PYTHON with blanks between; tests/clients/run.sh makes them. Without it nothing is tested here.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ONE_A_FAMILY, forward_logits, relative_error, run_program

CLIENTS = dict(entry.split("=", 1) for entry in os.environ.get("HCSMOE_CLIENTS", "").split())
IN_TRANSFORMERS = [name for name in ONE_A_FAMILY if not name.startswith("deepseek_f16")]  # no class in stock transformers


@pytest.mark.skipif(not CLIENTS, reason="HCSMOE_CLIENTS names no interpreters: tests/clients/run.sh")
@pytest.mark.parametrize("name", IN_TRANSFORMERS)
@pytest.mark.parametrize("client", CLIENTS)
def test_the_same_logits(golden, main_job, tmp_path, client, name):
    output, ids = main_job(name)[0], tmp_path / "ids.npy"
    np.save(ids, golden(name).array("ids")[:2])
    theirs = tmp_path / "theirs.npy"
    script = Path(__file__).with_name("transformers_logits.py")
    result = run_program([CLIENTS[client], script, output, ids, theirs], timeout=300, environment={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    ours = forward_logits(output, ids, tmp_path, "float32")
    error = relative_error(np.load(theirs), ours)
    print(f"{name}: {result.stdout.strip()}: largest relative error {error:.1e}")
    assert error < 1e-4
