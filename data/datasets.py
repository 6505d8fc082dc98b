"""Data sets by name, as the configuration lists them, and what a run draws from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from onellm.config import StrictModel
from onellm.data.arrow import open_hub, open_parquet
from onellm.data.faults import Faults, Lost, stop
from onellm.data.lists import WithoutMedia, by_target, joined, pieces_of
from onellm.data.order import Part
from onellm.data.records import SUFFIXES, Format, Records, open_text
from onellm.data.sample import Sample
from onellm.data.streams import Shelf, is_address
from onellm.data.table import RecordSamples
from onellm.data.tar_sets import open_tars
from onellm.data.targets import Target
from onellm.data.translate import Translator, check_declared
from onellm.data.turns import TEXTS
from onellm.errors import BadInput, ConfigError
from onellm.modality import Modality
from onellm.spelling import did_you_mean


class Derived(StrictModel):
    """A field made from another one's text.

    Attributes:
        field: the other one.
        replace: what is replaced in it.
        by: by what.
    """

    field: str
    replace: str
    by: str


class DatasetConfig(StrictModel):
    """One data set: where it is, and what its fields mean where they do not say so themselves.

    Attributes:
        path: a file, a folder or pattern of tar shards, an address (``https://…/{000..099}.tar``,
            ``pipe:COMMAND``), or a data set of the Hugging Face Hub with ``format: hub``; several
            as a list.
        name: in logs and weights; the file's name if left out.
        format: ``"auto"`` goes by the suffix; a folder is one of tar shards.
        modality: of the media, for data that do not say; ``"text"`` where there are none.
        media: folder that relative paths begin from; the file's own if left out.
        fields: our field → theirs, such as ``{caption: TEXT, question: problem}``.
        derive: fields made from others, such as the path of a depth map from its picture's.
        describe: ask the modality's caption prompt in front of captions, to tune with them.
        targets: make texts of ``text``, ``label`` and ``qa`` fields: see
            :data:`onellm.data.targets.Target`. All texts are gone through at the start.
        shard_samples: about how many samples a shard has, for addresses without a ``shards.json``:
            then no shard is fetched before one of its samples is wanted. A shard that has fewer
            gives some of them twice; of one that has more the rest is not drawn. 0 fetches each
            shard once on every machine to count it.
        split: of a data set of the hub.
        weight: share of the draws beside other data sets with weights.
        epochs: how often a run of one epoch goes through it; 0.5 for half of it.
    """

    path: str | tuple[str, ...]
    name: str = ""
    format: Format = "auto"
    modality: str = ""
    media: str = ""
    fields: dict[str, str] = Field(default_factory=dict)
    derive: dict[str, Derived] = Field(default_factory=dict)
    describe: bool = False
    targets: dict[Target, PositiveFloat] = Field(default_factory=dict)
    shard_samples: NonNegativeInt = 0
    split: str = "train"
    weight: PositiveFloat | None = None
    epochs: PositiveFloat = 1.0

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def kind(self) -> str:
        """The format, found by the suffix where it was not given.

        Raises:
            ConfigError: the suffix says nothing.
        """
        if self.format != "auto":
            return self.format
        first = self.paths[0]
        if first.startswith("pipe:") or Path(first).is_dir():
            return "tar"
        suffix = Path(first.split("?")[0]).suffix.lower()
        if suffix not in SUFFIXES:
            known = ", ".join(sorted(SUFFIXES))
            raise ConfigError(
                f"data.datasets: {first}: give its format, or a file of {known} or a folder of tars"
            )
        return SUFFIXES[suffix]

    @property
    def title(self) -> str:
        """The name, or what stands for one."""
        return self.name or Path(self.paths[0].split("?")[0].rstrip("/")).stem

    @model_validator(mode="after")
    def _has_a_path(self) -> Self:
        if not all(self.paths) or not self.paths:
            raise ValueError("path: expected a file, a folder or an address; found nothing")
        return self


SHOWN = 20  # fields named in a message


@dataclass
class Collection:
    """A data set, opened.

    Args:
        config: what was asked for.
        groups: its samples by the modalities of their media.
        notes: what its fields are taken for, a line for each file and group.
    """

    config: DatasetConfig
    groups: dict[str, Sequence[Sample]]
    notes: Sequence[str] = ()

    @property
    def size(self) -> int:
        """Number of samples."""
        return sum(map(len, self.groups.values()))


def open_dataset(
    config: DatasetConfig,
    modalities: Mapping[str, Modality],
    shelf: Shelf,
    faults: Faults | None = None,
    only: str = "",
    lost: Lost = stop,
) -> Collection:
    """Open a data set; text files are gone through once, media are left alone.

    Args:
        config: where it is.
        modalities: known modalities by name.
        shelf: for what has to be fetched.
        faults: policy for samples whose texts targets are made of; the first broken one is an
            error if left out. Without targets a broken sample is told of when it is drawn.
        only: the modality of a run that has one alone, for tables that do not say.
        lost: is told of a file that cannot be opened, which is then left out.

    Raises:
        BadInput: it is missing, empty or damaged.
        ConfigError: it declares an unknown modality, or its format is not known.
    """
    check_declared(config.modality, modalities)
    kind = config.kind
    unopened: list[BadInput] = []

    def tell(error: BadInput) -> None:
        unopened.append(error)
        lost(error)

    if kind == "tar":
        translator = _translator(config, modalities, Path(), only=only)
        groups, notes = open_tars(
            *(config.paths, config.title, translator, shelf),
            modality=config.modality,
            nominal=config.shard_samples,
            lost=tell,
        )
    else:
        groups, notes = _open_records(config, kind, modalities, shelf, only, tell)
    if not any(map(len, groups.values())):
        if not unopened:
            lost(BadInput(config.paths[0], expected="samples", found="none"))
        return Collection(config, {})
    if config.targets:
        groups = _with_targets(config, groups, modalities, faults or Faults())
    return Collection(config, groups, notes)


def _translator(
    config: DatasetConfig,
    modalities: Mapping[str, Modality],
    folder: Path,
    title: str = "",
    only: str = "",
) -> Translator:
    return Translator(
        title or config.title,
        modalities,
        folder,
        modality=config.modality,
        fields=config.fields,
        derive={name: (d.field, d.replace, d.by) for name, d in config.derive.items()},
        describe=config.describe,
        only=only,
    )


def _open_records(
    config: DatasetConfig,
    kind: str,
    modalities: Mapping[str, Modality],
    shelf: Shelf,
    only: str,
    lost: Lost,
) -> tuple[dict[str, Sequence[Sample]], list[str]]:
    """Samples by the modalities of their media, and what fields are taken for."""
    # The files of a Parquet data set are one table.
    files = [config.paths] if kind == "parquet" else [(path,) for path in config.paths]
    groups: dict[str, list[Sequence[Sample]]] = {}
    notes: list[str] = []
    for number, paths in enumerate(files):
        # Rows are numbered by table, and an id names one sample of the data set.
        title = f"{config.title}/{number}" if number else config.title
        try:
            table, beside = _open_table(paths, kind, config.split, shelf)
            folder = Path(config.media) if config.media else beside
            samples = RecordSamples(table, _translator(config, modalities, folder, title, only))
            if table.fields:
                _check_fields(config, samples.fields)
            own_groups = samples.by_group()
        except BadInput as error:
            lost(error)
            continue
        _check_fields(config, samples.fields)
        for group, own in own_groups.items():
            groups.setdefault(group, []).append(own)
            notes.append(f"{title}/{group}: {own.account()}")
    return {group: joined(parts) for group, parts in groups.items()}, notes


def _open_table(paths: Sequence[str], kind: str, split: str, shelf: Shelf) -> tuple[Records, Path]:
    """Open a table; and the folder that relative paths in it begin from."""
    if kind == "hub":
        return open_hub(paths[0], split), Path()
    files = [shelf.path(path, keep=True) for path in paths]
    beside = Path() if is_address(paths[0]) else files[0].parent
    return (open_parquet(files) if kind == "parquet" else open_text(files[0], kind)), beside


def _check_fields(config: DatasetConfig, found: Mapping[str, None]) -> None:
    """Refuse names of fields that no record has, and records without any text.

    Raises:
        ConfigError: naming the fields that there are.
    """
    if not found:  # an empty table, or one without a readable record
        return
    listed = f"{config.title}: found the fields {', '.join(list(found)[:SHOWN])}"
    have = {*found, *config.fields}
    for ours, theirs in config.fields.items():
        if theirs not in found:
            hint = did_you_mean(theirs, found)
            raise ConfigError(f"data.datasets: fields: {ours}: no field {theirs!r}.{hint} {listed}")
    for ours, derived in config.derive.items():
        if derived.field not in have:
            hint = did_you_mean(derived.field, found)
            raise ConfigError(
                f"data.datasets: derive: {ours}: no field {derived.field!r}.{hint} {listed}"
            )
    if not config.targets and not have & set(TEXTS):
        titles = " The file's first line is to hold the titles." * (config.kind == "csv")
        raise ConfigError(
            f"data.datasets: {listed}; expected one of {', '.join(TEXTS)}. Name it: "
            f"'fields: {{caption: FIELD}}'.{titles}"
        )


def _with_targets(
    config: DatasetConfig,
    groups: Mapping[str, Sequence[Sample]],
    modalities: Mapping[str, Modality],
    faults: Faults,
) -> dict[str, Sequence[Sample]]:
    """Samples with their texts made by targets, one list for each group and target."""
    made: dict[str, Sequence[Sample]] = {}
    for group, samples in groups.items():
        last = group.split("+")[-1]
        prompt = modalities[last].caption_prompt if last in modalities else ""
        found = by_target(samples, list(config.targets), prompt, faults, group)
        made |= {f"{group}/{target}": own for target, own in found.items()}
    unused = set(config.targets) - {key.split("/")[1] for key in made}
    if unused:
        raise ConfigError(f"data.datasets: {config.title}: no sample has {', '.join(unused)}")
    return made


def mixture(
    collections: Sequence[Collection], *, media: bool = True
) -> tuple[list[Part], list[Sequence[Sample]]]:
    """What a run draws from: a part for each data set and group of modalities.

    With weights, a data set's share of the draws is its weight; without, its size times its
    epochs. Inside a data set groups are drawn in proportion to their size.

    Args:
        collections: opened data sets.
        media: false leaves the media out.

    Raises:
        ConfigError: two data sets of one name, or weights for some of them only.
    """
    titles = [c.config.title for c in collections]
    if len(set(titles)) < len(titles):
        raise ConfigError(f"data.datasets: give each its own name; found {', '.join(titles)}")
    weighted = [c.config.title for c in collections if c.config.weight is not None]
    if weighted and len(weighted) < len(collections):
        rest = ", ".join(sorted(set(titles) - set(weighted)))
        raise ConfigError(f"data.datasets: {weighted[0]} has a weight, {rest} has none")
    parts: list[Part] = []
    kept: list[Sequence[Sample]] = []
    for collection in collections:
        config, shares = collection.config, _shares(collection)
        for name, samples in collection.groups.items():
            size = len(samples)
            whole = config.weight or collection.size * config.epochs
            group = name.split("/")[0] if media else "text"
            weight, pieces = whole * shares[name], pieces_of(samples)
            parts.append(Part(f"{config.title}/{name}", group, size, weight, config.epochs, pieces))
            kept.append(samples if media else WithoutMedia(samples))
    return parts, kept


def _shares(collection: Collection) -> dict[str, float]:
    """What share of a data set's draws each of its lists gets."""
    targets = collection.config.targets
    own = {
        name: len(samples) * (targets[name.split("/")[1]] if targets else 1)  # type: ignore[index]
        for name, samples in collection.groups.items()
    }
    return {name: size / sum(own.values()) for name, size in own.items()}
