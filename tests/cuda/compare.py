"""Two work folders of one job, from a CPU and from a GPU: features within 1e-2 (bfloat16) or 1e-5 (float32) of the largest, the same labels."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np

BOUNDS = {"float32": 1e-5, "bfloat16": 1e-2}


def features(file: Path) -> np.ndarray:
    """[E, D]: the mean output of each expert."""
    with h5py.File(file) as statistics:
        return statistics["output_sum"][:] / float(statistics.attrs["tokens"])


def labels(work: Path) -> list:
    return [[cluster["members"] for cluster in layer["clusters"]] for layer in json.loads((work / "plan.json").read_text())["layers"]]


def main():
    cpu, gpu, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    files = sorted((cpu / "statistics").glob("*.h5"))
    assert files and [file.name for file in files] == sorted(file.name for file in (gpu / "statistics").glob("*.h5"))
    worst = 0.0
    for file in files:
        expected, found = features(file), features(gpu / "statistics" / file.name)
        assert np.isfinite(found).all() and found.shape == expected.shape
        worst = max(worst, np.abs(found - expected).max() / np.abs(expected).max())
    print(f"{dtype}: largest error of a feature {worst:.1e} (at most {BOUNDS[dtype]:.0e})")
    same = labels(cpu) == labels(gpu)
    print(f"{dtype}: labels {'are the same' if same else 'DIFFER'}")
    sys.exit(0 if worst <= BOUNDS[dtype] and same else 1)


if __name__ == "__main__":
    main()
