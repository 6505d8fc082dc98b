"""The tests run on the CPU, where results are the same to the last bit, also beside a GPU."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
