"""The forward pass against transformers (and the DeepSeek reference) on every tiny checkpoint."""

import numpy as np
import pytest
from conftest import NAMES, forward_logits, relative_error


@pytest.mark.parametrize("name", NAMES)
def test_float32(golden, tmp_path, name):
    case = golden(name)
    error = relative_error(forward_logits(case.model, case.ids_file, tmp_path, "float32"), case.array("logits_float32"))
    print(f"{name}: float32 logits, largest error {error:.2e} of the scale")
    assert error <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_no_further_from_float32_than_transformers(golden, tmp_path, name):
    case = golden(name)
    exact = case.array("logits_float32").astype(np.float64)
    ours = forward_logits(case.model, case.ids_file, tmp_path, "bfloat16") - exact
    theirs = case.array("logits_bfloat16") - exact

    def spread(error):
        size = np.abs(error)
        return np.sqrt(np.mean(error**2)), np.median(size), size.max()

    (our_rms, our_median, our_max), (their_rms, their_median, their_max) = spread(ours), spread(theirs)
    print(f"{name}: bfloat16 logits, error of ours and of transformers: RMS {our_rms:.4f} {their_rms:.4f}, "
          f"median {our_median:.4f} {their_median:.4f}, largest {our_max:.3f} {their_max:.3f}")  # fmt: skip
    assert np.isfinite(ours).all() and our_rms > 0
    assert our_rms <= their_rms
    assert our_median <= their_median
    assert our_max <= 1.1 * their_max  # one token, whose routing flips in both: chance decides the last percents
