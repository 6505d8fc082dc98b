"""What happens to a sample that cannot be read: stop, or skip it and count it.

A broken sample is never replaced by a random one. Skipping takes the next sample of the same data
set, which is again a pure function of the order, and stops the run once too many are broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from onellm.config import StrictModel
from onellm.errors import BadInput

T = TypeVar("T")

Lost = Callable[[BadInput], None]
"""Is told of a file that cannot be opened; if it returns, the rest is opened without it."""


def stop(error: BadInput) -> None:
    """Stop at the first file that cannot be opened, as a run does."""
    raise error


class Skipped(Exception):  # a signal to the caller, not an error
    """A broken sample was counted and is to be passed over."""


@dataclass(frozen=True)
class Fault:
    """A sample that could not be read.

    Args:
        modality: under whose name it is counted.
        file: what was at fault.
        message: what was wrong with it.
    """

    modality: str
    file: str
    message: str


class FaultConfig(StrictModel):
    """Policy for samples that cannot be read.

    Attributes:
        policy: ``"raise"`` stops at the first; ``"skip"`` counts it and takes the next sample.
        share: with ``"skip"``, the share of broken samples above which the run stops. Judged
            over at least 100 reads, so that one broken file of the first ten is no verdict; of
            samples that are all gone through before the first step, among these.
    """

    policy: Literal["raise", "skip"] = "raise"
    share: float = 0.01


class Faults:
    """Reads samples under a policy and keeps the counts.

    Args:
        config: the policy.

    Attributes:
        reads: how many reads were tried.
        by_modality: broken reads by modality.
        by_file: broken reads by file.
        set_aside: how many of them :meth:`each` found. Their share was judged there, among the
            samples gone through, and does not count in that of the reads.
        found: the broken reads since :meth:`take`, in order.
        names: under which processes have counted, beside those that the run's parts tell.
        last: the last of all.
    """

    def __init__(self, config: FaultConfig | None = None) -> None:
        self.config = config or FaultConfig()
        self.reads = 0
        self.by_modality: Counter[str] = Counter()
        self.by_file: Counter[str] = Counter()
        self.set_aside = 0
        self.found: list[Fault] = []
        self.names: set[str] = set()
        self.last: Fault | None = None

    def add(self, faults: Sequence[Fault], reads: int) -> None:
        """Count reads that were made elsewhere, in a worker say; :meth:`judge` is up to the caller.

        Args:
            faults: the broken ones.
            reads: how many were tried.
        """
        self.reads += reads
        self.found += faults
        for fault in faults:
            self._count(fault)

    def take(self) -> list[Fault]:
        """What was found since it was taken last."""
        taken, self.found = self.found, []
        return taken

    @property
    def total(self) -> int:
        """How many reads were broken."""
        return sum(self.by_file.values())

    def read(
        self,
        read: Callable[[int], T],
        index: int,
        size: int,
        modality: str,
        beyond: Callable[[int], int] = lambda index: index + 1,
    ) -> T:
        """Read a sample, or under ``"skip"`` the next one that can be read.

        Args:
            read: reads the sample of an index; raises :class:`~onellm.errors.BadInput`.
            index: the sample wanted.
            size: number of samples; the one after the last is the first.
            modality: under whose name a broken sample is counted.
            beyond: index of a broken sample → where to go on.

        Raises:
            BadInput: under ``"raise"`` the first broken sample; under ``"skip"`` too large a
                share of them, or not one sample left.
        """
        for _ in range(size):
            try:
                return self.attempt(partial(read, index), modality)
            except Skipped:
                index = beyond(index) % size
        raise BadInput(
            f"{modality} data", expected="a readable sample", found=f"{size} broken ones"
        )

    def attempt(self, read: Callable[[], T], modality: str) -> T:
        """Read one sample.

        Raises:
            Skipped: it is broken, and was counted.
            BadInput: as :meth:`read`.
        """
        self.reads += 1
        try:
            return read()
        except BadInput as error:
            if self.config.policy == "raise":
                raise
            self._note(modality, error)
            self.judge(self.reads, self.by_modality, self.set_aside)
            raise Skipped from error

    def each(
        self, read: Callable[[int], T], places: Sequence[int], modality: str
    ) -> Iterator[tuple[int, T]]:
        """Go through many samples; those that cannot be read are left out, and counted.

        Their share is judged among these samples, all of them, and alone: a text that can be read
        says nothing about the medium beside it.

        Args:
            read: reads the sample of a place; raises :class:`~onellm.errors.BadInput`.
            places: which.
            modality: under whose name a broken sample is counted.

        Raises:
            BadInput: as :meth:`read`.
        """
        broken: Counter[str] = Counter()
        for place in places:
            try:
                item = read(place)
            except BadInput as error:
                if self.config.policy == "raise":
                    raise
                self._note(modality, error)
                self.set_aside += 1
                broken[modality] += 1
                self.judge(len(places), broken)
                continue
            yield place, item

    def _note(self, modality: str, error: BadInput) -> None:
        self.found.append(Fault(modality, error.source, str(error)))
        self._count(self.found[-1])

    def _count(self, fault: Fault) -> None:
        self.by_modality[fault.modality] += 1
        self.by_file[fault.file] += 1
        self.last = fault

    def judge(self, reads: int, by_modality: Mapping[str, int], set_aside: int = 0) -> None:
        """Stop where too large a share of reads was broken.

        Args:
            reads: how many were tried, on all devices say.
            by_modality: how many were broken.
            set_aside: how many of these were not among the reads.

        Raises:
            BadInput: it names the last broken file that was found here.
        """
        total = sum(by_modality.values()) - set_aside
        if total <= self.config.share * max(reads, 100):
            return
        counts = ", ".join(f"{name} {n}" for name, n in sorted(by_modality.items()))
        last = f"; last: {self.last.message}" if self.last else ""
        raise BadInput(
            self.last.file if self.last else "data",
            expected=f"at most {self.config.share:.1%} broken samples",
            found=f"{total} of {reads} ({counts}){last}",
            hint="Mend the data or raise data.faults.share.",
        )

    def summary(self) -> str:
        """Counts by modality, such as ``"audio 2, imu 1"``."""
        return ", ".join(f"{name} {n}" for name, n in sorted(self.by_modality.items()))
