"""From noisy statistics of texts to a text VAE: the steps that cost nothing.

    calibrate  what each label draws is held against what was measured of it
    fit        the latent is given a meaning on texts that the automaton itself draws, in any number of steps
    sleep      the encoder follows the decoder, on what that draws

Private texts are read for their ELBO alone (:func:`elbos`), which leaves with booked noise. A latent that is not needed
collapses, and on texts a good decoder never needs it: so the fit holds the rate at :data:`FREE_NATS` a text (free bits,
Kingma et al. 2016), and the report says what the latent carries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpvae.models.elbo import kl_to_standard_normal
from dpvae.models.text import RARE, Known, TextVAE
from dpvae.rng import seed_of
from dpvae.train.ngrams import Released

FREE_NATS = 2.0  # a text's rate below which nothing is gained by lowering it
BATCH, POOL = 256, 16_384
PLACES = 256  # of the texts that are looked at together
LEARNING_RATE = 3e-3
CALIBRATIONS, STEP = 6, 0.7
Listener = Callable[[int, int], None]


@dataclass(frozen=True)
class Coded:
    """Texts as active tokens (texts, T) and numbers of labels (texts,)."""

    tokens: Tensor
    labels: Tensor


def fit(vae: TextVAE, *, steps: int, seed: int, listen: Listener) -> None:
    """Give the latent a meaning: ELBO on the automaton's own texts, with a floor under the rate. Reads nothing
    private."""
    if not steps:
        return
    generator = torch.Generator().manual_seed(seed_of(seed, "text", "fit"))
    labels = draw_labels(vae, POOL, generator)
    pool = vae.sample(labels, generator=generator, use_network=False)
    order = (pool != 0).sum(1).argsort(stable=True)
    pool, labels = pool[order], labels[order]  # a batch is of texts of like length: less to fill up
    optimiser = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=max(steps, 2))
    for step in range(steps):
        start = int(torch.randint(0, len(pool) - BATCH + 1, (1,), generator=generator))
        batch = slice(start, start + BATCH)
        tokens_BT = trimmed(pool[batch])
        base_BTA, before_BT, left_BT = vae.base(tokens_BT, labels[batch])
        mean_BZ, log_std_BZ = vae.encoder(tokens_BT, labels[batch])
        z_BZ = mean_BZ + log_std_BZ.exp() * torch.randn(mean_BZ.shape, generator=generator)
        log_B = vae.log_prob(vae.network, base_BTA, before_BT, left_BT, tokens_BT, z_BZ, labels[batch])
        rate = kl_to_standard_normal(mean_BZ, log_std_BZ).mean()
        optimiser.zero_grad(set_to_none=True)
        (rate.clamp_min(FREE_NATS) - log_B.mean()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 20 == 0 or step + 1 == steps:
            listen(step + 1, steps)


def sleep(vae: TextVAE, *, steps: int, seed: int) -> None:
    """Let the encoder follow the decoder: log q(z | text) on pairs that the model draws. Reads nothing private."""
    generator = torch.Generator().manual_seed(seed_of(seed, "text", "sleep"))
    labels = draw_labels(vae, POOL, generator)
    z_NZ = torch.randn(POOL, vae.shape["latent_dim"], generator=generator)
    tokens = vae.sample(labels, generator=generator, z_BZ=z_NZ)
    order = (tokens != 0).sum(1).argsort(stable=True)
    optimiser = torch.optim.Adam(vae.encoder.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        start = int(torch.randint(0, max(POOL - BATCH, 0) + 1, (1,), generator=generator))
        batch = order[start:start + BATCH]
        mean_BZ, log_std_BZ = vae.encoder(trimmed(tokens[batch]), labels[batch])
        loss = (0.5 * ((z_NZ[batch] - mean_BZ) * (-log_std_BZ).exp()) ** 2 + log_std_BZ).sum(-1).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


@torch.no_grad()
def calibrate(vae: TextVAE, shares: np.ndarray, *, seed: int) -> None:
    """Let each label's tokens come out as often as they were measured, (L, A): what the automaton draws is counted, and
    the label's tilt is moved by the logarithm of what is missing. Post-processing."""
    target_LA = torch.tensor(shares, dtype=torch.float32)
    target_LA[:, :RARE + 1] = 0.0  # rare words stay as the sequences have them
    target_LA /= target_LA.sum(1, keepdim=True).clamp_min(1e-9)
    for number in range(CALIBRATIONS):
        generator = torch.Generator().manual_seed(seed_of(seed, "text", "calibrate", number))
        labels = draw_labels(vae, POOL, generator)
        tokens = vae.sample(labels, generator=generator, use_network=False)
        drawn_LA = torch.zeros_like(target_LA)
        drawn_LA.index_put_((labels[:, None].expand_as(tokens), tokens), torch.ones(()), accumulate=True)
        drawn_LA[:, :RARE + 1] = 0.0
        wanted_LA = target_LA * drawn_LA.sum(1, keepdim=True)
        moved = ((wanted_LA + 5.0) / (drawn_LA + 5.0)).log() * STEP
        moved[:, :RARE + 1] = 0.0
        vae.tilt.copy_((vae.tilt.float() + moved).clamp(-10, 10))
        vae.prepare()


def draw_labels(vae: TextVAE, count: int, generator: torch.Generator, *, among: Tensor | None = None) -> Tensor:
    """Labels by their noisy shares, (count,); only those ``among``, where these are given."""
    shares = vae.labels.float()
    if among is not None:
        shares = torch.zeros_like(shares).index_copy(0, among, shares[among].clamp_min(1e-6))
    return torch.multinomial(shares, count, replacement=True, generator=generator)


def trimmed(tokens_BT: Tensor) -> Tensor:
    """Without the places that no text of the batch reaches."""
    return tokens_BT[:, :max(int((tokens_BT != 0).sum(1).max()), 1)]


@torch.no_grad()
def elbos(vae: TextVAE, coded: Coded, *, generator: torch.Generator) -> np.ndarray:
    """One ELBO per text, (texts,), in nats, to the last bit a function of that text; private where the texts are."""
    # the same numbers for every text: were they dealt out by position, one record would move the others'
    noise_1Z = torch.randn(1, vae.shape["latent_dim"], generator=generator)
    return one_by_one(coded, lambda tokens_BT, label_B: vae.elbo(
        tokens_BT, label_B, noise_1Z.expand(len(label_B), -1)).value)


def one_by_one(coded: Coded, value: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """``value(tokens, labels)`` of every text, (texts,), whoever else is there.

    How a sum is rounded depends on the shape of a batch. So a text is always among equally many of its own length, that
    follow from this length alone; where there are fewer, they are repeated.
    """
    found = np.zeros(len(coded.tokens))
    length = (coded.tokens != 0).sum(1)
    order = length.argsort(stable=True)
    for alike in order.split(torch.bincount(length).tolist()):
        size = max(int(length[alike[0]]), 1) if len(alike) else 1
        together = max(PLACES // size, 4)
        for part in alike.split(together) if len(alike) else ():
            filled = part[torch.arange(together) % len(part)]
            answer = value(coded.tokens[filled, :size], coded.labels[filled])
            found[part.numpy()] = answer[:len(part)].double().numpy()
    return found


def known_of(released: Released, grammar: Any, marks: np.ndarray) -> Known:
    """Released statistics as the tensors of a model."""
    rows = torch.tensor(released.rows, dtype=torch.float16)
    shares = torch.tensor(released.label_counts / released.label_counts.sum(), dtype=torch.float32)
    return Known(
        contexts=torch.tensor(released.contexts, dtype=torch.int16), rows=rows,
        tilt=torch.tensor(released.tilt, dtype=torch.float16),
        lengths=torch.tensor(released.lengths, dtype=torch.float32), labels=shares, marks=torch.tensor(marks),
        allowed=torch.tensor(grammar.allowed), after=torch.tensor(grammar.after), missing=torch.tensor(grammar.missing))


@torch.no_grad()
def diagnose(vae: TextVAE, *, seed: int, count: int = 2048) -> dict[str, float]:
    """Did the latent learn anything? From the model's own texts, so free: see :mod:`dpvae.evaluate.collapse`.

    ``reconstruction`` is the mean of log p(text | latent), ``unconditional`` that of the automaton, which knows none.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "report"))
    labels = draw_labels(vae, count, generator)
    tokens = vae.sample(labels, generator=generator)
    rates, alone, told, means = [], [], [], []
    for part in (tokens != 0).sum(1).argsort(stable=True).split(32):
        x, label = trimmed(tokens[part]), labels[part]
        mean_BZ, log_std_BZ = vae.encoder(x, label)
        base_BTA, before_BT, left_BT = vae.base(x, label)
        z_BZ = mean_BZ + log_std_BZ.exp() * torch.randn(mean_BZ.shape, generator=generator)
        told.append(vae.log_prob(vae.network, base_BTA, before_BT, left_BT, x, z_BZ, label))
        log_BT = base_BTA.log_softmax(-1).gather(-1, x[..., None])[..., 0] * (x != 0)
        rates.append(kl_to_standard_normal(mean_BZ, log_std_BZ))
        alone.append(log_BT.sum(1))
        means.append(mean_BZ)
    return {"rate": float(torch.cat(rates).mean()), "active_units": int((torch.cat(means).var(0) > 0.01).sum()),
            "latent_dim": vae.shape["latent_dim"], "reconstruction": float(torch.cat(told).mean()),
            "unconditional": float(torch.cat(alone).mean())}


def independent_elbo(released: Released) -> float:
    """Nats of a text whose tokens are drawn one by one from its label's noisy shares: minus the entropies of label,
    length and tokens. What their order tells is above that."""
    about = released.label_counts / released.label_counts.sum()
    length = released.lengths @ np.arange(released.lengths.shape[1])
    by_label = _entropy(released.lengths) + length * _entropy(released.shares)
    return -float(_entropy(about[None])[0] + about @ by_label)


def _entropy(shares: np.ndarray) -> np.ndarray:
    return np.asarray(-(shares * np.log(np.maximum(shares, 1e-300))).sum(-1))
