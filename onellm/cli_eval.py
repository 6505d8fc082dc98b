"""``onellm eval``: ask a model every question of a benchmark, score, compare, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onellm.cli_model import Bits, Device, Dtype, Model
from onellm.errors import ConfigError
from onellm.manners import RESUMABLE, manners, verb_help

if TYPE_CHECKING:
    from onellm.eval.task import Task

eval_app = typer.Typer(
    name="eval",
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    **verb_help(
        "Measure a model on benchmarks.",
        "onellm eval --model DIR --tasks gqa,msvd_qa --data ROOT --out runs/first",
        "onellm eval --tasks all --data ROOT --validate-data",
        "onellm eval --model DIR --tasks textvqa@ocr --data ROOT --out runs/ocr --limit 100",
        "onellm eval --score-only runs/first/gqa.jsonl --task gqa@official",
        "onellm eval compare runs/first runs/second",
        "onellm eval export runs/first/vqav2.jsonl --task vqav2 --out submission",
        "deepspeed --module onellm.eval.launch --model DIR --tasks gqa --data ROOT --out DIR",
        more="Tasks are named by onellm ls tasks; onellm show TASK says where its data are had "
        "and where they go. A run that was cut off goes on.",
    ),
)

Tasks = Annotated[str, typer.Option(help="Names or YAML files, such as gqa,textvqa@ocr; or all.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder that the tasks' paths are below; the starter pack has its own."),
]


@eval_app.callback()
def evaluate(
    context: typer.Context,
    model: Model = "",
    tasks: Tasks = "",
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder of answers and report.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="The first so many questions of each task (pairs stay whole)."),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out questions whose media are not there.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="How many at a time; changes no answer.")
    ] = 16,
    decoding: Annotated[
        str, typer.Option(help="greedy, or published: sampled as the paper's scripts do.")
    ] = "greedy",
    seed: Annotated[int, typer.Option(help="Of sampling, and of which samples are shown.")] = 0,
    device: Device = "",
    dtype: Dtype = "float32",
    bits: Bits = 0,
    validate_data: Annotated[
        bool, typer.Option("--validate-data", help="Say what is missing, and stop.")
    ] = False,
    score_only: Annotated[
        Path | None, typer.Option(help="Score a file of answers, without a model.")
    ] = None,
    task: Annotated[str, typer.Option(help="The task of --score-only.")] = "",
    grades: Annotated[
        Path | None, typer.Option(help="With --score-only: a judge's grades, of onellm eval judge.")
    ] = None,
) -> None:
    """Check data, score a file, or run benchmarks; a verb behind it does something else."""
    if context.invoked_subcommand is not None:
        return
    with manners(RESUMABLE):
        if score_only is not None:
            _score(score_only, task or tasks, data, grades)
        elif validate_data:
            _validate(tasks, data, limit)
        else:
            _need({"--model": model, "--tasks": tasks, "--out": out})
            assert out is not None
            options = {"limit": limit, "batch_size": batch_size, "decoding": decoding, "seed": seed}
            options |= {"skip_missing": skip_missing}
            _run(model, tasks, data, out, options, (device, dtype, bits))


def _need(options: dict[str, Any]) -> None:
    missing = [name for name, value in options.items() if not value]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing; onellm eval --help shows examples")


def _specs(tasks: str) -> dict[str, Task]:
    from onellm.eval.task import load_tasks, task_specs

    return dict(zip(task_specs(tasks), load_tasks(tasks), strict=True))


def _root(specs: dict[str, Task], data: Path | None) -> Path:
    """The folder that was named; the packaged one for tasks that need no other."""
    from onellm.data.packaged import starter_folder
    from onellm.eval.describe import STARTER

    if data is None and all(task.group == STARTER for task in specs.values()):
        return starter_folder()
    _need({"--data": data})
    assert data is not None
    return data


def _validate(tasks: str, data: Path | None, limit: int | None) -> None:
    from onellm.eval.validate import validate

    specs = _specs(tasks or "all")
    findings = validate(specs.values(), _root(specs, data), limit)
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.ready else 'BAD '} {finding}")
    ready = sum(finding.ready for finding in findings)
    typer.echo(f"{ready} of {len(findings)} tasks can be run")
    if ready < len(findings):
        raise typer.Exit(1)


def _score(file: Path, task: str, data: Path | None, grades: Path | None = None) -> None:
    from onellm.eval.items import entries
    from onellm.eval.run_folder import check_whole
    from onellm.eval.scoring import row_of, score_answers
    from onellm.eval.show_scores import lines_of
    from onellm.eval.task import load_task

    _need({"--task": task})
    found = load_task(task)
    expected = None if data is None else [entry.id for entry in entries(found, data)]
    records, score = score_answers(found, file, expected, grades=grades, write=False)
    remark = check_whole(file) if data is None else ""
    for line in lines_of(row_of(found, records, score)):
        typer.echo(line)
    if remark:
        typer.echo(f"note: {remark}", err=True)


def _run(
    model: str,
    tasks: str,
    data: Path | None,
    out: Path,
    options: dict[str, Any],
    place: tuple[str, str, int],
) -> None:
    from onellm.eval.evaluate import evaluate, plan
    from onellm.eval.fingerprint import model_fingerprint
    from onellm.eval.launch import local_device, shard_from_environment
    from onellm.eval.run_folder import Settings
    from onellm.progress import SilentProgress, watch

    specs, shard = _specs(tasks), shard_from_environment()
    from onellm.model_folder import folder_of

    device, dtype, bits = place
    folder = folder_of(model)
    identity = f"{model_fingerprint(folder)}/{dtype}" + (f"/{bits} bits" if bits else "")
    settings = Settings(model, identity, _root(specs, data), out, **options)
    planned = plan(specs, settings)

    def load() -> Any:
        from onellm.cli_model import load_model

        return load_model(str(folder), device or local_device(), dtype, bits)

    if shard.rank:
        evaluate(planned, settings, load, shard=shard, progress=SilentProgress())
        return
    with watch() as progress:
        page = evaluate(planned, settings, load, shard=shard, progress=progress)
    _summary(out)
    typer.echo(f"report: {page}")


def _summary(out: Path) -> None:
    import json

    from onellm.eval.show_scores import table_of

    rows = json.loads((out / "report.json").read_text(encoding="utf-8"))["tasks"]
    for line in table_of(rows):
        typer.echo(line)


@eval_app.command(
    **verb_help(
        "Compare two runs, question by question.",
        "onellm eval compare runs/first runs/second",
        "onellm eval compare runs/first runs/second --differences 20",
        "onellm eval compare runs/first/textvqa.jsonl runs/ocr/textvqa@ocr.jsonl",
        more="Two folders are compared task by task. The test is paired: it asks whether the two "
        "differ on the same questions by more than chance.",
    )
)
def compare(
    first: Annotated[Path, typer.Argument(help="A run's folder, or a file of answers.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    differences: Annotated[
        int, typer.Option(min=0, help="How many differing answers to list.")
    ] = 5,
) -> None:
    """Print a paired test per task, and answers that differ."""
    with manners():
        from onellm.eval.comparing import compare_runs, spoken

        for found in compare_runs(first, second):
            for line in spoken(found, differences):
                typer.echo(line)


@eval_app.command(
    **verb_help(
        "Write a file of answers in a benchmark's official submission format.",
        "onellm eval export runs/first/vqav2.jsonl --task vqav2 --out submission",
        "onellm eval export runs/first/vqav2.jsonl --task vqav2 --format vqa_normalised --out s",
        "onellm eval export runs/first/mmbench.jsonl --task mmbench --format mmbench_xlsx --out s",
    )
)
def export(
    file: Annotated[Path, typer.Argument(help="A file of answers.")],
    task: Annotated[str, typer.Option(help="Its task.")],
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    format: Annotated[str, typer.Option(help="One of the task's formats; its first.")] = "",
) -> None:
    """Write what official scorers and servers read."""
    with manners():
        from onellm.eval.exports import export as write
        from onellm.eval.score_file import read_records
        from onellm.eval.scoring import check_task
        from onellm.eval.task import load_task

        found, records = load_task(task), read_records(file)
        check_task(found, records)
        _print_files(write(found, records, out, format))


@eval_app.command(
    **verb_help(
        "Have answers graded by a language model, and score its grades.",
        "onellm eval judge runs/first/mmvet.jsonl --task mmvet "
        "--endpoint https://HOST/v1 --judge-model NAME",
        "onellm eval judge runs/first/mmvet.jsonl --task mmvet --local DIR --repeats 5",
        more="Any address with OpenAI's chat completions will do; its key is read from the "
        "variable ONELLM_JUDGE_KEY. Prompts and replies are kept beside the answers, and nothing "
        "is asked twice.",
    )
)
def judge(
    file: Annotated[Path, typer.Argument(help="A file of answers.")],
    task: Annotated[str, typer.Option(help="Its task.")],
    endpoint: Annotated[str, typer.Option(help="Address of the judge, up to and with /v1.")] = "",
    judge_model: Annotated[str, typer.Option(help="The judge's name at that address.")] = "",
    local: Annotated[str, typer.Option(help="Or: folder or hub id of a saved model.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="File of replies; <answers>.grades.jsonl if left out.")
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="File with the judge's prompt; else one in our own words.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Grades per answer.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Answers that are judged at a time.")] = 4,
) -> None:
    """Collect grades, say what they cost, and score them."""
    with manners(RESUMABLE):
        from onellm.eval.judge import judge_answers
        from onellm.eval.rubrics import load_rubric
        from onellm.eval.score_file import read_records
        from onellm.eval.scoring import check_task, with_steps
        from onellm.eval.task import load_task

        found = load_task(task)
        if not found.rubric:
            raise ConfigError(f"task {found.name} has no rubric for a judge")
        records = read_records(file)
        check_task(found, records)
        replies = out or file.with_suffix(".grades.jsonl")
        asked = _judge(endpoint, judge_model, local)
        cost = judge_answers(
            with_steps(found, records),
            *(asked, load_rubric(found.rubric, prompt), replies),
            repeats=repeats,
            workers=1 if local else workers,
        )
        typer.echo(
            f"{cost.asked} prompts, {cost.prompt_tokens} and {cost.completion_tokens} tokens, "
            f"{cost.retries} asked again, {cost.ungraded} ungraded: {replies}"
        )
        if cost.agreement is not None:
            typer.echo(f"repeats agree on {cost.agreement:.1%}, spread {cost.spread:.3f}")
        _score(file, f"{task.partition('@')[0]}@judged", None, replies)


def _judge(endpoint: str, name: str, local: str) -> Any:
    from onellm.eval.judge import LocalJudge

    if bool(endpoint) == bool(local) or (endpoint and not name):
        raise ConfigError("a judge is an --endpoint with a --judge-model, or a --local model")
    if endpoint:
        from onellm.eval.endpoint import Endpoint

        return Endpoint(endpoint, name)
    from onellm.cli_model import load_model

    model = load_model(local)

    def reply(text: str, temperature: float, tokens: int) -> str:
        return str(model.generate(text, max_new_tokens=tokens, temperature=temperature))

    return LocalJudge(local, reply)


def _print_files(paths: Sequence[Path]) -> None:
    for path in paths:
        typer.echo(str(path))
