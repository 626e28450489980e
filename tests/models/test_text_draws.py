"""Texts are drawn fast and by the law of the model: what the likelihood gives a text is how often it comes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from small_texts import LETTERS, model
from torch import Tensor

from dpvae.data.tokens import BYTES, GLUE, WORDS, Vocabulary
from dpvae.models import text_draws
from dpvae.models.text import TextVAE
from dpvae.models.text_draws import Drawer, draw_index

BROKEN = [BYTES + byte for byte in (0x61, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xA7, 0xAD)]


def probabilities(vae: TextVAE, tokens_BT: Tensor, label: int, z_Z: Tensor) -> Tensor:
    """Of whole texts, (B,), length included: each place's law, held to what the grammar allows (here: letters)."""
    label_B = torch.full((len(tokens_BT),), label)
    with torch.no_grad():
        base, before, left = vae.base(tokens_BT, label_B)
        logits = base + vae.network(before, left, z_Z.expand(len(tokens_BT), -1), label_B)
        logits[..., :2] = -torch.inf
        log_BT = logits.log_softmax(-1).gather(-1, tokens_BT[..., None])[..., 0]
    there = tokens_BT != 0
    return torch.where(there, log_BT, 0.0).sum(1).exp() * vae.spans[label, there.sum(1)]


def test_a_text_comes_as_often_as_the_likelihood_says() -> None:
    vae, z_Z, label, count = model(LETTERS), torch.tensor([0.7, -1.1]), 1, 40_000
    texts = [text for size in range(4) for text in itertools.product((2, 3, 4), repeat=size)]
    table = torch.tensor([[*text, 0, 0, 0][:3] for text in texts])
    expected = probabilities(vae, table, label, z_Z)
    assert float(expected.sum()) == pytest.approx(1.0, abs=1e-5)
    drawn = Drawer(vae).draw(torch.full((count,), label), z_BZ=z_Z.expand(count, -1),
                             generator=torch.Generator().manual_seed(1))
    number = {text: i for i, text in enumerate(texts)}
    found = np.bincount([number[tuple(t for t in row if t)] for row in drawn.tolist()], minlength=len(texts))
    chi = ((found - count * expected.numpy()) ** 2 / (count * expected.numpy())).sum()
    assert chi < len(texts) + 5 * np.sqrt(2 * len(texts))  # the public seed is fixed: no chance is left to this


def test_of_many_tokens_each_comes_as_often_as_its_weight() -> None:
    weights = torch.rand(1, 1024, generator=torch.Generator().manual_seed(0)) ** 4
    count = 60_000
    uniform = torch.rand(2, count, generator=torch.Generator().manual_seed(1))
    found = draw_index(weights.expand(count, -1), uniform).bincount(minlength=1024).double()
    expected = count * (weights[0] / weights.sum()).double()
    chi = float(((found - expected) ** 2 / expected.clamp_min(1e-9))[expected > 0.01].sum())
    assert chi < 1024 + 5 * np.sqrt(2 * 1024)


@pytest.mark.parametrize("wide", [7, 1024])
def test_a_weight_of_zero_is_never_drawn_whatever_the_random_number(wide: int) -> None:
    weights = torch.rand(4000, wide, generator=torch.Generator().manual_seed(0))
    weights[:, wide // 2:] = 0.0
    weights[:, 0] = 0.0
    for uniform in (0.0, 1 - 2**-24):
        drawn = draw_index(weights, torch.full((2, 4000), uniform))
        assert bool((weights.gather(1, drawn[:, None]) > 0).all())


@pytest.mark.parametrize("sure", [1.0, 300.0])
@pytest.mark.parametrize("words", [False, True])
def test_whatever_is_drawn_is_utf8_of_the_length_that_was_drawn(words: bool, sure: float) -> None:
    tokens = [*BROKEN, *([GLUE, *range(WORDS, WORDS + 400)] if words else [])]
    vae = model(sorted(tokens), most=9, words=words)
    with torch.no_grad():
        vae.network.out.weight.mul_(sure)  # a network that is as good as certain of one token
    drawn = Drawer(vae).draw(torch.zeros(3000, dtype=torch.long), generator=torch.Generator().manual_seed(0))
    vocabulary = Vocabulary(tuple(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(400)))
    active = np.array([0, WORDS, *sorted(tokens)])
    assert all("\ufffd" not in vocabulary.decode(row) for row in active[drawn.numpy()].tolist())
    lengths = (drawn != 0).sum(1).bincount(minlength=10) / 3000
    assert float((lengths - vae.spans[0]).abs().sum()) / 2 < 0.04


def test_the_same_seed_draws_the_same_texts_and_lengths_come_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, labels = model(LETTERS), torch.zeros(200, dtype=torch.long)

    def draw(**how: bool) -> Tensor:
        return Drawer(vae, **how).draw(labels, generator=torch.Generator().manual_seed(5))

    once = draw()
    assert torch.equal(once, draw())
    assert torch.equal((draw(use_network=False) != 0).sum(1), (once != 0).sum(1))
    monkeypatch.setattr(text_draws, "MOST", 16)
    assert torch.equal((draw() != 0).sum(1), (once != 0).sum(1))
