"""What GPUs can do at best and hold, by the makers' data sheets.

Rates are dense (without sparsity), of the SXM form where a name has several. Those of float32 are
of the ordinary units: PyTorch leaves TF32 off for matrix products. Sources: NVIDIA's data sheet of
each card; of the B200 an eighth of HGX B200; of the RTX cards the Ada and GA102 architecture
papers, with sums in float32. Those of H200, B200 and L40S were checked against listings; the others
were not looked up again, and ``--tflops`` or ``log.peak_tflops`` says otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from onellm.errors import ConfigError
from onellm.spelling import did_you_mean

ROOM = 0.92
"""Share of a card's memory that tensors can have. Assumed: error correction, the driver's context
and gaps between tensors take the rest."""


@dataclass(frozen=True)
class Gpu:
    """One card.

    Args:
        half: 10^12 operations per second in 16 bits.
        single: in float32.
        gibibytes: of memory, 2^30 bytes.
        bfloat16: False where float16 alone has fast units; bfloat16 goes through float32 there.
    """

    half: float
    single: float
    gibibytes: float
    bfloat16: bool = True

    def tflops(self, dtype: torch.dtype) -> float:
        """10^12 operations per second at best in a number type."""
        fast = dtype == torch.float16 or (dtype == torch.bfloat16 and self.bfloat16)
        return self.half if fast else self.single

    @property
    def room(self) -> float:
        """Bytes that tensors can have."""
        return ROOM * self.gibibytes * 2**30


GPUS = {  # a name that holds another stands in front of it
    "B200": Gpu(2250, 75, 180),
    "H200": Gpu(989, 67, 140),
    "H100 NVL": Gpu(835, 60, 94),
    "H100 PCIe": Gpu(756, 51, 80),
    "H100": Gpu(989, 67, 80),
    "A100 40GB": Gpu(312, 19.5, 40),
    "A100": Gpu(312, 19.5, 80),
    "A800": Gpu(312, 19.5, 80),
    "L40S": Gpu(362, 91.6, 48),
    "RTX 4090": Gpu(165, 82.6, 24),
    "RTX 3090": Gpu(71, 35.6, 24),
    "A10G": Gpu(70, 35, 24),
    "A10": Gpu(125, 31.2, 24),
    "V100 16GB": Gpu(125, 15.7, 16, bfloat16=False),
    "V100": Gpu(125, 15.7, 32, bfloat16=False),
    "T4": Gpu(65, 8.1, 16, bfloat16=False),
}


def gpu_of(name: str) -> Gpu:
    """A card by its name in :data:`GPUS`.

    Raises:
        ConfigError: an unknown one, with the nearest spelling.
    """
    if name not in GPUS:
        raise ConfigError(f"unknown GPU {name!r}.{did_you_mean(name, GPUS)}")
    return GPUS[name]


def known_gpu(told: str) -> Gpu | None:
    """A card by what its driver calls it, such as ``"NVIDIA A100-SXM4-80GB"``.

    Its name must be a word of that: an RTX A1000 is no A100, nor is a laptop's RTX 4090 a card's.
    """
    known = (gpu for name, gpu in GPUS.items() if re.search(rf"\b{name}\b{_NOT_ANOTHER}", told))
    return next(known, None)


_NOT_ANOTHER = r"(?! (Ti|D|SUPER|Laptop)\b)"
