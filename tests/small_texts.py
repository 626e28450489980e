"""A text model so small that all its texts can be counted; no test in here."""

from __future__ import annotations

import numpy as np
import torch

from dpvae.data.grammar import Grammar
from dpvae.data.tokens import BYTES, GLUE
from dpvae.models.text import Known, TextVAE

LETTERS = [BYTES + ord(letter) for letter in "abc"]


def model(tokens: list[int], *, labels: int = 2, most: int = 3, words: bool = False) -> TextVAE:
    """An untrained model over ``tokens`` whose every part has something to say."""
    generator = torch.Generator().manual_seed(3)
    active = np.array([0, 0, *tokens])
    size = len(active)
    grammar = Grammar.of(active, words=words)
    pairs = [(a, b) for a in range(2, min(size, 5)) for b in range(2, min(size, 5))]
    contexts = torch.tensor([[-1, -1, token] for token in range(size)] + [[-1, a, b] for a, b in pairs])
    rows = torch.rand(len(contexts), size, generator=generator) + 0.01
    lengths = torch.rand(labels, most + 1, generator=generator)
    known = Known(
        contexts=contexts.to(torch.int16), rows=(rows / rows.sum(1, keepdim=True)).half(),
        tilt=torch.randn(labels, size, generator=generator).half(), lengths=lengths / lengths.sum(1, keepdim=True),
        labels=torch.full((labels,), 1 / labels), marks=torch.tensor([token in (GLUE,) for token in active]),
        allowed=torch.tensor(grammar.allowed), after=torch.tensor(grammar.after), missing=torch.tensor(grammar.missing))
    vae = TextVAE(known, latent_dim=2, hidden=8, generator=generator)
    with torch.no_grad():
        vae.network.out.weight.normal_(0, 0.5, generator=generator)
        vae.network.topic.weight.normal_(0, 0.5, generator=generator)
    return vae
