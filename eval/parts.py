"""Answers that several processes write: a file each, put together without doubles or gaps.

``answers.jsonl`` is whole; while it is being made, process r of n appends to
``answers.part-r-of-n.jsonl`` beside it. What any of these files holds counts as answered, whatever
the number of processes that wrote it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onellm.errors import BadInput
from onellm.eval.answers import Record, read_answers, write_answers
from onellm.eval.items import Item


@dataclass(frozen=True)
class Shard:
    """This process among those that answer.

    Args:
        rank: 0 ≤ rank < world.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1


def part_path(file: Path, shard: Shard) -> Path:
    """Where a process writes."""
    return file.with_name(f"{file.stem}.part-{shard.rank}-of-{shard.world}.jsonl")


def part_paths(file: Path) -> list[Path]:
    """All parts that are there, of whatever number of processes."""
    return sorted(file.parent.glob(f"{file.stem}.part-*-of-*.jsonl"))


def share(items: Sequence[Item], shard: Shard) -> list[Item]:
    """The items of one process: whole groups that show the same media, evenly dealt.

    It depends on the items alone, not on what has been answered, so that processes which start at
    different moments agree.

    Args:
        items: of all processes.
        shard: this process.
    """
    if shard.world == 1:
        return list(items)
    groups: dict[object, list[Item]] = {}
    for item in items:
        # Questions without media have nothing to share.
        shown = tuple((m.modality, m.id) for m in item.media) or item.id
        groups.setdefault(shown, []).append(item)
    loads, mine = [0] * shard.world, []
    for group in groups.values():
        rank = loads.index(min(loads))
        loads[rank] += len(group)
        if rank == shard.rank:
            mine += group
    return mine


def answered(file: Path, keys: Collection[str]) -> dict[str, Record]:
    """What the whole file and the parts hold of some items.

    Args:
        file: the whole file, which need not be there.
        keys: of the items; other records are left out.

    Raises:
        BadInput: a broken file, or two different answers to one question.
    """
    found: dict[str, Record] = {}
    for path in [file, *part_paths(file)]:
        for record in read_answers(path) if path.exists() else ():
            key = record["key"]
            if key not in keys:
                continue
            # A crash between the merge and the removal of parts leaves the same record twice.
            if key in found and _core(found[key]) != _core(record):
                raise BadInput(
                    path,
                    expected="one answer per question",
                    found=f"another answer to {record['task']} {record['id']}",
                    hint="Two runs wrote into one folder; remove one's part.",
                )
            found[key] = record
    return found


def _core(record: Record) -> Record:
    return {k: v for k, v in record.items() if k not in ("parsed", "score")}


def repair(part: Path) -> None:
    """Take away the half line that a crash left at the end of a part."""
    if part.exists() and not part.read_bytes().endswith(b"\n"):
        write_answers(part, read_answers(part))


def merge(file: Path, order: Iterable[str], known: dict[str, Record] | None = None) -> list[Record]:
    """Put the whole file together and remove the parts.

    Args:
        file: the whole file.
        order: keys of all items, in the order that the file is to have.
        known: what :func:`answered` gave; read anew if left out.

    Returns:
        the file's records.

    Raises:
        BadInput: a question without an answer, or with two.
    """
    keys = list(order)
    found = answered(file, set(keys)) if known is None else known
    if missing := [key for key in keys if key not in found]:
        raise BadInput(
            file,
            expected=f"{len(keys)} answers",
            found=f"{len(missing)} missing",
            hint="The same command goes on where this run stopped.",
        )
    records = [found[key] for key in keys]
    write_answers(file, records)
    for part in part_paths(file):
        part.unlink(missing_ok=True)
    return records


def wait(
    file: Path,
    keys: Collection[str],
    *,
    patience: float = 1800.0,
    pause: float = 0.5,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Wait until all questions are answered, by whichever process.

    No process talks to another: files are all that is shared, so that processes may also be
    started by hand on machines that know nothing of each other.

    Args:
        file: the whole file.
        keys: of all items.
        patience: seconds without a new answer after which to give up.
        pause: seconds between two looks.
        note: told how far the others are.

    Raises:
        BadInput: nothing new for too long.
    """
    counter, seen, since = _LineCounter(), -1, time.monotonic()
    while True:
        lines = counter.count([file, *part_paths(file)])
        if lines != seen:
            seen, since = lines, time.monotonic()
            note(f"{lines} of {len(keys)} answered by all processes")
            # Lines of other questions may be among them, so the last word has whoever reads them.
            if lines >= len(keys) and len(answered(file, keys)) == len(keys):
                return
        if time.monotonic() - since > patience:
            missing = len(keys) - len(answered(file, keys))
            found = f"{missing} missing, and none came for {patience:g} s"
            raise BadInput(file, expected="answers of the other processes", found=found)
        time.sleep(pause)


class _LineCounter:
    """Counts lines of growing files, reading each byte once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int]] = {}

    def count(self, paths: Iterable[Path]) -> int:
        """Lines of all files that are there."""
        return sum(self._lines(path) for path in paths)

    def _lines(self, path: Path) -> int:
        offset, lines = self._known.get(path, (0, 0))
        try:
            with path.open("rb") as file:
                if file.seek(0, 2) < offset:  # written anew
                    offset = lines = 0
                file.seek(offset)
                for chunk in iter(lambda: file.read(1 << 20), b""):
                    offset, lines = offset + len(chunk), lines + chunk.count(b"\n")
        except FileNotFoundError:
            offset = lines = 0
        self._known[path] = (offset, lines)
        return lines
