"""From noisy statistics of texts to a trained text VAE.

    fit      the latent is given a meaning on texts that the automaton itself draws: free, any number of steps
    dpsgd    the network learns from private texts what the automaton lacks (where the plan leaves it a share)
    sleep    the encoder learns from the decoder's own texts: free

Private texts are read for the noisy ELBO and by DP-SGD alone, both booked. A latent that is not needed collapses, and on texts
a good decoder never needs it: so the fit holds the rate at :data:`FREE_NATS` a text (free bits, Kingma et al. 2016), and the
report says what the latent carries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpvae.models.elbo import kl_to_standard_normal
from dpvae.models.text import Known, TextVAE
from dpvae.rng import seed_of

FREE_NATS = 2.0  # a text's rate below which nothing is gained by lowering it
BATCH, POOL = 256, 16_384
LEARNING_RATE = 3e-3
Listener = Callable[[int, int], None]


@dataclass(frozen=True)
class Coded:
    """Private texts as active tokens (texts, T), labels (texts,) and weights (texts,); see :func:`noisy_elbos`."""

    tokens: Tensor
    labels: Tensor


def fit(vae: TextVAE, *, steps: int, seed: int, listen: Listener) -> None:
    """Give the latent a meaning: ELBO on the automaton's own texts, with a floor under the rate. Reads nothing private."""
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


def draw_labels(vae: TextVAE, count: int, generator: torch.Generator) -> Tensor:
    """Labels by their noisy shares, (count,)."""
    return torch.multinomial(vae.labels.float(), count, replacement=True, generator=generator)


def trimmed(tokens_BT: Tensor) -> Tensor:
    """Without the places that no text of the batch reaches."""
    return tokens_BT[:, :max(int((tokens_BT != 0).sum(1).max()), 1)]


@torch.no_grad()
def elbos(vae: TextVAE, coded: Coded, *, generator: torch.Generator) -> np.ndarray:
    """One ELBO per text, (texts,), in nats; private where the texts are."""
    # the same numbers for every text: were they dealt out by position, one record would move the others'
    noise_1Z = torch.randn(1, vae.shape["latent_dim"], generator=generator)
    found = np.zeros(len(coded.tokens))
    order = (coded.tokens != 0).sum(1).argsort(stable=True)
    for part in order.split(512):
        value_B = vae.elbo(trimmed(coded.tokens[part]), coded.labels[part], noise_1Z.expand(len(part), -1)).value
        found[part.numpy()] = value_B.double().numpy()
    return found


def known_of(released: Any, grammar: Any, marks: np.ndarray) -> Known:
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

    ``independent_elbo`` is the log-likelihood under the automaton alone, which knows no latent.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "report"))
    labels = draw_labels(vae, count, generator)
    tokens = vae.sample(labels, generator=generator)
    rates, alone, means = [], [], []
    for part in torch.arange(count).split(512):
        x, label = trimmed(tokens[part]), labels[part]
        mean_BZ, log_std_BZ = vae.encoder(x, label)
        base_BTA, _, _ = vae.base(x, label)
        log_BT = base_BTA.log_softmax(-1).gather(-1, x[..., None])[..., 0] * (x != 0)
        rates.append(kl_to_standard_normal(mean_BZ, log_std_BZ))
        alone.append(log_BT.sum(1) + vae.outside(x, label))
        means.append(mean_BZ)
    return {"independent_elbo": float(torch.cat(alone).mean()), "rate": float(torch.cat(rates).mean()),
            "active_units": int((torch.cat(means).var(0) > 0.01).sum()), "latent_dim": vae.shape["latent_dim"]}
