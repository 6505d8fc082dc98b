"""Verbs that look at what there is: ls, show, doctor."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from onellm.manners import manners, verb_help

looking = typer.Typer()


@looking.command(
    name="ls",
    **verb_help("List modalities, presets, stages and tasks.", "onellm ls", "onellm ls tasks"),
)
def list_choices(
    kind: Annotated[
        str | None,
        typer.Argument(help="modalities, presets, stages, hardware or tasks; all if left out."),
    ] = None,
) -> None:
    """Print tables of what there is."""
    with manners():
        from rich.console import Console
        from rich.table import Table

        from onellm.catalogue import listings

        for listing in listings(kind):
            table = Table(title=listing.title, title_justify="left", box=None, pad_edge=False)
            for column in listing.columns:
                table.add_column(column, overflow="fold", no_wrap=column == "name")
            for row in listing.rows:
                table.add_row(*row)
            Console().print(table, *([listing.note] if listing.note else []), "", sep="\n")


@looking.command(
    **verb_help(
        "Describe a modality, a preset, a stage or a task.",
        "onellm show audio",
        "onellm show small",
        "onellm show instruct",
        "onellm show textvqa",
    )
)
def show(name: Annotated[str, typer.Argument(help="A name of: onellm ls.")]) -> None:
    """Print a description, or the YAML file."""
    with manners():
        from onellm.catalogue import describe

        typer.echo(describe(name))


@looking.command(
    **verb_help("Check versions, devices and extras, and run a tiny model.", "onellm doctor")
)
def doctor() -> None:
    """Print findings as they come; exit code 1 if something will not work."""
    with manners():
        from onellm.doctor import examine

        marks: dict[str, Any] = {"ok": ("ok  ", "green"), "note": ("note", "yellow")}
        worst = 0
        for finding in examine():
            mark, colour = marks.get(finding.state, ("BAD ", "red"))
            worst = max(worst, finding.state == "bad")
            typer.secho(mark, fg=colour, nl=False)
            typer.echo(f"  {finding.what:<16} {finding.found}")
            if finding.remedy:
                typer.echo(f"{'':<23}{finding.remedy}")
    raise typer.Exit(int(worst))
