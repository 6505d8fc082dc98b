"""The last projection in closed form: from what the projector mixed to words the LLM knows.

Ours, not the paper's. Behind a contrastive warm-up the mixed queries tell signals apart, but the
last projection has learned nothing, and gradients through a frozen LLM are the dearest way to
teach it. A ridge regression from the mixed queries to the word embeddings of the answers takes
seconds, and the LLM then reads nearly all that the warm-up knows (docs/lab-notes.md).

Shape legend: S samples, Q queries, D width of the projector, D_llm that of the LLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from onellm.data.faults import Faults
from onellm.data.lists import by_target, outline
from onellm.data.loader import medium_key
from onellm.data.sample import Sample
from onellm.data.signal_reader import SignalReader
from onellm.errors import BadInput, ConfigError
from onellm.model import OneLLM
from onellm.train.media import same_shape, vary
from onellm.train.stage import FitOutput


@torch.no_grad()
def embed_texts(model: OneLLM, texts: Sequence[str]) -> Tensor:
    """Mean input embedding of each text's tokens in the LLM, float32 (S, D_llm).

    Args:
        model: has a text tokenizer.
        texts: at least one.

    Raises:
        ConfigError: the model has no text tokenizer.
    """
    if model.text is None:
        raise ConfigError("the model has no text tokenizer")
    table: nn.Module = model.llm.get_input_embeddings()
    device = next(table.parameters()).device
    rows = []
    for text in texts:
        ids, _ = model.text.encode(text)
        rows.append(table(torch.tensor(ids, device=device)).float().mean(0))
    return torch.stack(rows)


@torch.no_grad()
def fit_output(
    model: OneLLM,
    config: FitOutput,
    samples: Mapping[str, Sequence[Sample]],
    reader: SignalReader,
    faults: Faults,
    *,
    views: int = 0,
    seed: int = 0,
) -> dict[str, float]:
    """Set ``projector.proj_out`` of some modalities by ridge regression.

    The mean of a sample's mixed queries (D,) is mapped onto the mean word embedding (D_llm,) of
    its text; all queries then go through that map, and through the LayerNorm behind it as the
    projector's configuration makes it.

    Args:
        model: its experts and queries are used as they are.
        config: modalities, texts and strength.
        samples: by modality.
        reader: reads signals.
        faults: policy for broken samples; skipped ones are left out.
        views: random variations of each signal that are used beside the plain one.
        seed: of the variations.

    Returns:
        by modality, the share of the embeddings' variance that the map explains (at most 1).

    Raises:
        ConfigError: a modality without samples of that target.
        BadInput: a broken sample, by the policy; or no other.
    """
    training = model.training
    model.eval()
    explained = {}
    for name in config.modalities:
        x_SD, y_SD = _pairs(model, config, name, samples.get(name, ()), reader, faults, views, seed)
        x_D, y_D = x_SD.mean(0), y_SD.mean(0)
        x_SD, y_SD = x_SD - x_D, y_SD - y_D
        covariance_DD = x_SD.T @ x_SD
        covariance_DD.diagonal().add_(config.ridge * covariance_DD.diagonal().mean())
        weight_DD = torch.linalg.solve(covariance_DD, x_SD.T @ y_SD)
        linear, norm = _output(model, name)
        linear.weight.copy_(weight_DD.T)
        linear.bias.copy_(y_D - x_D @ weight_DD)
        nn.init.constant_(norm.weight, model.projector.config.output_scale)
        nn.init.zeros_(norm.bias)
        missed = (y_SD - x_SD @ weight_DD).square().sum() / y_SD.square().sum().clamp_min(1e-12)
        explained[name] = 1 - float(missed)
    model.train(training)
    return explained


def _output(model: OneLLM, name: str) -> tuple[nn.Linear, nn.LayerNorm]:
    """The last projection of a modality.

    Raises:
        ConfigError: the stage does not train it, so that its checkpoints would not hold it.
    """
    linear: nn.Linear
    norm: nn.LayerNorm
    linear, norm = model.projector.proj_out[name]  # type: ignore[misc]
    if not all(
        parameter.requires_grad for parameter in model.projector.proj_out[name].parameters()
    ):
        raise ConfigError(f"stage.fit_output: stage.trainable lacks projector.proj_out.{name}.*")
    return linear, norm


def _pairs(
    model: OneLLM,
    config: FitOutput,
    name: str,
    samples: Sequence[Sample],
    reader: SignalReader,
    faults: Faults,
    views: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Mixed queries (S, D) and word embeddings (S, D_llm) of a modality, float64."""
    prompt = model.modality(name).caption_prompt
    made = by_target(samples, [config.target], prompt, faults, name).get(config.target)
    if made is None:
        raise ConfigError(f"stage.fit_output: no sample of {name} has a target {config.target!r}")
    texts = {
        medium_key(sample, position): sample.turns[-1][1]
        for sample in (outline(made, index) for index in range(len(made)))
        for position in range(len(sample.media))
    }
    different = sorted(set(texts.values()))
    vector = dict(zip(different, embed_texts(model, different), strict=True))
    mixed, wanted = [], []
    for chunk in same_shape(made, name, reader, faults, 32):
        for view in range(views + 1):
            signals = [vary(model.modality(name), *item, view, seed) for item in chunk]
            features = model.features(name, torch.stack(signals).to(model.device))
            mixed.append(model.projector.mix(features).float().mean(1))
            wanted.append(torch.stack([vector[texts[key]] for key, _ in chunk]))
    if not mixed:
        raise BadInput(f"{name} data", expected="a readable sample", found="broken ones alone")
    return torch.cat(mixed).double(), torch.cat(wanted).double()
