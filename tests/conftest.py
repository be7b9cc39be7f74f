"""Golden checkpoints, made once a session, and the real program under the real mpirun.

    pytest tests -m "not slow"        the inner loop
    pytest tests --golden FOLDER      keeps the checkpoints there and uses them again
    HCSMOE_BUILD=FOLDER               where the program is (default: build/ of the repository)
"""

import ctypes
import ctypes.util
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import make_golden
import numpy as np
import pytest
import reference
import torch
from checkpoints import RECIPES
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD = Path(os.environ.get("HCSMOE_BUILD", REPOSITORY / "build"))
PROGRAM = BUILD / "hcsmoe_dist"
FORWARD_LOGITS = BUILD / "forward_logits"
NAMES = [recipe.name for recipe in RECIPES]
ONE_A_FAMILY = [
    "mixtral_bf16_window", "qwen2_moe_f32_sparse_step", "deepseek_f16_linear", "glm4_moe_f32_groups", "deepseek_v3_bf16_yarn",
]  # fmt: skip

MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMP_WAIT_POLICY": "passive",  # threads that spin starve each other where there are more of them than cores
}


def pytest_addoption(parser):
    parser.addoption("--golden", type=Path, help="folder of golden checkpoints: used if it has them, else filled")


class Golden:
    """One checkpoint and its golden values; see make_golden.py for the files."""

    def __init__(self, folder: Path):
        self.name, self.folder, self.model = folder.name, folder, folder / "model"
        self.values = json.loads((folder / "golden.json").read_text())
        self.config = reference.read_config(self.model)
        self.ids_file = folder / "ids.npy"

    def __getattr__(self, name):
        return self.values[name]

    def array(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy")

    def statistics(self, layer: int) -> dict:
        prefix = f"layer.{layer}."
        tensors = load_file(self.folder / "statistics.safetensors")
        return {name.removeprefix(prefix): tensor.numpy() for name, tensor in tensors.items() if name.startswith(prefix)}

    def job(self, output: Path, **compression) -> dict:
        """A configuration of the paper's recipe; a checkpoint of several files becomes several again."""
        sequences, length = self.array("ids").shape
        several = {"output_shard_size": "60KB"} if (self.model / "model.safetensors.index.json").exists() else {}
        return several | {
            "model": str(self.model),
            "output": str(output),
            "calibration": {"files": [str(self.ids_file)], "sequences": sequences, "length": length},
            "compression": {"method": "hc-smoe", "experts": self.kept} | compression,
            "device": {"dtype": "float32"},
        }


@pytest.fixture(scope="session")
def golden_folder(request, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = request.config.getoption("--golden") or tmp_path_factory.mktemp("golden")
    missing = [name for name in NAMES if not (folder / name / "golden.json").exists()]
    if missing:
        make_golden.make_all(folder, missing)
    return folder


@pytest.fixture(scope="session")
def golden(golden_folder):
    """golden(name) -> Golden"""
    return lambda name: Golden(golden_folder / name)


@pytest.fixture
def case(golden):
    return golden(ONE_A_FAMILY[0])


@pytest.fixture
def broken(case, tmp_path):
    """A private copy of the checkpoint, to be damaged, and its job."""
    shutil.copytree(case.model, tmp_path / "model")
    return tmp_path / "model", case.job(tmp_path / "output") | {"model": str(tmp_path / "model")}


def need(tool: Path) -> Path:
    if not tool.exists():
        pytest.fail(f"{tool} is not built: launch/build.sh, or HCSMOE_BUILD=FOLDER", pytrace=False)
    return tool


def run_program(command: list, timeout: float, environment=None) -> subprocess.CompletedProcess:
    """Runs to the end, or fails the test after `timeout` seconds; ends all it started. `seconds` is added to the result."""
    started = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        start_new_session=True, env=os.environ | MPI_ENVIRONMENT | (environment or {}),
    )  # fmt: skip
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        pytest.fail(f"no end after {timeout} s: {' '.join(map(str, command))}\n{stdout}\n{stderr}", pytrace=False)
    result = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    result.seconds = time.monotonic() - started
    return result


def write_config(folder: Path, config: dict) -> Path:
    """JSON is YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(config if isinstance(config, str) else json.dumps(config, indent=2))
    return file


def job_command(ranks: int, file: Path, command=None, sets=(), threads=1, arguments=()) -> list:
    parts = ["mpirun", "-np", ranks, need(PROGRAM), *([command] if command else []), file]
    for override in [f"device.threads={threads}", *sets]:
        parts += ["--set", override]
    return parts + list(arguments)


def run_job(folder: Path, ranks: int, config, command=None, sets=(), threads=1, arguments=(), timeout=120, expect=0):
    """The program on FOLDER/config.yaml, made of `config`. expect: the exit code."""
    file = write_config(folder, config)
    result = run_program(job_command(ranks, file, command, sets, threads, arguments), timeout)
    if result.returncode != expect:
        pytest.fail(
            f"exit code {result.returncode} instead of {expect}\n{' '.join(result.args)}\n{result.stdout}\n{result.stderr}", pytrace=False
        )
    return result


def forward_logits(model: Path, ids: Path, folder: Path, dtype: str) -> np.ndarray:
    """Our logits, float32 [sequences, length, V], by the test tool that runs nothing but the forward pass."""
    out = folder / f"ours_{dtype}.npy"
    result = run_program([need(FORWARD_LOGITS), model, ids, out, dtype], timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return np.load(out)


def xxh3_128(content: bytes) -> str:
    class Hash(ctypes.Structure):
        _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]

    library = ctypes.CDLL(ctypes.util.find_library("xxhash"))
    library.XXH3_128bits.restype = Hash
    library.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    value = library.XXH3_128bits(content, len(content))
    return f"{value.high:016x}{value.low:016x}"


def digests(folder: Path) -> dict:
    """Relative path -> hash, of every file of a folder but the report, which tells the time that the run took."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "report.html"
    }


def model_digests(output: Path) -> dict:
    """Of an output folder, without what tells how it was made: another command's card need not say the same."""
    return {name: digest for name, digest in digests(output).items() if name not in ("README.md", "checksums.xxh128", "hcsmoe_plan.json")}


def job_digests(output: Path, work: Path) -> dict:
    """All that must not depend on ranks and threads."""
    found = {f"output/{name}": digest for name, digest in digests(output).items()}
    for part in ("statistics", "shards"):
        found |= {f"{part}/{name}": digest for name, digest in digests(work / part).items()}
    for file in ("plan.json", "calibration.npy"):
        found[file] = hashlib.sha256((work / file).read_bytes()).hexdigest()
    return found


def relative_error(found, expected) -> float:
    """The largest absolute error as a share of the largest expected value."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape, f"shape {found.shape} instead of {expected.shape}"
    assert np.isfinite(found).all()
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


@pytest.fixture(scope="session")
def main_job(golden, tmp_path_factory):
    """main_job(name) -> (output, work) of `run` on one rank and one thread, once a session."""
    finished = {}

    def run(name: str):
        if name not in finished:
            folder = tmp_path_factory.mktemp(f"main_{name}")
            run_job(folder, 1, golden(name).job(folder / "output"))
            finished[name] = (folder / "output", folder / "output.work")
        return finished[name]

    return run
