"""The verb of weights: convert."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onellm.cli_model import Kind
from onellm.errors import ConfigError
from onellm.manners import manners, verb_help

weights = typer.Typer()


class Format(StrEnum):
    """What `convert` writes."""

    onellm = "onellm"
    published = "published"


@weights.command(
    **verb_help(
        "Convert published weights to this library's format, or back.",
        "onellm convert OneLLM-7B/consolidated.00-of-01.pth models/onellm-7b",
        "onellm convert OneLLM-7B-hf models/onellm-7b --dtype float16",
        "onellm convert models/mine published/mine --to published",
        more="SOURCE is a .pth file, a folder of .sN.pth parts or model-parallel shards beside "
        "params.json, or a saved model. One file is in memory at a time.",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="What to read.")],
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    to: Annotated[Format, typer.Option(help="What to write.")] = Format.onellm,
    dtype: Annotated[Kind | None, typer.Option(help="Of the weights; as they are.")] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the vision tower, such as heads=16."),
    ] = None,
) -> None:
    """Run :mod:`onellm.convert` and list what was written."""
    with manners():
        import torch

        from onellm.config import apply_overrides
        from onellm.convert import from_published, to_published
        from onellm.progress import watch

        if clip and to is Format.published:
            raise ConfigError("--clip describes a published checkpoint that is read, not written")
        kind = getattr(torch, dtype) if dtype else None
        with watch() as progress:
            if to is Format.published:
                done = to_published(source, target, dtype=kind, progress=progress)
            else:
                sizes = apply_overrides({}, clip or [])
                done = from_published(source, target, clip=sizes, dtype=kind, progress=progress)
    for file, size in done.files:
        typer.echo(f"{size / 1e6:12,.1f} MB  {file}")
    if done.dropped:
        typer.echo(f"dropped, since nothing reads them: {', '.join(done.dropped)}")
    for note in done.notes:
        typer.echo(f"note: {note}")
    total = sum(size for _, size in done.files) / 1e6
    typer.echo(f"{done.tensors} weights, {done.parameters:,} parameters, {total:,.1f} MB: {target}")
