"""Verbs of training: quickstart, train, export, plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onellm.cli_model import Kind
from onellm.manners import RESUMABLE, manners, verb_help

training = typer.Typer()


@training.command(
    **verb_help(
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
    page = out / "report.html"
    before = _written(page)
    with manners(RESUMABLE):
        from onellm.progress import watch
        from onellm.quickstart import run

        with watch() as progress:
            run(out, starter, preset, seed, resume, progress)
    if before and before == _written(page):
        typer.echo(
            "this run was finished before, and nothing was done; --no-resume removes it and "
            "starts anew, another --out keeps it"
        )
    if page.is_file():
        typer.echo(f"report: {page}\nmodel:  {out}  (onellm chat --model {out})")


def _written(file: Path) -> int:
    """When a file was written, in nanoseconds; 0 if it is not there."""
    return file.stat().st_mtime_ns if file.is_file() else 0


@training.command(
    **verb_help(
        "Train one stage in this process.",
        "onellm train warmup model=models/start out=runs/warmup",
        "onellm train my-stage.yaml optim.lr=2e-4 length.steps=500",
        "onellm train instruct --hardware 1x24gb model=DIR data.folder=DIR out=runs/mine",
        "onellm train align_image --dry-run --devices 8 model=DIR data.folder=DIR",
        "deepspeed --module onellm.train.launch align_image out=runs/image",
        more="DeepSpeed's launcher takes the same arguments.",
    )
)
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or a stage of: onellm ls stages.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Such as optim.lr=2e-4.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="1x24gb, 1x80gb, 8x80gb, 16x80gb, or a YAML file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would be; train nothing.")
    ] = False,
    devices: Annotated[
        int | None, typer.Option(min=1, help="With --dry-run: number of GPUs; --hardware's, or 1.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="With --dry-run: which, such as A100; --hardware's.")
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="With --dry-run: 10^12 operations a second that each does."),
    ] = None,
) -> None:
    """Run :func:`onellm.train.launch.run_training` under a progress bar."""
    with manners(RESUMABLE):
        from onellm.train.packaged import Machine, read_config, read_machine

        settings = read_config(config, overrides or [], hardware)
        if dry_run:
            from onellm.cli_dry_run import tell
            from onellm.train.dry_run import dry_run as look
            from onellm.train.fetched import place_of_fetched
            from onellm.train.speed import speed_of

            machine = read_machine(hardware) if hardware else Machine()
            card = gpu or machine.gpu
            speed = speed_of(settings, card, tflops)
            if (place := place_of_fetched(settings.data)) is not None:
                typer.echo(
                    f"shards under addresses: what is looked at is fetched into {place}; where "
                    "neither shards.json nor shard_samples counts them, all are, once",
                    err=True,
                )
            tell(look(settings, devices or machine.devices), speed, card)
            return
        from onellm.train.launch import STOPPED, run_training
        from onellm.train.signals import Stopped
        from onellm.train.telling import follow_run

        try:
            with follow_run() as see:
                out = run_training(settings, see)
        except Stopped as stopped:
            typer.echo(str(stopped), err=True)
            raise typer.Exit(STOPPED) from stopped
    typer.echo(f"model: {out}")


@training.command(
    **verb_help(
        "Write the model of a run's checkpoint, of any ZeRO stage.",
        "onellm export runs/instruct models/mine",
        "onellm export runs/instruct models/mine --step 2000 --dtype bfloat16",
        more="It needs no GPU. A LoRA is merged into the LLM.",
    )
)
def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model.")],
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; the newest.")] = None,
    model: Annotated[
        str | None, typer.Option(help="What the run started from, if it has moved.")
    ] = None,
    dtype: Annotated[Kind | None, typer.Option(help="Of the weights; as they started.")] = None,
) -> None:
    """Run :func:`onellm.train.finish.export_run`."""
    with manners():
        import torch

        from onellm.train.finish import export_run

        kind = getattr(torch, dtype) if dtype else None
        taken = export_run(run, out, step=step, model=model, dtype=kind)
    typer.echo(f"model: {out}  (stage {taken.stage}, step {taken.step})")


@training.command(
    **verb_help(
        "Draw the curves of training runs: loss, learning rate, speed, router.",
        "onellm plot runs/align_image",
        "onellm plot runs/a runs/b --out compare",
        "onellm plot runs              (all runs in it)",
        more="Several runs are drawn over each other.",
    )
)
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or one that holds them.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for training.png and .html; the first run's.")
    ] = None,
) -> None:
    """Run :func:`onellm.train.plot.plot_runs`."""
    with manners():
        from onellm.train.plot import plot_runs

        folder = runs[0] if runs[0].is_dir() else runs[0].parent
        for file in plot_runs(runs, out or folder):
            typer.echo(str(file))
