"""The command line: all verbs, each in the file of its kind.

Verbs import what they need when they run, so that ``--help`` is instant.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

import onellm
from onellm.cli_ask import asking
from onellm.cli_data import data_app
from onellm.cli_eval import eval_app
from onellm.cli_look import looking
from onellm.cli_train import training
from onellm.cli_weights import weights

app = typer.Typer(
    name="onellm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Language models that understand signals: train one, ask it, measure it.",
)
# In the order in which --help lists them. Those without a name add their verbs to the list itself.
for verbs in (training, data_app, asking, eval_app, weights, looking):
    app.add_typer(verbs)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onellm {onellm.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """The ``onellm`` command.

    A thread that waits by spinning takes its core from whoever else wants it, the other threads of
    the same product among them: on two cores with other work a step took up to sixteen times as
    long (docs/lab-notes.md). It has to be said before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
