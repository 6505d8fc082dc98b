"""Losses: where they look, what they reach, what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import signals, tiny_model, tiny_text
from torch.nn import functional

from onellm.data.loader import Batch, Example, Medium
from onellm.errors import BadInput
from onellm.model import OneLLM
from onellm.prompts import encode_example
from onellm.sequence import TokenSeq
from onellm.train.contrastive import Contrastive
from onellm.train.media import FrozenStore, encode_groups
from onellm.train.objectives import LanguageModelling, build_objective, has_plain_head
from onellm.train.regression import embed_texts
from onellm.train.stage import ContrastiveConfig, StageConfig
from onellm.train.trainables import select

TEXT = tiny_text()


@pytest.fixture
def model() -> OneLLM:
    return tiny_model("image", "imu", "audio")


def example(
    model: OneLLM, names: tuple[str, ...], answer: str, seed: int = 0, question: str = ""
) -> Example:
    turns = [("user", question)] if question else []
    ids, labels = encode_example(TEXT, "plain", [*turns, ("assistant", answer)])
    media = tuple(
        Medium(name, f"{name}/{seed}/{i}", signals(model, name, 1, seed + i)[0])
        for i, name in enumerate(names)
    )
    return Example(f"s{seed}", "+".join(names) or "text", media, ids, labels, answer)


def mixed(model: OneLLM) -> Batch:
    return [
        example(model, ("image",), "a chair", 1, "What is this?"),
        example(model, ("imu", "audio"), "running", 2, "What is heard and done?"),
        example(model, (), "yes", 3, "Is it?"),
    ]


def test_loss_is_cross_entropy_at_supervised_positions(model):
    batch = mixed(model)
    losses = LanguageModelling(model)(batch)
    for b, item in enumerate(batch):
        media = [(m.modality, m.signal[None]) for m in item.media]
        logits_TV = model(item.ids[None], media)[0]
        want = functional.cross_entropy(
            logits_TV[:-1], item.labels[1:], ignore_index=-100, reduction="sum"
        )
        assert float(losses.sums_B[b]) == pytest.approx(float(want.detach()), rel=1e-5)
    assert losses.total.item() == pytest.approx(float(losses.sums_B.sum()), rel=1e-6)
    assert LanguageModelling(model).counts(batch) == [e.supervised for e in batch]


def test_logits_are_computed_nowhere_else(model):
    objective, seen = LanguageModelling(model), []
    head = model.llm.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    batch = mixed(model)
    objective(batch)
    assert seen == [torch.Size([sum(e.supervised for e in batch), 320])]


def test_changing_a_question_label_changes_nothing_and_an_answer_does(model):
    batch = mixed(model)[:1]
    loss = LanguageModelling(model)(batch).total.item()
    moved = Example(**{**vars(batch[0]), "labels": batch[0].labels.roll(0).clone()})
    moved.labels[-1] = -100
    assert LanguageModelling(model)([moved]).total.item() < loss


def test_a_batch_without_a_learned_token_names_its_samples(model):
    batch = mixed(model)[:2]
    for item in batch:
        item.labels.fill_(-100)
    with pytest.raises(BadInput, match="s1, s2: expected at least one supervised token"):
        LanguageModelling(model)(batch)


def test_every_trained_parameter_gets_a_gradient_whatever_was_drawn(model):
    globs = ["tokenizers.*", "positions.*", "projector.*", "tags.*"]
    names = select(model, globs, ["image", "imu", "audio"])
    for batch in (mixed(model)[:1], mixed(model)[2:], mixed(model)):
        model.zero_grad(set_to_none=True)
        objective = LanguageModelling(model)
        objective.in_step = True
        objective(batch).total.backward()
        grads = {n: p.grad for n, p in objective.trained().items()}
        assert list(grads) == names
        assert all(g is not None for g in grads.values())
    grads = {n: p.grad for n, p in objective.trained().items()}
    assert grads["tokenizers.audio.conv.weight"].abs().sum() > 0  # through the frozen encoder


def test_only_what_was_drawn_moves(model):
    select(model, ["projector.*", "tags.*"], ["image"])
    for in_step in (True, False):
        objective = LanguageModelling(model)
        objective.in_step = in_step
        model.zero_grad(set_to_none=True)
        objective(mixed(model)[:1]).total.backward()
        assert model.projector.queries["image"].grad.abs().sum() > 0
        idle = model.projector.queries["imu"].grad  # a process alone does not pay for zeros
        assert idle.abs().sum() == 0 if in_step else idle is None


# -- contrastive ------------------------------------------------------------------------------


def _contrastive(model: OneLLM, seed: int = 0) -> Contrastive:
    select(model, ["projector.*"], ["image"])
    return Contrastive(model, ContrastiveConfig(width=16), ["a chair", "a lamp"], seed)


def test_contrastive_counts_same_texts_as_positives(model):
    objective = _contrastive(model)
    batch = [example(model, ("image",), "a chair", s) for s in (1, 2)]
    batch.append(example(model, ("image",), "a lamp", 3))
    media_BD = torch.randn(3, 32)
    loss_B = objective._loss(media_BD, [e.answer for e in batch], torch.eye(3))
    logits_BK = objective.head(media_BD, embed_texts(model, ["a chair", "a lamp"]))
    # A picture of a chair has both chairs' text as its one right answer among two texts …
    to_text = -logits_BK.log_softmax(1)[0, 0]
    # … and the text has each chair in turn as its right answer among three pictures.
    to_media = -logits_BK.log_softmax(0)[0, 0]
    assert loss_B[0].item() == pytest.approx(((to_text + to_media) / 2).item(), rel=1e-5)
    assert objective.counts(batch) == [1, 1, 1]


def test_contrastive_keeps_modalities_apart(model):
    objective = _contrastive(model)
    images = [example(model, ("image",), t, s) for s, t in enumerate(("a chair", "a lamp"))]
    motions = [example(model, ("imu",), t, s) for s, t in enumerate(("running", "walking"))]
    together = objective([images[0], motions[0], images[1], motions[1]]).sums_B
    apart = torch.cat([objective(images).sums_B, objective(motions).sums_B])
    torch.testing.assert_close(together[[0, 2, 1, 3]], apart, rtol=1e-5, atol=1e-6)


def test_mixup_shares_features_and_texts_alike(model):
    objective = _contrastive(model)
    objective.mixup = 0.5
    batch = [example(model, ("image",), t, s) for s, t in enumerate(("a chair", "a lamp", "a mat"))]
    (group,) = encode_groups(model, batch, None)
    torch.manual_seed(0)
    media_BD, share_BB = objective._media(group)
    assert torch.allclose(share_BB.sum(1), torch.ones(3))
    assert not torch.equal(share_BB, torch.eye(3))
    x_BND = torch.einsum("bc,cnd->bnd", share_BB, group.features.x_BND)
    features = TokenSeq(x_BND, group.features.mask_BN, group.features.grid, "image")
    torch.testing.assert_close(media_BD, model.projector.mix(features).mean(1))
    # A sample that is half a chair and half a lamp has the mean of both losses.
    texts = [item.answer for item in batch]
    half_BB = torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    lamp_BB = torch.tensor([[0.0, 1, 0], [0, 1, 0], [0, 0, 1]])
    chair, lamp, half = (
        objective._loss(media_BD, texts, share)[0] for share in (torch.eye(3), lamp_BB, half_BB)
    )
    assert half.item() == pytest.approx((chair + lamp).item() / 2, rel=1e-5)
    objective.eval()
    assert torch.equal(objective._media(group)[1], torch.eye(3))


def test_blending_treats_padding_as_nothing():
    x_BND = torch.tensor([[[2.0], [4.0]], [[6.0], [100.0]]])
    mask_BN = torch.tensor([[True, True], [True, False]])
    mixed = TokenSeq(x_BND, mask_BN, (2,), "imu").blend(
        torch.tensor([1, 0]), torch.tensor([0.25, 1.0])
    )
    assert mixed.x_BND.flatten().tolist() == [5.0, 1.0, 6.0, 0.0]
    assert mixed.mask_BN.all()


def test_contrastive_leaves_the_way_to_the_llm_alone(model):
    objective = _contrastive(model)
    select(model, ["projector.*"], ["image"])
    objective([example(model, ("image",), "a chair", 1)] * 2).total.backward()
    assert all(p.grad is None for n, p in objective.trained().items() if "proj_out.imu" in n)
    assert model.projector.proj_out["image"][0].weight.grad is None
    assert all(p.grad is None for p in model.llm.parameters())
    assert {"head.media.weight", "head.text.weight", "head.log_scale"} <= set(objective.trained())
    assert set(objective.head_buffers()) == {"head.centre"}


def test_contrastive_head_is_seeded_and_bounded(model):
    state = torch.random.get_rng_state()
    one, two = _contrastive(model, 1), _contrastive(model, 1)
    assert torch.equal(one.head.media.weight, two.head.media.weight)
    assert not torch.equal(one.head.media.weight, _contrastive(model, 2).head.media.weight)
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.no_grad():
        one.head.log_scale.fill_(math.log(1e6))
    assert one.head(torch.randn(4, 32), torch.randn(3, 32)).abs().max() <= 100.1


def test_contrastive_wants_one_medium(model):
    with pytest.raises(BadInput, match="s2: expected one medium"):
        _contrastive(model)(mixed(model)[1:])


def test_build_objective(model):
    stage: dict[str, Any] = {"name": "x", "modalities": ("image",), "trainable": ("tags.*",)}
    assert type(build_objective(model, StageConfig(**stage), [], 0)) is LanguageModelling
    stage["objective"] = "contrastive"
    assert type(build_objective(model, StageConfig(**stage), ["a chair"], 0)) is Contrastive


# -- frozen outputs -----------------------------------------------------------------------------


def test_stored_features_give_the_same_loss_without_signals(model):
    select(model, ["projector.*", "tags.*"], ["image"])
    batch = mixed(model)
    objective = LanguageModelling(model)
    want = objective(batch).sums_B
    store = FrozenStore(model, "features", ["image", "imu", "audio"], gigabytes=1)
    for item in batch:
        for medium in item.media:
            store._keep([medium.key], store._compute(medium.modality, medium.signal[None]).detach())
    objective.store = store
    bare = [
        Example(**{**vars(e), "media": tuple(Medium(m.modality, m.key, None) for m in e.media)})
        for e in batch
    ]
    torch.testing.assert_close(objective(bare).sums_B, want, rtol=1e-5, atol=1e-5)


def test_the_loss_is_of_the_llms_own_logits():
    """Gemma 2 caps its logits behind the head; the loss must see the capped ones."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = tiny_model("imu")
    assert has_plain_head(model.llm)
    torch.manual_seed(0)
    model.llm = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            final_logit_softcapping=0.5,
        )
    ).eval()
    assert not has_plain_head(model.llm)
    examples = []
    for said in ("walking", "playing badminton, I think"):
        ids, labels = encode_example(tiny_text(), "plain", [("user", "What?"), ("assistant", said)])
        media = (Medium("imu", said, signals(model, "imu", 1)[0]),)
        examples.append(Example(said, "imu", media, ids, labels, said))
    with torch.no_grad():
        loss = LanguageModelling(model)(examples).total
        soft = model.soften([[("imu", e.media[0].signal)] for e in examples])
        spliced = model.splice(
            [e.ids for e in examples], [e.labels for e in examples], [[("imu", s[0])] for s in soft]
        )
        logits = model.llm(
            inputs_embeds=spliced.embeds, attention_mask=spliced.attention_mask
        ).logits
        want = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), spliced.labels[:, 1:].flatten(), reduction="sum"
        )
    torch.testing.assert_close(loss, want, atol=1e-4, rtol=0)
