"""What ``onellm train --dry-run`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onellm.progress import duration

if TYPE_CHECKING:
    from rich.console import Console

    from onellm.train.dry_run import DryRun
    from onellm.train.speed import Speed

SHOWN = 8
"""Samples of the first pass that are printed."""


def tell(run: DryRun, speed: Speed) -> None:
    """Print what a run would be.

    Args:
        run: the run.
        speed: what each device is taken to do.
    """
    from rich.console import Console

    console = Console()
    _parts(run, console)
    _memory(run, console)
    console.print(
        f"{run.steps:,} steps of {run.config.batch.size} samples, in {run.passes} pass(es) of "
        f"{run.per_device:.3g} on each of {run.world} device(s); {run.padding:.1%} padding\n"
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
