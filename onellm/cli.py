"""The command line. Verbs import what they need when they run, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import onellm
from onellm.cli_data import data_app
from onellm.cli_eval import eval_app
from onellm.errors import ConfigError
from onellm.manners import manners as _manners
from onellm.manners import verb_help as _help
from onellm.questions import options_in_order

if TYPE_CHECKING:
    from onellm.model import OneLLM

app = typer.Typer(
    name="onellm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Language models that understand signals: train one, ask it, measure it.",
)

RESUMABLE = "interrupted: the same command goes on where this one stopped"


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


class Kind(StrEnum):
    """Types of weights on disk."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


# -- training -----------------------------------------------------------------------------------


@app.command(
    **_help(
        "Train, evaluate and report on the packaged real data of eight modalities.",
        "onellm quickstart",
        "onellm quickstart --preset smoke --out smoke",
        "onellm quickstart --starter my-shards --seed 1 --out mine",
    )
)
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the model and the report.")] = Path(
        "quickstart"
    ),
    starter: Annotated[
        Path | None,
        typer.Option(help="Folder of <modality>-train.tar and -test.tar; the packaged data."),
    ] = None,
    preset: Annotated[str, typer.Option(help="small (half an hour) or smoke (minutes).")] = "small",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with what --out holds.")] = True,
) -> None:
    """Run :func:`onellm.quickstart.run` under progress bars."""
    with _manners(RESUMABLE):
        from onellm.progress import watch
        from onellm.quickstart import run

        with watch() as progress:
            run(out, starter, preset, seed, resume, progress)
    page = out / "report.html"
    if page.is_file():
        typer.echo(f"report: {page}\nmodel:  {out}  (onellm chat --model {out})")


from onellm import cli_train  # noqa: E402, F401 - registers train, export and plot here in the list

app.add_typer(data_app)


# -- asking -------------------------------------------------------------------------------------

Model = Annotated[str, typer.Option(help="Folder of a saved model, or a hub id.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; by default the GPU if any.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")]
Bits = Annotated[
    int, typer.Option(help="8 or 4: the LLM's weights take a half or a quarter of bfloat16's room.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Nucleus mass, with a temperature.")]
Seed = Annotated[int, typer.Option(help="Of sampling.")]
Beams = Annotated[int, typer.Option(min=1, help="Answers that beam search follows at a time.")]
BatchSize = Annotated[int, typer.Option(min=1, help="How many at a time; changes no answer.")]


@app.command(
    # Options of modalities are not known before the model is; they arrive in order in `words`.
    context_settings={"ignore_unknown_options": True},
    **_help(
        "Ask a model about files of any modality.",
        'onellm generate --model DIR "What do you hear?" --audio clip.flac',
        'onellm generate --model DIR "Do they match?" --image dog.jpg --audio dog.wav',
        'onellm generate --model DIR "What is this?" --depth rgb.jpg+map.png',
        'onellm generate --model DIR "What is this?" --each --image a.jpg --image b.jpg',
        "onellm generate --model DIR --jsonl questions.jsonl --out answers.jsonl",
        "onellm show audio        (the files a modality reads)",
        more="Each file has its modality in front of it; their order is kept. Without a prompt "
        "the last file's caption prompt is asked. A line of a JSONL file is such as "
        '{"prompt": "What is it?", "media": [["image", "dog.jpg"]]}.',
    ),
)
def generate(
    model: Model,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT --MODALITY FILE", show_default=False),
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
    with _manners():
        from onellm import questions as asked

        several = bool(each or jsonl or out)
        questions = (
            asked.read_questions(jsonl) if jsonl else asked.typed_questions(words or [], each)
        )
        if jsonl and words:
            raise ConfigError("--jsonl has the questions; leave out prompt and files")
        loaded = _load(model, device, dtype, bits)
        for question in questions:
            question.media = [(_modality(loaded, name), path) for name, path in question.media]
        settings: dict[str, Any] = {
            **{"max_new_tokens": max_new_tokens, "temperature": temperature},
            **{"top_p": top_p, "beams": beams, "seed": seed},
        }
        if several:
            how = {"batch_size": batch_size, "skip_bad": skip_bad, **settings}
            answers = asked.answer_questions(loaded, questions, **how)
            asked.write_lines(answers, out, typer.echo)
            return
        (question,) = questions
        prompt = asked.prompt_of(loaded, question)
        for piece in loaded.stream(prompt, question.media, **settings):
            typer.echo(piece, nl=False)
        typer.echo()


@app.command(
    context_settings={"ignore_unknown_options": True},
    **_help(
        "Turn files into vectors for retrieval.",
        "onellm embed --model DIR *.flac -o sounds.npz",
        "onellm embed --model DIR --image dog.jpg --audio dog.wav -o dog.npz",
        more="The .npz holds vectors (files x width), files and modalities; of normalised vectors, "
        "dot products are cosines. A file of a type that several modalities read needs "
        "--MODALITY in front of it.",
    ),
)
def embed(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz file to write.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="FILES --MODALITY FILE", show_default=False)
    ] = None,
    normalize: Annotated[bool, typer.Option(help="Divide vectors by their length.")] = True,
    batch_size: BatchSize = 16,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Run :func:`onellm.vectors.embed_files` and write what it gives."""
    with _manners():
        given = list(options_in_order(words or []))
        if not given:
            raise ConfigError("no files to embed")
        from onellm.vectors import embed_files, modality_of, save_vectors

        loaded = _load(model, device, dtype)
        files = [
            (_modality(loaded, name) if name else modality_of(loaded, file), file)
            for name, file in given
        ]
        vectors = embed_files(loaded, files, batch_size=batch_size, normalize=normalize)
        save_vectors(out, vectors, files)
    typer.echo(f"{len(files)} vectors of {vectors.shape[1]} numbers: {out}")


def _modality(model: OneLLM, name: str) -> str:
    """A modality option's registered name, or an error with the nearest spelling of an option."""
    from onellm.spelling import did_you_mean

    for modality in model.modalities.values():
        if name in (modality.name, modality.published_name):
            return modality.name
    own = ["max-new-tokens", "temperature", "top-p", "seed", "device", "model", "beams", "bits"]
    hint = did_you_mean(name, [*model.modalities, *own])
    raise ConfigError(f"this model has no modality {name!r} (--{name}).{hint}")


def _load(model: str, device: str, dtype: str, bits: int = 0) -> OneLLM:
    import torch

    from onellm.spelling import did_you_mean

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise ConfigError(f"unknown --dtype {dtype}.{did_you_mean(dtype, kinds)}")
    if bits not in (0, 4, 8):
        raise ConfigError(f"--bits {bits}: the LLM's weights can have 8 or 4")
    if not device:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from error
    loaded = onellm.OneLLM.from_pretrained(model, device=device, dtype=kinds[dtype])
    if bits:
        from onellm.quantize import quantize_llm

        quantize_llm(loaded, bits)
    return loaded


@app.command(
    **_help(
        "Talk with a model.",
        "onellm chat --model quickstart",
        "onellm chat --model DIR --temperature 0.7 --top-p 0.9",
        "onellm chat --model DIR --dtype bfloat16 --bits 8",
        more="/help lists what can be typed; /image FILE, say, shows it a picture.",
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
    with _manners():
        from onellm import chat as talk

        conversation = talk.Conversation(
            _load(model, device, dtype, bits),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
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


# -- measuring ----------------------------------------------------------------------------------

app.add_typer(eval_app)


# -- weights ------------------------------------------------------------------------------------


class Format(StrEnum):
    """What `convert` writes."""

    onellm = "onellm"
    published = "published"


@app.command(
    **_help(
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
    with _manners():
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


# -- looking ------------------------------------------------------------------------------------


@app.command(
    name="ls",
    **_help("List modalities, presets, stages and tasks.", "onellm ls", "onellm ls tasks"),
)
def list_choices(
    kind: Annotated[
        str | None,
        typer.Argument(help="modalities, presets, stages, hardware or tasks; all if left out."),
    ] = None,
) -> None:
    """Print tables of what there is."""
    with _manners():
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


@app.command(
    **_help(
        "Describe a modality, a preset, a stage or a task.",
        "onellm show audio",
        "onellm show small",
        "onellm show instruct",
        "onellm show textvqa",
    )
)
def show(name: Annotated[str, typer.Argument(help="A name of: onellm ls.")]) -> None:
    """Print a description, or the YAML file."""
    with _manners():
        from onellm.catalogue import describe

        typer.echo(describe(name))


@app.command(**_help("Check versions, devices and extras, and run a tiny model.", "onellm doctor"))
def doctor() -> None:
    """Print findings as they come; exit code 1 if something will not work."""
    with _manners():
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


def main() -> None:
    """The ``onellm`` command.

    A thread that waits by spinning takes its core from whoever else wants it, the other threads of
    the same product among them: on two cores with other work a step took up to sixteen times as
    long (docs/lab-notes.md). It has to be said before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
