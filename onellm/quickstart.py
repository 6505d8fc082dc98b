"""The quick start: from nothing to a measured model of eight modalities, in one call.

Phases: the stages of a preset one after the other, each with checkpoints of its own; then the
answers to the test questions; then the report. Whatever has been finished is not done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from onellm.config import parse
from onellm.data.packaged import starter_folder
from onellm.data.sample import Sample
from onellm.data.shards import read_folder, shards_of
from onellm.errors import ConfigError
from onellm.llm import load_llm
from onellm.model import OneLLM
from onellm.preset import load_preset
from onellm.progress import Progress, SilentProgress, follow
from onellm.registry import get_modality
from onellm.small_llm import small_llm
from onellm.train.config import TrainConfig
from onellm.train.finish import load_finished
from onellm.train.launch import run_training
from onellm.train.metrics import read_metrics
from onellm.train.trainables import matches

FACTS, SECONDS, STAGES, ANSWERS = "quickstart.json", "seconds.json", "stages", "answers.jsonl"
PAGE = "report.html"
# What a run leaves behind, and what starting anew removes. The page comes last.
LEFT = (
    *(PAGE, "report.md", "report.json", STAGES, ANSWERS, SECONDS, FACTS),
    *("config.json", "model.safetensors"),
)


def run(
    out: str | Path,
    starter: str | Path | None = None,
    preset: str = "small",
    seed: int = 0,
    resume: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Train, evaluate and report.

    Args:
        out: folder of the run; in the end a model that ``OneLLM.from_pretrained`` reads, with
            ``report.html`` beside it.
        starter: folder of ``<modality>-train.tar`` and ``<modality>-test.tar``; the packaged
            data if left out. Fewer modalities than eight will do.
        preset: a packaged preset's name, or a YAML file of that form.
        seed: of everything random.
        resume: go on with what ``out`` holds, to which nothing is done if it is finished (remove
            the report to have it written again); False starts anew and removes it.
        progress: told about every phase.

    Returns:
        the path of ``report.html``.

    Raises:
        ConfigError: unknown preset, or ``out`` holds a run of other settings.
        BadInput: data that cannot be read.
        CheckpointError: the LLM cannot be had, or a checkpoint is damaged.
    """
    folder = Path(starter) if starter is not None else starter_folder()
    start = QuickStart(Path(out), folder, preset, seed, progress or SilentProgress())
    start.claim(resume=resume)
    return start.run()


class QuickStart:
    """One run of the quick start.

    Args:
        out: folder of the run.
        folder: folder of shards.
        preset: name or file of the preset.
        seed: of everything random.
        progress: told about every phase.
    """

    def __init__(self, out: Path, folder: Path, preset: str, seed: int, progress: Progress) -> None:
        self.out, self.folder, self.seed, self.progress = out, folder, seed, progress
        self.name, self.preset = preset, load_preset(preset)
        present = shards_of(folder, "train").keys() & shards_of(folder, "test").keys()
        self.modalities = [m for m in self.preset.model.modalities if m in present]
        if not self.modalities:
            raise ConfigError(
                f"{folder}: none of its shards is of a modality of preset {preset!r} "
                f"({', '.join(self.preset.model.modalities)})"
            )
        self.stages = [s for s in map(self._stage, range(len(self.preset.stages))) if s]

    def claim(self, *, resume: bool) -> None:
        """Take the folder: new, or of the same run."""
        facts = {
            "preset": self.preset.model_dump(mode="json"),
            "seed": self.seed,
            "modalities": self.modalities,
        }
        path = self.out / FACTS
        if path.exists() and not resume:
            for name in LEFT:
                target = self.out / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        elif path.exists() and json.loads(path.read_text(encoding="utf-8")) != facts:
            raise ConfigError(
                f"{self.out} holds a run of another preset, seed or data: take another --out, or "
                "--no-resume to remove it"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=1), encoding="utf-8")

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the report, which comes last, is there."""
        return (self.out / PAGE).is_file() and (self.out / "config.json").is_file()

    def run(self) -> Path:
        """All phases, or none if they are finished; returns the report's path."""
        if self.finished:
            return self.out / PAGE
        if (self.out / "config.json").exists():
            model = OneLLM.from_pretrained(self.out)
        else:
            model = self._train()
        self._evaluate(model)
        return self._report(model)

    # -- training -------------------------------------------------------------------------

    def _train(self) -> OneLLM:
        with self._timed("setup"):
            model = self._build()
        complete = set(self.modalities) == set(self.preset.model.modalities)
        for config in self.stages if complete else [_matching(c, model) for c in self.stages]:
            if load_finished(config, model):
                continue
            with self._timed(config.stage.name):
                run_training(
                    config, follow(self.progress, config.stage.name), model=model, export=False
                )
        with self._timed("save"):
            model.eval().requires_grad_(False)
            model.save_pretrained(self.out)
            for config in self.stages:  # the model is whole now; these hold optimiser states
                shutil.rmtree(Path(config.out) / "checkpoints", ignore_errors=True)
        return model

    def _build(self) -> OneLLM:
        """The untrained model around its LLM."""
        torch.manual_seed(self.seed)
        if self.preset.llm == "smollm2":
            self.progress.phase("fetching the LLM", 1)
            from transformers.utils import logging

            logging.disable_progress_bar()  # ours says what is going on
            llm, text = load_llm(small_llm(self.progress.note))
            # The backward of PyTorch's own attention is slow on CPUs in bfloat16, and these
            # sequences are short.
            llm.set_attn_implementation("eager")
            self.progress.advance()
        else:
            from onellm.tiny_llm import build_tiny_llm

            llm, text = build_tiny_llm(self.preset.llm, self._texts())
        options = {m: self.preset.model.modalities[m] for m in self.modalities}
        return OneLLM(self.preset.model.model_copy(update={"modalities": options}), llm, text)

    def _texts(self) -> Iterator[str]:
        for samples in self._samples("train").values():
            for sample in samples:
                yield str(sample.meta.get("text", ""))
                for pair in sample.meta.get("qa", ()):
                    yield f"{pair['question']} {pair['answer']}"

    def _samples(self, split: str) -> dict[str, Sequence[Sample]]:
        known = {m: get_modality(m, **self.preset.model.modalities[m]) for m in self.modalities}
        return read_folder(self.folder, split, known, self.modalities)

    def _stage(self, number: int) -> TrainConfig | None:
        """A preset's stage for the modalities that are there; None if none of its own is."""
        data: dict[str, Any] = json.loads(json.dumps(self.preset.stages[number]))
        where = f"{self.name}: stages.{number}"
        name = data.get("stage", {}).get("name", str(number))
        data |= {"model": "built by the quick start", "seed": self.seed}
        data["out"] = str(self.out / STAGES / f"{number}-{name}")
        data["data"] = {**data.get("data", {}), "folder": str(self.folder)}
        config = parse(TrainConfig, data, where=where)
        missing = set(self.preset.model.modalities) - set(self.modalities)
        return _without(config, missing) if missing else config

    # -- evaluation -----------------------------------------------------------------------

    def _evaluate(self, model: OneLLM) -> None:
        from onellm.eval.runner import run as ask
        from onellm.eval.starter import starter_items

        with self._timed("evaluation"):
            prompts = {m: model.modality(m).caption_prompt for m in self.modalities}
            settings = self.preset.evaluation
            items = starter_items(
                self._samples("test"),
                prompts,
                seed=self.seed,
                answer_tokens=settings.answer_tokens,
                caption_tokens=settings.caption_tokens,
            )
            ask(model, items, self.out / ANSWERS, settings.batch, self.progress)

    def _report(self, model: OneLLM) -> Path:
        from onellm.eval.report import write_report
        from onellm.eval.summary import summarize

        packaged = self.folder.resolve() == starter_folder().resolve()
        summary = summarize(
            self.out / ANSWERS,
            seconds=self._seconds(),
            seed=self.seed,
            preset=self.name,
            references=None if packaged else {},
        )
        metrics = [
            {"phase": config.stage.name, **record}
            for config in self.stages
            for record in read_metrics(Path(config.out) / "metrics.jsonl")
        ]
        return write_report(self.out, summary, metrics, self._thumbnails(model, summary))

    def _thumbnails(self, model: OneLLM, summary: dict[str, Any]) -> dict[tuple[str, str], Any]:
        """Pictures of the media that the report shows, by (modality, sample id)."""
        shown = {
            name: {row["id"] for row in part["samples"]}
            for name, part in summary["modalities"].items()
        }
        return {
            (name, sample.id): model.modality(name).thumbnail(sample.media[0][1])
            for name, samples in self._samples("test").items()
            for sample in samples
            if sample.id in shown.get(name, ())
        }

    # -- time -----------------------------------------------------------------------------

    def _seconds(self) -> dict[str, float]:
        path = self.out / SECONDS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Add a phase's wall time to what earlier, interrupted runs spent on it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = self._seconds()
            spent[phase] = spent.get(phase, 0.0) + time.perf_counter() - began
            (self.out / SECONDS).write_text(json.dumps(spent, indent=1), encoding="utf-8")


def _without(config: TrainConfig, missing: set[str]) -> TrainConfig | None:
    """A stage for fewer modalities; None where none of its own is there."""
    stage = config.stage
    here = tuple(m for m in stage.modalities if m not in missing)
    if not here:
        return None
    copied = stage.copy_path
    if copied is not None:
        targets = tuple(t for t in copied.targets if t not in missing)
        usable = targets and copied.source not in missing
        copied = copied.model_copy(update={"targets": targets}) if usable else None
    fitted = stage.fit_output
    if fitted is not None:
        names = tuple(m for m in fitted.modalities if m not in missing)
        fitted = fitted.model_copy(update={"modalities": names}) if names else None
    weights = {m: w for m, w in config.data.weights.items() if m not in missing}
    return config.model_copy(
        update={
            "stage": stage.model_copy(
                update={"modalities": here, "copy_path": copied, "fit_output": fitted}
            ),
            "data": config.data.model_copy(update={"weights": weights}),
        }
    )


def _matching(config: TrainConfig, model: OneLLM) -> TrainConfig:
    """The stage without globs that fewer modalities leave nothing to match."""
    stage = config.stage
    names = [name for name, _ in model.named_parameters()]
    trainable = tuple(g for g in stage.trainable if matches(names, g, stage.modalities))
    return config.model_copy(update={"stage": stage.model_copy(update={"trainable": trainable})})
