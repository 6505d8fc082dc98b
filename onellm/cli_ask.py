"""Verbs that ask a model: generate, embed, chat."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from onellm.cli_model import (
    Bits,
    Device,
    Dtype,
    Model,
    NeededModel,
    check_settings,
    load_model,
)
from onellm.errors import ConfigError
from onellm.manners import manners, verb_help

asking = typer.Typer()

MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Nucleus mass, with a temperature.")]
Seed = Annotated[int, typer.Option(help="Of sampling.")]
Beams = Annotated[int, typer.Option(min=1, help="Answers that beam search follows at a time.")]
BatchSize = Annotated[int, typer.Option(min=1, help="How many at a time; changes no answer.")]

# Options of modalities are not known before the model is; they arrive in order in `words`, and so
# does a misspelt option, which `_modalities` tells from them.
_OPEN = {"ignore_unknown_options": True}


@asking.command(
    context_settings=_OPEN,
    **verb_help(
        "Ask a model about files of any modality.",
        'onellm generate --model DIR "What do you hear?" --audio clip.flac',
        'onellm generate --model DIR "Do they match?" --image dog.jpg --audio dog.wav',
        'onellm generate --model DIR "What is this?" --depth picture.jpg+map.png',
        'onellm generate --model DIR "What is this?" --each --image a.jpg --image b.jpg',
        "onellm generate --model DIR --jsonl questions.jsonl --out answers.jsonl",
        "onellm show audio        (the files a modality reads)",
        more="Each file is written behind its modality. The model is shown all of them in their "
        "order, in front of the question, as in training; one that was trained on one medium at a "
        "time, as the quick start's is, answers about one alone. Without a prompt the last file's "
        "caption prompt is asked. A line of a JSONL file is such as "
        '{"prompt": "What is it?", "media": [["image", "dog.jpg"]]}.',
    ),
)
def generate(
    context: typer.Context,
    model: NeededModel = "",
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT --MODALITY FILE",
            show_default=False,
            help="A question, and files behind their modalities, in any order.",
        ),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="Ask about each file by itself; prints JSONL.")
    ] = False,
    jsonl: Annotated[str, typer.Option(help="Ask the questions of a file; - reads them.")] = "",
    out: Annotated[Path | None, typer.Option(help="JSONL file of answers.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Note files that cannot be read, and go on.")
    ] = False,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    beams: Beams = 1,
    seed: Seed = 0,
    device: Device = "",
    dtype: Dtype = "float32",
    bits: Bits = 0,
) -> None:
    """Print a model's answer as it comes, or JSON lines of many."""
    with manners():
        from onellm import questions as asked
        from onellm.model_folder import registered_name

        known = _modalities(context, model, words or [])
        check_settings(model, dtype, bits)
        if out is not None and out.is_dir():
            raise ConfigError(f"--out {out} is a folder; name a JSONL file in it")
        if beams > 1 and temperature > 0:
            raise ConfigError(
                "--beams is beam search, which draws nothing: leave out --temperature"
            )
        if jsonl and words:
            raise ConfigError("--jsonl has the questions; leave out prompt and files")
        questions = (
            asked.read_questions(jsonl) if jsonl else asked.typed_questions(words or [], each)
        )
        for question in questions:
            question.media = [(registered_name(n, known), path) for n, path in question.media]
        if not skip_bad:
            asked.check_files(questions)
        loaded = load_model(model, device, dtype, bits)
        settings: dict[str, Any] = {
            **{"max_new_tokens": max_new_tokens, "temperature": temperature},
            **{"top_p": top_p, "beams": beams, "seed": seed},
        }
        if each or jsonl or out:
            how = {"batch_size": batch_size, "skip_bad": skip_bad, **settings}
            answers = asked.answer_questions(loaded, questions, **how)
            written, bad = asked.write_lines(answers, out, typer.echo)
            if out or bad:
                broken = f", {bad} of them without an answer: see 'error' there" if bad else ""
                typer.echo(f"{written} lines{f': {out}' if out else ''}{broken}", err=True)
            return
        (question,) = questions
        prompt = asked.prompt_of(loaded, question)
        for piece in loaded.stream(prompt, question.media, **settings):
            typer.echo(piece, nl=False)
        typer.echo()


@asking.command(
    context_settings=_OPEN,
    **verb_help(
        "Turn files into vectors for retrieval.",
        "onellm embed --model DIR *.flac -o sounds.npz",
        "onellm embed --model DIR --image dog.jpg --audio dog.wav -o dog.npz",
        more="The .npz holds vectors (files x width), files and modalities; of normalised vectors, "
        "dot products are cosines. A file of a type that several modalities read needs "
        "--MODALITY in front of it.",
    ),
)
def embed(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz file to write.")],
    model: NeededModel = "",
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES --MODALITY FILE",
            show_default=False,
            help="Files, behind their modalities where several read such a file.",
        ),
    ] = None,
    normalize: Annotated[bool, typer.Option(help="Divide vectors by their length.")] = True,
    batch_size: BatchSize = 16,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Run :func:`onellm.vectors.embed_files` and write what it gives."""
    with manners():
        from onellm.model_folder import registered_name
        from onellm.questions import Question, check_files, options_in_order

        known = _modalities(context, model, words or [])
        check_settings(model, dtype)
        given = [
            (registered_name(name, known) if name else "", file)
            for name, file in options_in_order(words or [])
        ]
        if not given:
            raise ConfigError("no files to embed")
        if out.is_dir():
            raise ConfigError(f"--out {out} is a folder; name a .npz file in it")
        check_files([Question(media=given)])
        from onellm.vectors import embed_files, modality_of, save_vectors

        loaded = load_model(model, device, dtype)
        files = [(name or modality_of(loaded, file), file) for name, file in given]
        vectors = embed_files(loaded, files, batch_size=batch_size, normalize=normalize)
        save_vectors(out, vectors, files)
    typer.echo(f"{len(files)} vectors of {vectors.shape[1]} numbers: {out}")


def _modalities(context: typer.Context, model: str, words: list[str]) -> list[str]:
    """The model's modalities, once all options among the words are known to be of theirs.

    Raises:
        ConfigError: an option that there is not, with the nearest spelling.
        CheckpointError: the model is not there.
    """
    from onellm.model_folder import check_options, modality_names
    from onellm.questions import option_names

    own = [o for p in context.command.params for o in (*p.opts, *p.secondary_opts)]
    options = [o[2:] for o in (*own, *context.help_option_names) if o.startswith("--")]
    known = modality_names(model) if model else []
    check_options(option_names(words), known, options)
    return known


@asking.command(
    **verb_help(
        "Talk with a model.",
        "onellm chat --model quickstart",
        "onellm chat --model DIR --temperature 0.7 --top-p 0.9",
        "onellm chat --model DIR --dtype bfloat16 --bits 8",
        more="/help lists what can be typed; /image FILE, say, shows it a picture. All that has "
        "been shown stands in front of the first question, as in training; a model that was "
        "trained on one medium and one question at a time, as the quick start's is, needs /reset "
        "before the next.",
    )
)
def chat(
    model: Model,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    device: Device = "",
    dtype: Dtype = "float32",
    bits: Bits = 0,
) -> None:
    """Run :func:`onellm.chat.chat` on this terminal."""
    with manners():
        loaded = load_model(model, device, dtype, bits)
        from onellm import chat as talk

        conversation = talk.Conversation(
            loaded, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        if sys.stdin.isatty():
            typer.secho(talk.help_text(conversation), dim=True)
        talk.chat(conversation, _line_reader(), lambda text: typer.echo(text, nl=False))


def _line_reader() -> Callable[[], str]:
    """A reader of lines, with a prompt and a history where somebody is typing."""
    if not sys.stdin.isatty():
        return input
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() its history
    return lambda: input("> ")
