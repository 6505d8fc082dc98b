"""What ``onellm train --dry-run`` prints."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from onellm.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from onellm.train.dry_run import DryRun
    from onellm.train.speed import Speed

SHOWN = 8
"""Samples of the first pass that are printed."""


def tell(run: DryRun, speed: Speed, gpu: str = "") -> None:
    """Print what a run would be.

    Args:
        run: the run.
        speed: what each device is taken to do.
        gpu: name of the card, if it is known.
    """
    from rich.console import Console

    console = Console()
    _parts(run, console)
    _memory(run, console)
    if gpu:
        _room(run, gpu, console)
    # Only the LLM pads, and other objectives leave it out.
    padding = f"; {run.padding:.1%} padding" if run.config.stage.objective == "lm" else ""
    console.print(
        f"{run.steps:,} steps of {run.config.batch.size} samples, in {run.passes} pass(es) of "
        f"{run.per_device:.3g} on each of {run.world} device(s){padding}\n"
        f"{run.flops / 1e12:,.3g} TFLOP a step; about {duration(run.seconds(speed.tflops))} at "
        f"{speed.tflops:.3g} TFLOP/s of each device: {speed.source}\n",
        highlight=False,
    )
    console.print("first pass, what is learned in \\[\\[ ]]:", highlight=False)
    for text in run.example_texts[:SHOWN]:
        console.print(f"  {text}", markup=False, highlight=False)
    if len(run.example_texts) > SHOWN:
        console.print(f"  … {len(run.example_texts) - SHOWN} more", highlight=False)
    for said in run.notes:
        console.print(f"note: {said}", markup=False, highlight=False)


def _parts(run: DryRun, console: Console) -> None:
    from rich.table import Table

    table = Table("part", title="parameters", title_justify="left", box=None, pad_edge=False)
    table.add_column("all", justify="right")
    table.add_column("trained", justify="right")
    for part, count in run.parts.items():
        table.add_row(part, f"{count.all:,}", f"{count.trained:,}" if count.trained else "–")
    totals = [sum(c.all for c in run.parts.values()), sum(c.trained for c in run.parts.values())]
    table.add_row("total", *(f"{total:,}" for total in totals), style="bold")
    console.print(table, "", sep="\n")


def _memory(run: DryRun, console: Console) -> None:
    from rich.table import Table

    title = f"memory of each of {run.world} device(s), at the dearest pass of "
    title += "the first step" if run.looked_at == 1 else f"the first {run.looked_at} steps"
    console.print(title, style="italic", highlight=False)
    table = Table("component", box=None, pad_edge=False)
    table.add_column("GB", justify="right")
    for part, size in run.memory.items():
        table.add_row(part, f"{size / 1e9:,.2f}")
    table.add_row("peak", f"{run.peak / 1e9:,.2f}", style="bold")
    for part, size in run.host.items():
        table.add_row(f"in the machine's memory: {part}", f"{size / 1e9:,.2f}")
    console.print(table, "", sep="\n")


def _room(run: DryRun, gpu: str, console: Console) -> None:
    """Warn of a run that does not fit, with what to change."""
    from rich.console import Console as Printer

    from onellm.train.gpus import ROOM, gpu_of
    from onellm.train.remedies import remedies

    card = gpu_of(gpu)
    has = (
        f"{card.room / 1e9:.1f} GB that tensors can have on the {gpu} ({ROOM:.0%} of "
        f"{card.gibibytes:g} GiB, an assumption)"
    )
    if run.peak <= card.room:
        console.print(f"it fits: {run.peak / 1e9:.1f} of {has}\n", highlight=False)
        return
    said = f"warning: {run.peak / 1e9:.1f} GB are more than the {has}."
    with Printer(stderr=True).status("trying what would make it fit"):
        found = remedies(run.config, run.world, card.room, run.estimate)
    ways = [f"{shlex.join(one.overrides)} ({one.peak / 1e9:.1f} GB)" for one in found]
    if ways:
        said += " It would fit with " + ", or with ".join(ways) + "."
    else:
        said += " Nothing that is known here makes it fit: take more or larger GPUs."
    console.print(f"{said}\n", style="bold", markup=False, highlight=False)
