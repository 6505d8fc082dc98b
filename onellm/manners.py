"""What all verbs of the command line share: how they fail, and how their help looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from onellm.errors import OneLLMError, plain_reason
from onellm.quiet import hush

RESUMABLE = "interrupted: the same command goes on where this one stopped"


@contextmanager
def manners(on_interrupt: str = "interrupted") -> Iterator[None]:
    """Our own errors in one line without a traceback (exit code 2), Ctrl-C with a hint (130)."""
    hush()
    try:
        yield
    except (OneLLMError, OSError) as error:
        message = plain_reason(error) if isinstance(error, OSError) else str(error)
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as interrupt:
        typer.echo(f"\n{on_interrupt}", err=True)
        raise typer.Exit(130) from interrupt


def verb_help(short: str, *examples: str, more: str = "") -> dict[str, Any]:
    """A verb's help: one sentence for the list of verbs, further ones, and examples."""
    lines = "\n".join(f"  {example}" for example in examples)
    text = f"{short} {more}".rstrip()
    # \b keeps the lines of the examples as they are.
    return {"short_help": short, "help": f"{text}\n\n\b\nExamples:\n{lines}"}
