"""Models built without memory for their weights, and filled tensor by tensor.

A 7B model takes 15 GB in 16 bits. Building it with random weights first and copying into them
would double that and take minutes; here parameters begin on PyTorch's meta device, where they have
a shape only, and each is replaced by its weight once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from onellm.errors import CheckpointError

_register: Callable[..., None] = nn.Module.register_parameter


class Weights(Protocol):
    """Named tensors that are read one at a time."""

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Name → shape."""
        ...

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Name → type; the same names."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor; it may be a view of a mapped file, so copy it to keep it."""
        ...


def _register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    # What is on the meta device already keeps its identity: tied weights stay tied.
    if parameter is not None and not parameter.is_meta:
        parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    _register(module, name, parameter)


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Within it, parameters of new modules are on the meta device; buffers are real.

    Buffers have to be: some are computed once and stored nowhere, such as rotary frequencies. It
    changes ``nn.Module`` for the whole process while it lasts, so build nothing else in a thread.
    """
    with _registering(_register_empty):
        yield


@contextmanager
def real_parameters() -> Iterator[None]:
    """Suspends :func:`empty_parameters`, for a module that has to run while it is built."""
    with _registering(_register):
        yield


@contextmanager
def _registering(function: Callable[..., None]) -> Iterator[None]:
    before = nn.Module.register_parameter
    nn.Module.register_parameter = function  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = before  # type: ignore[method-assign]


class Slots:
    """The places for weights in a model: what ``state_dict`` names, tied weights once.

    Args:
        model: any module.
        without: leave out names that begin with one of these.

    Attributes:
        shapes: name → shape. Of tied weights only the first name is there.
        tied: the other names of tied weights → the first.
    """

    def __init__(self, model: nn.Module, without: tuple[str, ...] = ()) -> None:
        self.shapes: dict[str, torch.Size] = {}
        self.tied: dict[str, str] = {}
        self._homes: dict[str, list[tuple[nn.Module, str]]] = {}
        first: dict[int, str] = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name.startswith(without):
                continue
            home, _, leaf = name.rpartition(".")
            main = first.setdefault(id(tensor), name)
            if main == name:
                self.shapes[name] = tensor.shape
            else:
                self.tied[name] = main
            self._homes.setdefault(main, []).append((modules[home], leaf))

    def put(self, name: str, tensor: Tensor) -> None:
        """Replace a parameter or buffer, under all of its names.

        Args:
            name: a key of ``shapes``.
            tensor: of that shape; the model keeps it as it is.
        """
        parameter: nn.Parameter | None = None
        for module, leaf in self._homes[name]:
            old = module._parameters.get(leaf)
            if old is None:
                module._buffers[leaf] = tensor
                continue
            if parameter is None:
                parameter = nn.Parameter(tensor, requires_grad=old.requires_grad)
            module._parameters[leaf] = parameter


def check_fit(slots: Slots, weights: Weights, what: str) -> None:
    """Raise one readable error that lists all that does not fit.

    Args:
        slots: of the model.
        weights: to be put into it.
        what: begins the message, such as a file and what was expected of it.

    Raises:
        CheckpointError: something is missing, unexpected or of another shape.
    """
    wrong = [
        f"{name} (expected {tuple(shape)}, found {tuple(weights.shapes[name])})"
        for name, shape in sorted(slots.shapes.items())
        if name in weights.shapes and weights.shapes[name] != shape
    ]
    raise_differences(
        what,
        missing=slots.shapes.keys() - weights.shapes.keys(),
        unexpected=weights.shapes.keys() - slots.shapes.keys() - slots.tied.keys(),
        wrong_shape=wrong,
    )


def raise_differences(
    what: str,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    wrong_shape: Iterable[str] = (),
    shown: int = 12,
) -> None:
    """Raise an error with counts and names, if there is any difference.

    Args:
        what: begins the message.
        missing: names without a weight.
        unexpected: weights without a place.
        wrong_shape: texts that name a weight and both shapes.
        shown: at most this many of each kind are named.

    Raises:
        CheckpointError: unless all three are empty.
    """
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong_shape}
    faults = []
    for kind, found in kinds.items():
        names = sorted(found)
        if names:
            rest = " …" if len(names) > shown else ""
            faults.append(f"{len(names)} {kind}: {', '.join(names[:shown])}{rest}")
    if faults:
        raise CheckpointError(f"{what}: {'; '.join(faults)}")


def fill(
    slots: Slots,
    weights: Weights,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    advance: Callable[[int], Any] | None = None,
    placed: Callable[[str], Any] | None = None,
) -> None:
    """Put weights into a model, each in memory of its own.

    Args:
        slots: of the model; :func:`check_fit` has passed.
        weights: read one at a time, so that hardly more than the model itself is in memory.
        device: where each goes.
        dtype: type of floating-point weights; None keeps each as it is.
        advance: called with the number of weights just placed.
        placed: called with the name of each weight that is in its place now.
    """
    for name in slots.shapes:
        tensor = weights.read(name)
        to = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        slots.put(name, tensor.to(device=device, dtype=to, copy=True))
        del tensor  # it may hold a mapped file
        if placed is not None:
            placed(name)
        if advance is not None:
            advance(1)


def weights_of(model: nn.Module, without: tuple[str, ...] = ()) -> StateDict:
    """The weights of a model in memory, tied ones once.

    Args:
        model: any module.
        without: leave out names that begin with one of these.
    """
    kept = Slots(model, without).shapes
    return StateDict({name: t for name, t in model.state_dict().items() if name in kept})


class Joined:
    """Several sets of weights as one.

    Args:
        parts: prefix for the names → weights.

    Raises:
        CheckpointError: two of them have the same name.
    """

    def __init__(self, *parts: tuple[str, Weights]) -> None:
        self._homes: dict[str, tuple[Weights, str]] = {}
        for prefix, weights in parts:
            for name in weights.shapes:
                if prefix + name in self._homes:
                    raise CheckpointError(f"{prefix + name} is there twice")
                self._homes[prefix + name] = weights, name
        self.shapes = {name: home.shapes[own] for name, (home, own) in self._homes.items()}
        self.dtypes = {name: home.dtypes[own] for name, (home, own) in self._homes.items()}

    def read(self, name: str) -> Tensor:
        """One tensor of the set that has it."""
        home, own = self._homes[name]
        return home.read(own)


class StateDict:
    """A state dict in memory.

    Args:
        state: name → tensor.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = dict(state)
        self.shapes = {name: tensor.shape for name, tensor in self._state.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._state.items()}

    def read(self, name: str) -> Tensor:
        """The tensor itself."""
        return self._state[name]
