"""Lists of samples over other lists: joined, with other texts, without media.

A list of samples is any sequence of them. It may know three things more, which are asked for by
functions here: ``outline(index)``, a sample without what its media hold; ``beyond(index)``, where
to go on behind a sample that cannot be read; and ``pieces``, the numbers of samples of the files it
is made of.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onellm.data.faults import Faults
from onellm.data.sample import Sample
from onellm.data.targets import retold, turns_for
from onellm.errors import BadInput
from onellm.source import source_name


def outline(samples: Sequence[Sample], index: int) -> Sample:
    """A sample as far as its texts, the kinds of its media and their names go.

    Media that would have to be read with it may be empty, so that texts can be gone through
    without reading the media beside them.

    Raises:
        BadInput: as of the sample itself.
    """
    own = getattr(samples, "outline", None)
    return own(index) if own is not None else samples[index]


def beyond(samples: Sequence[Sample], index: int) -> int:
    """Where to go on behind a sample that could not be read: the next, or that of the next file.

    Where a whole file is lost, each of its samples has one of the next file to stand in for it,
    and is one broken sample, not as many as are left in the file.

    Returns:
        more than ``index``; it may lie behind the end of the list.
    """
    own = getattr(samples, "beyond", None)
    return own(index) if own is not None else index + 1


def pieces_of(samples: Sequence[Sample]) -> tuple[int, ...]:
    """Numbers of samples of the files that a list is made of; () if all are within reach."""
    return tuple(getattr(samples, "pieces", ()))


def name_of(samples: Sequence[Sample], index: int) -> str:
    """A sample's id and files, for error messages; its media are not read."""
    try:
        sample = outline(samples, index)
    except BadInput as error:
        return error.source
    files = dict.fromkeys(source_name(source) for _, source in sample.media)
    return f"{sample.id} ({', '.join(files)})" if files else sample.id


class SampleList(Sequence[Sample]):
    """A list that reads a sample through :meth:`_read`, whole or in outline."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._read(range(len(self))[index], whole=True)

    def outline(self, index: int) -> Sample:
        """See :func:`outline`."""
        return self._read(index, whole=False)

    def beyond(self, index: int) -> int:
        """See :func:`beyond`."""
        return index + 1

    @abstractmethod
    def _read(self, index: int, *, whole: bool) -> Sample:
        """A sample, or its outline."""


def _get(samples: Sequence[Sample], index: int, whole: bool) -> Sample:
    return samples[index] if whole else outline(samples, index)


class Joined(SampleList):
    """Several lists one behind the other.

    Args:
        parts: the lists.
    """

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self.parts = list(parts)
        self._ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def pieces(self) -> tuple[int, ...]:
        """Those of all parts, if one has any; a part without is one piece."""
        own = [pieces_of(part) for part in self.parts]
        if not any(own):
            return ()
        return tuple(
            n for part, pieces in zip(self.parts, own, strict=True) for n in pieces or (len(part),)
        )

    def beyond(self, index: int) -> int:
        """See :func:`beyond`."""
        part, start = self._part(index)
        return start + beyond(part, index - start)

    def _read(self, index: int, *, whole: bool) -> Sample:
        part, start = self._part(index)
        return _get(part, index - start, whole)

    def _part(self, index: int) -> tuple[Sequence[Sample], int]:
        """The part that holds a sample, and where it begins."""
        number = bisect_right(self._ends, index)
        return self.parts[number], self._ends[number - 1] if number else 0


def joined(parts: Sequence[Sequence[Sample]]) -> Sequence[Sample]:
    """One list of several; of one, itself."""
    return parts[0] if len(parts) == 1 else Joined(parts)


class WithoutMedia(SampleList):
    """The texts of samples alone.

    Args:
        samples: whose.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples, self.pieces = samples, pieces_of(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def beyond(self, index: int) -> int:
        """See :func:`beyond`."""
        return beyond(self.samples, index)

    def _read(self, index: int, *, whole: bool) -> Sample:
        return replace(outline(self.samples, index), media=())


class Targeted(SampleList):
    """Samples with their turns set for a target.

    Args:
        samples: the samples.
        target: see :data:`onellm.data.targets.Target`.
        prompt: the question that ``describe`` asks.
        places_N2: of each example, the number of its sample and which of its texts it has.
    """

    def __init__(
        self, samples: Sequence[Sample], target: str, prompt: str, places_N2: NDArray[np.int64]
    ) -> None:
        self.samples, self.target, self.prompt = samples, target, prompt
        self.places_N2 = places_N2

    def __len__(self) -> int:
        return len(self.places_N2)

    @property
    def pieces(self) -> tuple[int, ...]:
        """How many examples each file of the samples gives."""
        ends = np.cumsum(pieces_of(self.samples))
        if not len(ends):
            return ()
        return tuple(np.diff(np.searchsorted(self.places_N2[:, 0], ends), prepend=0).tolist())

    def beyond(self, index: int) -> int:
        """See :func:`beyond`; the other examples of a sample are passed over, too."""
        row = beyond(self.samples, int(self.places_N2[index, 0]))
        return int(np.searchsorted(self.places_N2[:, 0], row))

    def _read(self, index: int, *, whole: bool) -> Sample:
        row, which = self.places_N2[index].tolist()
        sample = _get(self.samples, row, whole)
        return retold(sample, self.target, turns_for(sample, self.target, self.prompt)[which])


def by_target(
    samples: Sequence[Sample],
    targets: Mapping[Any, float] | Sequence[str],
    prompt: str,
    faults: Faults,
    group: str,
) -> dict[str, Targeted]:
    """The examples that samples give for each of several targets.

    All texts are gone through once; media are not read, and nothing but places is kept.

    Args:
        samples: the samples.
        targets: names of :data:`onellm.data.targets.Target`.
        prompt: the question that ``describe`` asks.
        faults: policy for samples that cannot be read, or whose texts are none.
        group: under whose name these are counted.

    Returns:
        a list for each target that some sample has.

    Raises:
        BadInput: by the policy.
        ConfigError: unknown target.
    """
    places: dict[str, list[tuple[int, int]]] = {target: [] for target in targets}

    def look(row: int) -> list[int]:
        sample = outline(samples, row)
        return [len(turns_for(sample, target, prompt)) for target in places]

    for row, counts in faults.each(look, range(len(samples)), group):
        for own, count in zip(places.values(), counts, strict=True):
            own += [(row, which) for which in range(count)]
    make = partial(Targeted, samples)
    return {
        target: make(target, prompt, np.array(own, dtype=np.int64))
        for target, own in places.items()
        if own
    }
