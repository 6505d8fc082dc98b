"""Packed rows equal padded ones; the loss in chunks equals the loss at once; batches any way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import signals, tiny_model, tiny_text
from tiny_runs import tiny_config, tiny_run, write_shards
from torch import nn
from transformers import AutoModelForCausalLM, DogeConfig, FalconConfig, MistralConfig

from onellm.data.loader import Batch, Example, Loader, Medium
from onellm.data.order import Order, Part
from onellm.data.plan import Layout
from onellm.data.shards import read_folder
from onellm.data.signal_reader import SignalReader
from onellm.data.targets import examples
from onellm.errors import BadInput, ConfigError
from onellm.model import OneLLM
from onellm.prompts import encode_example
from onellm.splice import IGNORED, Insertion, splice
from onellm.train.checkpoint import Checkpoints
from onellm.train.lm_head import check_packing, chunked_cross_entropy
from onellm.train.memory import LiveBytes
from onellm.train.objectives import LanguageModelling
from onellm.train.packed_attention import added, pieces, use_own_attention, use_packed_attention
from onellm.train.trainables import select

TEXT = tiny_text()


def example(model: OneLLM, names: tuple[str, ...], turns: int, seed: int) -> Example:
    said = [("user", f"What is {seed}?"), ("assistant", f"It is a chair, number {seed}.")] * turns
    ids, labels = encode_example(TEXT, "plain", said)
    media = tuple(
        Medium(name, f"{name}/{seed}/{i}", signals(model, name, 1, seed + i)[0])
        for i, name in enumerate(names)
    )
    return Example(f"s{seed}", "+".join(names) or "text", media, ids, labels, said[-1][1])


def mixed(model: OneLLM) -> Batch:
    return [
        example(model, ("image",), 1, 1),
        example(model, ("imu", "audio"), 3, 2),
        example(model, (), 2, 3),
        example(model, ("image", "image"), 1, 4),
    ]


def losses_and_gradients(model: OneLLM, batch: Batch, **options: Any) -> tuple[Any, dict[str, Any]]:
    model.zero_grad(set_to_none=True)
    losses = LanguageModelling(model, **options)(batch)
    losses.total.backward()
    return losses, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("attention", ["sdpa", "eager", "sdpa packed"])
def test_packed_equals_padded(attention):
    model = tiny_model("image", "imu", "audio")
    model.llm.set_attn_implementation(attention.partition(" ")[0])
    if "packed" in attention:
        assert use_packed_attention(model.llm)
    names = select(model, ["llm.*", "projector.*", "tags.*"], ["image", "imu", "audio"])
    batch = mixed(model)
    padded, want = losses_and_gradients(model, batch)
    packed, got = losses_and_gradients(model, batch, pack=True)
    torch.testing.assert_close(packed.sums_B, padded.sums_B, atol=1e-5, rtol=1e-5)
    assert set(want) == set(names)
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=1e-5)
    assert (
        LanguageModelling(model, pack=True).positions(batch)[1]
        < (LanguageModelling(model).positions(batch)[1])
    )


def test_blocks_share_one_mask():
    """Its numbers are the same in all blocks; as it comes, PyTorch makes them in each."""
    model = tiny_model("image")
    select(model, ["projector.*"], ["image"])
    own = model.llm.config._attn_implementation
    batch = [example(model, ("image",), n, n) for n in range(1, 9)]
    kept, losses = [], []
    for shared in (False, True):
        if shared:
            assert use_packed_attention(model.llm)
        objective = LanguageModelling(model, pack=True)
        with LiveBytes("cpu") as live:
            live.know([*model.parameters(), *model.buffers()])
            losses.append(objective(batch).total)
            kept.append(live.now)
        losses[-1].backward()
    square = objective.positions(batch)[1] ** 2 * 4
    blocks = model.llm.config.num_hidden_layers
    assert kept[0] - kept[1] > 0.9 * (blocks - 1) * square
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    use_own_attention(model.llm)
    assert model.llm.config._attn_implementation == own
    model.llm.set_attn_implementation("eager")
    assert not use_packed_attention(model.llm)


def test_samples_of_a_row_are_found_in_its_mask():
    number = torch.tensor([0, 0, 0, 1, 2, 2])
    rows = (number[:, None] == number).tril()[None, None]
    assert pieces(rows) == [3, 1, 2]
    assert pieces(torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()) == [4]
    window = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril().triu(-1)
    both_ways = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    for other in (window, both_ways, rows[..., :5, :], rows.repeat(2, 1, 1, 1)):
        assert pieces(other) is None


def test_a_window_is_kept_in_a_packed_row():
    """A block that sees two positions back must not go through the kernel that sees all."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(
        MistralConfig(
            **{"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48},
            sliding_window=2,
        )
    )
    embeds = torch.randn(1, 9, 32)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    inputs = {"inputs_embeds": embeds, "position_ids": positions, "use_cache": False}
    wanted = llm(**inputs).logits
    assert use_packed_attention(llm)
    torch.testing.assert_close(llm(**inputs).logits, wanted, atol=1e-5, rtol=1e-5)


def test_a_model_that_hands_on_the_mask_by_its_name():
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(
        DogeConfig(
            **{"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48},
        )
    ).eval()
    x = torch.randn(1, 5, 32)
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    inputs = {"inputs_embeds": x, "position_ids": positions, "use_cache": False}
    wanted = llm(**inputs).logits
    assert use_packed_attention(llm)
    torch.testing.assert_close(llm(**inputs).logits, wanted, atol=1e-5, rtol=1e-5)


def test_a_model_with_attention_of_its_own_keeps_it():
    llm = AutoModelForCausalLM.from_config(
        FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    assert llm.config._attn_implementation == "sdpa"
    assert not use_packed_attention(llm)
    assert llm.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_of_numbers_hides_what_it_hid(dtype):
    seen = torch.rand(2, 1, 5, 37) < 0.5
    mask = added(seen, dtype)
    assert mask.dtype == dtype and mask.stride(-2) % 16 == 0
    assert torch.equal(mask == 0, seen)
    assert bool((mask[~seen] < -1e30).all())


def test_nothing_passes_from_one_packed_sample_to_another():
    model = tiny_model("image")
    one, two = example(model, ("image",), 1, 1), example(model, ("image",), 1, 2)
    other = example(model, ("image",), 3, 9)
    objective = LanguageModelling(model, pack=True)
    before, after = objective([one, two]).sums_B, objective([other, two]).sums_B
    torch.testing.assert_close(before[1], after[1], atol=1e-5, rtol=1e-5)
    assert (before[0] - after[0]).abs() > 1e-3


def test_a_packed_row_starts_anew_with_each_sample():
    table = torch.arange(20.0).reshape(10, 2)
    ids = [torch.tensor([1, 2, 3]), torch.tensor([4, 5])]
    labels = [torch.tensor([1, 2, 3]), torch.tensor([4, -100])]
    media = [[Insertion(1, torch.ones(2, 2))], []]
    row = splice(lambda i: table[i], ids, labels, media, pack=True)
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    assert row.sample.tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    # A sample's first token is learned nowhere: the sample before it would have to foretell it.
    assert row.labels.tolist() == [[IGNORED, IGNORED, IGNORED, 2, 3, IGNORED, IGNORED]]
    assert row.text_at.tolist() == [[0, 3, 4], [5, 6, -1]]
    assert row.attention_mask.all()
    padded = splice(lambda i: table[i], ids, labels, media)
    assert padded.sample.tolist() == [[0] * 5, [1, 1, -1, -1, -1]]


def test_an_llm_that_mixes_packed_samples_is_refused():
    model = tiny_model("image")
    check_packing(model.llm)

    class Mixing(nn.Module):
        """Hands every position the mean of all that came before it, whatever its sample."""

        def __init__(self, llm: Any) -> None:
            super().__init__()
            self.llm = llm

        def forward(self, **inputs: Any) -> Any:
            x_BTD = inputs["inputs_embeds"]
            steps = torch.arange(1, x_BTD.shape[1] + 1)[:, None]
            return type("Out", (), {"last_hidden_state": x_BTD.cumsum(1) / steps})()

    model.llm.base_model_prefix = "mixing"
    model.llm.mixing = Mixing(model.llm.model)
    with pytest.raises(ConfigError, match=r"set batch\.pack=false"):
        check_packing(model.llm)


@pytest.mark.parametrize("chunks", [1, 2, 3, 7, 20])
def test_chunks_change_neither_loss_nor_gradients(chunks):
    torch.manual_seed(0)
    head = nn.Linear(8, 30, bias=False)
    hidden_SD, labels_S = torch.randn(13, 8, requires_grad=True), torch.randint(30, (13,))
    whole = nn.functional.cross_entropy(head(hidden_SD), labels_S, reduction="none")
    whole.sum().backward()
    want = head.weight.grad.clone(), hidden_SD.grad.clone()
    head.zero_grad()
    hidden_SD.grad = None
    sizes: list[int] = []
    head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    loss_S = chunked_cross_entropy(head, hidden_SD, labels_S, chunks)
    assert max(sizes) == -(-13 // chunks)
    loss_S.sum().backward()
    torch.testing.assert_close(loss_S, whole)
    for got, expected in zip((head.weight.grad, hidden_SD.grad), want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_a_batch_without_a_learned_token_names_its_samples():
    model = tiny_model("image")
    batch = [example(model, (), 1, 1), example(model, (), 1, 2)]
    for item in batch:
        item.labels.fill_(IGNORED)
    with pytest.raises(BadInput, match="s1, s2: expected at least one supervised token"):
        LanguageModelling(model, pack=True)(batch)


# -- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: Any) -> Any:
    return write_shards(tmp_path_factory.mktemp("shards"))


def trained(shards: Path, out: Path, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Parameters and Adam's means of gradients after two steps."""
    tiny_run(
        *(shards, out),
        **{"batch": batch, "length": {"steps": 2}, "optim": {"lr": 2e-5, "warmup_steps": 0}},
        data={"targets": {"closed": 1, "qa": 1}},
    )
    checkpoints = Checkpoints(out, keep=1)
    saved = checkpoints.load(checkpoints.at(2))
    return {name: saved.whole(name) for name in saved.shapes}


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: Any) -> dict[str, torch.Tensor]:
    """With each batch in one pass."""
    return trained(shards, tmp_path_factory.mktemp("whole"), {"per_device": 8})


@pytest.mark.parametrize(
    "batch",
    [
        {"per_device": 1},
        {"per_device": 4, "arrange": "length"},
        {"per_device": 8, "arrange": "length", "pack": True, "tokens": 60},
    ],
    ids=str,
)
def test_the_update_does_not_depend_on_how_a_batch_is_laid_out(shards, tmp_path, whole, batch):
    """Gradients to 1e-6, and parameters after two steps at the published learning rate.

    Adam divides each gradient by its size, so that a larger rate would show the rounding of
    gradients near zero.
    """
    parts = trained(shards, tmp_path, batch)
    assert whole.keys() == parts.keys()
    gradients = [name for name in whole if name.startswith("exp_avg/")]
    assert max(whole[name].abs().max() for name in gradients) > 1e-3
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-6, rtol=1e-5)


def gradients(model: OneLLM, shards: Path, world: int, layout: Layout) -> dict[str, torch.Tensor]:
    """Gradients of one step, added up over all ranks, as the loop and its engines do."""
    samples = read_folder(shards, "train", model.modalities)
    kept = [examples(found, "qa") for found in samples.values()]
    parts = [Part(n, n, len(made)) for n, made in zip(samples, kept, strict=True)]
    order = Order(parts, seed=5, batch=8)
    loader = Loader(
        *(kept, order, lambda turns: encode_example(TEXT, "plain", turns)),
        *(SignalReader(model.modalities),),
        **{"layout": layout, "medium_tokens": 6},
    )
    objective = LanguageModelling(model, pack=layout.pack)
    model.zero_grad(set_to_none=True)
    where = {"world": world, "per_device": layout.per_device}
    batches = [b for r in range(world) for b in next(loader.steps(0, 1, rank=r, **where))]
    total = sum(sum(objective.counts(batch)) for batch in batches)
    for batch in batches:
        (objective(batch).total / total).backward()
    return {n: p.grad.clone() for n, p in objective.trained().items()}


def test_one_rank_of_eight_samples_equals_two_of_four_and_four_of_two(shards):
    model = tiny_model("image", "imu")
    select(model, ["llm.*", "projector.*", "tags.*.{modality}"], ["image", "imu"])
    want = gradients(model, shards, 1, Layout(per_device=8))
    assert max(g.abs().max() for g in want.values()) > 1e-3
    for world, layout in (
        (2, Layout(per_device=4)),
        (4, Layout(per_device=2, arrange="length")),
        (2, Layout(per_device=2, arrange="length", pack=True)),
        (2, Layout(per_device=1, arrange="length", pack=True, tokens=80)),
    ):
        got = gradients(model, shards, world, layout)
        for name in want:
            torch.testing.assert_close(got[name], want[name], atol=1e-6, rtol=1e-5)


def test_configurations_that_do_not_fit(tmp_path):
    def config(**sections: Any) -> Any:
        return tiny_config(tmp_path, tmp_path, **sections)

    with pytest.raises(ConfigError, match=r"batch\.tokens needs batch\.pack=true"):
        config(batch={"tokens": 100})
    with pytest.raises(ConfigError, match="are for the lm objective"):
        config(batch={"pack": True}, stage={"objective": "contrastive"})
    with pytest.raises(ConfigError, match=r"batch\.same_modality to a multiple of 8"):
        config(batch={"arrange": "length", "same_modality": 4}).batch.layout(2)
    with pytest.raises(ConfigError, match=r"datasets replaces data\.folder"):
        config(data={"datasets": [{"path": "a.json"}]})
