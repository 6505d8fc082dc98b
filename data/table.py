"""The samples of a table of records, put apart by the modalities of their media."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onellm.data.lists import SampleList
from onellm.data.loader import group_of
from onellm.data.records import Records
from onellm.data.sample import Sample
from onellm.data.translate import DATA_TYPE, Translator
from onellm.errors import BadInput

_TRIED = 1000  # records that are looked into for what all of them have


class RecordSamples(SampleList):
    """The samples of a table of records.

    Args:
        records: the table.
        translator: makes samples of records.
        rows: which records, by their number.

    Attributes:
        fields: a table's columns; of other records, those that were seen by :meth:`by_group`.
    """

    def __init__(
        self, records: Records, translator: Translator, rows: NDArray[np.int64] | None = None
    ) -> None:
        self.records, self.translator = records, translator
        self.rows = np.arange(len(records)) if rows is None else rows
        self.fields = dict.fromkeys(records.fields)

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, index: int, *, whole: bool) -> Sample:
        row = int(self.rows[index])
        record = self.records[row] if whole else self.records.outline(row)
        return self.translator.sample(record, row)

    def by_group(self) -> dict[str, RecordSamples]:
        """The same samples, apart by the modalities of their media."""
        if not len(self.rows):
            return {}
        groups: dict[str, array[int]] = {}  # a list would take five times the memory
        for row, group in self._group_of_rows():
            groups.setdefault(group, array("q")).append(row)
        # Broken records go where most are: whoever draws one will hear of it, or take the next.
        broken = groups.pop("", array("q"))
        if not groups:
            # Raises, and tells what is wrong with the first.
            groups[group_of(self.outline(0))] = array("q")
        most = max(groups, key=lambda group: len(groups[group]))
        if broken:
            groups[most] = array("q", sorted([*groups[most], *broken]))
        return {
            group: RecordSamples(self.records, self.translator, np.array(rows, dtype=np.int64))
            for group, rows in groups.items()
        }

    def _group_of_rows(self) -> Iterator[tuple[int, str]]:
        """Each row with its group, "" for a broken one.

        In a table, one row tells of all that have something in the same cells.
        """
        theirs = self.translator.fields
        tells = {theirs.get(f, f) for f in ("media", DATA_TYPE)}  # by what they hold
        tells &= set(self.records.fields)
        alike_N = None if tells else self.records.alike
        known: dict[int | None, str] = {-1: ""}
        tried: Counter[int] = Counter()
        for row in map(int, self.rows):
            kind = None if alike_N is None else int(alike_N[row])
            if kind in known:
                yield row, known[kind]
                continue
            group = self._group(row)
            yield row, group
            if kind is not None:
                tried[kind] += 1
                if group or tried[kind] == _TRIED:
                    known[kind] = group

    def _group(self, row: int) -> str:
        try:
            record = self.records.outline(row)
            if not record.keys() <= self.fields.keys():
                self.fields.update(dict.fromkeys(record))
            return self.translator.group(record)
        except BadInput:
            return ""

    def account(self) -> str:
        """What the fields of the first record that can be read are taken for."""
        for row in self.rows[:_TRIED].tolist():
            if self._group(row):
                return self.translator.account(self.records.outline(row))
        return "nothing"
