"""``onellm data``: look at data, copy them into shards, compute once what is frozen."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from onellm.errors import BadInput, ConfigError
from onellm.manners import manners, verb_help

if TYPE_CHECKING:
    from onellm.data.sample import Sample
    from onellm.data.surveying import Fault, Reading, Survey
    from onellm.train.config import BatchConfig, DataConfig

SHOWN = 10

data_app = typer.Typer(
    name="data",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    **verb_help(
        "Check, describe, convert and cache data.",
        "onellm data check my-stage.yaml",
        "onellm data stats train.json --modality audio --model models/start",
        "onellm data convert train.json shards --media images",
        "onellm data cache my-stage.yaml cache/soft",
        more="Formats: docs/data.md.",
    ),
)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A run's YAML, a stage of onellm ls stages, or data themselves: a JSON, JSONL, CSV or "
        "Parquet file, a tar or a folder of tars.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Over a YAML, such as data.max_tokens=512."),
]
ModalityOption = Annotated[
    str, typer.Option("--modality", help="Of the media, for data that do not say.")
]
Media = Annotated[str, typer.Option(help="Folder that relative paths begin from.")]
FormatOption = Annotated[
    str, typer.Option("--format", help="json, jsonl, csv, parquet, hub or tar; by the suffix.")
]
Model = Annotated[str, typer.Option(help="A saved model: its options, tokenizer, prompt format.")]
Tokenizer = Annotated[str, typer.Option(help="Folder or hub id of a text tokenizer.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that share the reading.")]


@data_app.command(
    **verb_help(
        "Read everything once and tell what is missing, broken, too long or without an answer.",
        "onellm data check my-stage.yaml",
        "onellm data check instruct data.folder=shards --workers 8",
        "onellm data check train.json --media images --model models/start --out faults.jsonl",
        more="Exit code 1 if some sample cannot be trained on.",
    )
)
def check(
    source: SourceArgument,
    overrides: Overrides = None,
    modality: ModalityOption = "",
    media: Media = "",
    format: FormatOption = "auto",
    model: Model = "",
    tokenizer: Tokenizer = "",
    max_tokens: Annotated[int, typer.Option(min=0, help="Longest text; the run's.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSONL file of all faults.")] = None,
    workers: Workers = 0,
) -> None:
    """Print a table of faults by data set and modalities, and the first of them."""
    with manners():
        asked = _Asked(
            *(source, overrides or [], modality, media, format, model, tokenizer), lenient=True
        )
        limit = 0 if asked.reading.note else max_tokens or asked.max_tokens
        found = _survey(asked, limit, True, workers, "reading everything")
        _table(["data", "modalities", "samples", *_kinds()], found.rows(), right=2)
        for note in asked.notes[:SHOWN]:
            typer.echo(f"read: {note}")
        for fault in found.unopened:
            typer.echo(f"not opened: {fault.message}")
        _faults(found.faults)
        if out is not None:
            every = [*found.unopened, *found.faults]
            lines = "".join(json.dumps(asdict(f), ensure_ascii=False) + "\n" for f in every)
            out.write_text(lines, encoding="utf-8")
            typer.echo(f"faults: {out}")
        if asked.reading.note:
            typer.echo(f"note: texts were not measured in tokens: {asked.reading.note}")
    raise typer.Exit(0 if found.usable else 1)


@data_app.command(
    **verb_help(
        "Describe lengths and modalities, with a histogram.",
        "onellm data stats my-stage.yaml",
        "onellm data stats train.json --model models/start --png lengths.png",
        "onellm data stats train.json --tokenizer meta-llama/Llama-2-7b-hf --batch 512",
        more="Texts alone are read, not the media. Without a tokenizer, words are counted.",
    )
)
def stats(
    source: SourceArgument,
    overrides: Overrides = None,
    modality: ModalityOption = "",
    media: Media = "",
    format: FormatOption = "auto",
    model: Model = "",
    tokenizer: Tokenizer = "",
    png: Annotated[Path | None, typer.Option(help="Write the histogram as a picture.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples of a step; the YAML's, or 128.")
    ] = None,
    per_device: Annotated[
        int | None, typer.Option(min=1, help="Samples of a pass; the YAML's, or 4.")
    ] = None,
    workers: Workers = 0,
) -> None:
    """Print lengths by modalities, bars, and what share of positions would be padding."""
    with manners():
        from onellm.data import histogram
        from onellm.data.batching import Batching, cut_texts

        asked = _Asked(source, overrides or [], modality, media, format, model, tokenizer)
        cut = asked.max_tokens if not asked.reading.note else 0  # words are not tokens
        if cut:
            asked.reading = cut_texts(asked.reading, cut)
        found = _survey(asked, 0, False, workers, "reading texts")
        if not found.tokens:
            raise ConfigError(f"{source}: expected samples with texts; found none")
        if asked.reading.note:
            typer.echo(f"texts in words, not tokens: {asked.reading.note}")
        titles = ["modalities", "samples", "positions", "least", "median", "90 %", "99 %", "most"]
        _table(titles, histogram.length_rows(found.tokens), right=1)
        lengths = [n for group in found.tokens.values() for n in group]
        learned = sum(map(sum, found.learned.values()))
        typer.echo(f"learned: {learned:,} of {sum(lengths):,} positions")
        typer.echo("\npositions   samples")
        typer.echo("\n".join(histogram.bars(lengths)))
        if cut:
            typer.echo(f"\ntexts are cut behind {cut:,} tokens (data.max_tokens), as in the run")
        batching = Batching.of(asked.batch, batch, per_device)
        typer.echo(f"\n{batching.padding_line(lengths)}")
        if asked.batch is not None:
            typer.echo(f"{source} {batching.own_line(lengths)}")
        if found.faults:
            first = found.faults[0].message
            typer.echo(f"no text or answer: {len(found.faults):,}; the first: {first}")
        if png is not None:
            histogram.draw(found.tokens, png)
            typer.echo(f"histogram: {png}")


@data_app.command(
    **verb_help(
        "Copy data of any format into tar shards.",
        "onellm data convert train.json shards --media images",
        "onellm data convert my-stage.yaml shards --megabytes 1000 --skip-bad",
        "onellm data convert wavcaps.csv shards --modality audio",
        more="Each shard holds samples of one set of modalities; shards.json lists them.",
    )
)
def convert(
    source: SourceArgument,
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    overrides: Overrides = None,
    modality: ModalityOption = "",
    media: Media = "",
    format: FormatOption = "auto",
    megabytes: Annotated[float, typer.Option(min=0.001, help="10^6 bytes of a shard.")] = 500.0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out samples whose files cannot be read.")
    ] = False,
) -> None:
    """Run :func:`onellm.data.convert.convert` and tell what was written."""
    with manners():
        from onellm.data.convert import convert as write
        from onellm.progress import watch

        asked = _Asked(source, overrides or [], modality, media, format, "", "", skip=skip_bad)
        faults = asked.faults
        with watch() as progress:
            progress.phase("converting", sum(map(len, asked.parts)))
            done = write(
                asked.parts,
                asked.reading.modalities,
                target,
                faults=faults,
                megabytes=megabytes,
                advance=progress.advance,
            )
    size = sum(one["bytes"] for one in done.shards.values())
    for group, count in done.samples.items():
        typer.echo(f"{group}: {count:,} samples")
    if faults.total:
        typer.echo(f"left out: {faults.total:,}; the first: {faults.found[0].message}")
    typer.echo(f"{len(done.shards)} shard(s), {size / 1e6:,.1f} MB: {target}")


@data_app.command(
    **verb_help(
        "Compute what a stage's frozen parts make of its media, once and for all runs.",
        "onellm data cache my-stage.yaml cache/soft",
        "onellm data cache align_image cache/f stage.frozen=features stage.frozen_views=2",
        "onellm data cache instruct cache/s stage.frozen=soft data.augment=false",
        "onellm train instruct stage.frozen=soft data.augment=false stage.frozen_folder=cache/s",
        more="stage.frozen says what is written: encoder features (of video averaged over frames), "
        "or soft tokens. A cache of other weights, settings or files is refused.",
    )
)
def cache(
    config: Annotated[str, typer.Argument(help="A run's YAML, or a stage of onellm ls stages.")],
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    overrides: Overrides = None,
) -> None:
    """Run :class:`onellm.train.cache.CacheWriter` over a stage's data."""
    with manners():
        from onellm.progress import watch
        from onellm.train.cache import write_cache
        from onellm.train.packaged import read_config

        settings = read_config(config, overrides or [])
        with watch() as progress:
            count, size, left_out = write_cache(settings, target, progress)
    typer.echo(f"{count:,} outputs, {size / 1e6:,.1f} MB: {target}")
    if left_out:
        typer.echo(f"left out, by data.faults: {left_out:,} broken samples or media")
    typer.echo(f"use it with: stage.frozen={settings.stage.frozen} stage.frozen_folder={target}")


# -- shared -------------------------------------------------------------------------------------


class _Asked:
    """What the arguments of a verb mean: lists of samples, and how to read them."""

    def __init__(
        self,
        source: str,
        overrides: Sequence[str],
        modality: str,
        media: str,
        format: str,
        model: str,
        tokenizer: str,
        *,
        skip: bool = True,
        lenient: bool = False,
    ) -> None:
        from onellm.data.faults import FaultConfig, Faults, stop
        from onellm.data.surveying import reading_of
        from onellm.train.mixture import open_data

        self.max_tokens, self.batch = 0, cast("BatchConfig | None", None)
        if _is_config(source):
            from onellm.train.packaged import read_config

            settings = read_config(source, overrides)
            wanted = model or settings.model
            # The data may well be looked at before there is a model.
            known = model or Path(wanted, "config.json").is_file()
            self.reading: Reading = reading_of(wanted if known else "", tokenizer)
            names: Sequence[str] = settings.stage.modalities
            data: DataConfig = settings.data
            self.max_tokens, self.batch = data.max_tokens, settings.batch
        else:
            if overrides:
                raise ConfigError(f"{overrides[0]}: KEY=VALUE goes with a run's YAML")
            self.reading = reading_of(model, tokenizer)
            names = list(self.reading.modalities)
            data = _described(source, modality, media, format)
        # Samples that are gone through to open the data; whatever a run would do about them.
        self.faults = Faults(FaultConfig(policy="skip", share=1.0) if skip else None)
        self.unopened: list[BadInput] = []
        lost = self.unopened.append if lenient else stop
        drawn = open_data(data, self.reading.modalities, names, self.faults, lost)
        if not drawn.parts and len(self.unopened) == 1:
            raise self.unopened[0]
        self.names = [part.name for part in drawn.parts]
        self.groups = [part.group for part in drawn.parts]
        self.parts: Sequence[Sequence[Sample]] = drawn.kept
        self.notes = drawn.notes


def _is_config(source: str) -> bool:
    from onellm.train.packaged import stage_names

    file = Path(source)
    return file.suffix in (".yaml", ".yml") or (source in stage_names() and not file.exists())


def _described(source: str, modality: str, media: str, format: str) -> DataConfig:
    from onellm.config import parse
    from onellm.spelling import did_you_mean
    from onellm.train.config import DataConfig
    from onellm.train.packaged import stage_names

    if format == "auto" and re.fullmatch(r"[^.:*?{]+", source) and not Path(source).exists():
        raise ConfigError(
            f"{source}: expected a run's YAML, a packaged stage, a file of data or a folder of "
            f"tars; found no such file.{did_you_mean(source, stage_names(), '')}"
        )
    one = {"path": source, "modality": modality, "media": media, "format": format}
    return parse(DataConfig, {"datasets": [one]}, where=source)


def _survey(asked: _Asked, max_tokens: int, media: bool, workers: int, title: str) -> Survey:
    from onellm.data.surveying import Surveyor, survey
    from onellm.progress import watch

    with watch() as progress:
        progress.phase(title, sum(map(len, asked.parts)))
        surveyor = Surveyor(asked.parts, asked.reading, max_tokens=max_tokens, media=media)
        found = survey(asked.names, asked.groups, surveyor, workers, progress.advance)
    for error in asked.unopened:
        found.add_unopened(error)
    for fault in asked.faults.take():
        found.add_left_out(fault.modality, fault.file, fault.message)
    return found


def _faults(faults: Sequence[Fault]) -> None:
    """Print the first faults; what is wrong with many samples, a shard say, once."""
    times = Counter((fault.kind, fault.message) for fault in faults)
    for kind, message in list(times)[:SHOWN]:
        count = times[kind, message]
        typer.echo(f"{kind}: {message}" + (f" ({count:,} samples)" if count > 1 else ""))
    if len(times) > SHOWN:
        typer.echo(f"… and {len(times) - SHOWN:,} more (--out writes all of them)")


def _kinds() -> tuple[str, ...]:
    from onellm.data.surveying import KINDS

    return KINDS


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: int) -> None:
    """Print a table; columns from ``right`` on hold numbers."""
    from rich.console import Console
    from rich.table import Table

    table: Any = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number >= right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
