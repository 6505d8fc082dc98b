"""The tests run on the CPU, where results are the same to the last bit, also beside a GPU."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
if "PYTEST_XDIST_WORKER" in os.environ:
    # OpenMP threads of two processes that spin for the same cores make both many times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="module")
def linear_is_torchs_own() -> Iterator[None]:
    """DeepSpeed's ZeRO 3 replaces it for the whole process, and quantised weights need torch's."""
    from torch.nn import functional

    own = functional.linear
    yield
    functional.linear = own
