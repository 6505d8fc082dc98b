"""Whether something that was computed from weights still holds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from torch import Tensor


def version_of(parameters: Iterable[Tensor]) -> Hashable:
    """A value that changes when a parameter is written to, moved, cast or replaced.

    Args:
        parameters: what was computed from. Writes through ``.data`` in place are not seen.
    """
    return tuple(
        # Tensors made in inference mode do not count the writes to them.
        (p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype)
        for p in parameters
    )
