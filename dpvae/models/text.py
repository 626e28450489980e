"""The text VAE: label and length -> latent -> one token after another, and an encoder back.

The decoder is a product of two factors, normalised together at every place: an automaton of short contexts, written
down from noisy counts, and a recurrent network that sees the latent and everything before. The first is what a few
thousand noisy numbers can say; the second starts as nothing and adds what they cannot.

    log p(token) = row(context) + tilt(label) + ahead(places left) + network(latent, label, all before)

``ahead`` is how likely the rest of a text of the given length becomes, so that texts end where texts end. The latent's
prior is a standard normal. A length is drawn first (a control code, like the label), so there is no token for the end.

Shapes: B texts, T places, A active tokens (0: start, filler; 1: rare), R states of the automaton, L labels, Z latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpvae.models.elbo import Elbo, kl_to_standard_normal
from dpvae.models.text_draws import DEEP, Drawer

RARE = 1
FAR = 31  # places left that the network tells apart
SMALL = 300  # active tokens up to which the end of a text is looked up by state, not by last token
_NEVER = -1e9


@dataclass(frozen=True)
class Known:
    """What is released of texts, as tensors: the automaton and the control codes."""

    contexts: Tensor  # (R, 3) active tokens, -1 before the first
    rows: Tensor  # (R, A) probabilities
    tilt: Tensor  # (L, A) logarithms
    lengths: Tensor  # (L, T + 1)
    labels: Tensor  # (L,) shares
    marks: Tensor  # (A,) bool: tokens that are no context
    allowed: Tensor  # (S, A) bool
    after: Tensor  # (S, A)
    missing: Tensor  # (S,)


class Network(nn.Module):
    """The recurrent factor: logits (B, T, A), all zero before training."""

    def __init__(self, tokens: int, labels: int, *, latent_dim: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, hidden // 2)
        self.label = nn.Embedding(labels, hidden // 2)
        self.left = nn.Embedding(FAR + 1, hidden // 4)
        self.latent = nn.Linear(latent_dim, hidden // 2)
        self.cell = nn.GRU(hidden // 2 * 3 + hidden // 4, hidden, batch_first=True)
        self.out = nn.Linear(hidden, tokens)
        self.topic = nn.Linear(latent_dim, tokens, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 1 / math.sqrt(hidden), generator=generator)
            self.out.weight.zero_()
            self.out.bias.zero_()
            self.topic.weight.zero_()

    def inputs(self, before_BT: Tensor, left_BT: Tensor, z_BZ: Tensor, label_B: Tensor) -> Tensor:
        """(B, T, hidden...): what the cell reads at each place."""
        fixed = torch.cat([self.label(label_B), self.latent(z_BZ)], -1)[:, None].expand(-1, before_BT.shape[1], -1)
        return torch.cat([self.embed(before_BT), self.left(left_BT.clamp(0, FAR)), fixed], -1)

    def forward(self, before_BT: Tensor, left_BT: Tensor, z_BZ: Tensor, label_B: Tensor) -> Tensor:
        seen_BTH, _ = self.cell(self.inputs(before_BT, left_BT, z_BZ, label_B))
        return self.out(seen_BTH) + self.topic(z_BZ)[:, None]


class Encoder(nn.Module):
    """q(z | text, label): mean and log standard deviation, each (B, Z)."""

    def __init__(self, tokens: int, labels: int, *, latent_dim: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, hidden)
        self.label = nn.Embedding(labels, hidden)
        self.cell = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(2 * hidden, 2 * latent_dim)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 1 / math.sqrt(hidden), generator=generator)

    def forward(self, tokens_BT: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        there_BT1 = (tokens_BT != 0).float()[..., None]
        embedded = self.embed(tokens_BT) + self.label(label_B)[:, None]
        seen, _ = self.cell(embedded)
        count = there_BT1.sum(1).clamp_min(1.0)
        mean = torch.cat([(part * there_BT1).sum(1) / count for part in (embedded, seen)], -1)
        mean_BZ, log_std_BZ = self.out(mean).chunk(2, -1)
        return mean_BZ, log_std_BZ.clamp(-6.0, 3.0)


class TextVAE(nn.Module):
    """See the module's docstring; ``known`` is public, ``generator`` the public randomness of the initial weights."""

    def __init__(self, known: Known, *, latent_dim: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        tokens, labels = known.rows.shape[1], len(known.tilt)
        self.shape = {"latent_dim": latent_dim, "hidden": hidden}
        for name in Known.__dataclass_fields__:
            self.register_buffer(name, getattr(known, name))
        self.network = Network(tokens, labels, latent_dim=latent_dim, hidden=hidden, generator=generator)
        self.encoder = Encoder(tokens, labels, latent_dim=latent_dim, hidden=hidden, generator=generator)
        self.prepare()

    @property
    def decoder(self) -> Network:
        """The part of the decoder that learns by gradients."""
        return self.network

    def prepare(self) -> None:
        """Work out what follows from the buffers, which may have been changed; not saved."""
        rows, self.states = self.rows.float(), self.contexts.long()
        self.tokens, self.most = rows.shape[1], self.lengths.shape[1] - 1
        self.log_rows = (rows[:, 1:] / rows[:, 1:].sum(1, keepdim=True).clamp_min(1e-30)).clamp_min(1e-12).log()
        self.log_rows = torch.cat([torch.full((len(rows), 1), _NEVER), self.log_rows], 1)
        self.successor = self._successors()
        end_A = self._last(rows)[:, 0].clamp_min(1e-9)
        self.ending = rows[self.successor][..., 0].clamp_min(1e-9).log() if self.tokens <= SMALL else None
        self.ahead = self._ahead(end_A)
        self.leaning, self.spans = self.tilt.float(), self.lengths.float()
        needed = self.missing[self.after]  # (S, A)
        fits = [self.allowed & (needed <= left) for left in range(DEEP + 1)]
        self.fits = torch.stack(fits, 1).flatten(0, 1).float()  # by (grammar state, places left, up to DEEP)

    def _last(self, table_RX: Tensor) -> Tensor:
        """The entries of the states of one token, by token, (A, X)."""
        first = (self.states[:, 1] < 0).nonzero()[:, 0]
        found = table_RX.new_zeros(self.tokens, table_RX.shape[1])
        found[self.states[first, 2]] = table_RX[first]
        return found

    def _ahead(self, end_A: Tensor) -> Tensor:
        """log P(the text ends after r more tokens | last token), (most + 1, A), up to a constant of r."""
        step_AA = self._last(self.log_rows).exp()
        now, found = end_A, [end_A.log()]
        for _ in range(self.most):
            now = step_AA @ now
            now = (now / now.max().clamp_min(1e-30)).clamp_min(1e-9)
            found.append(now.log())
        return torch.stack(found)

    def _successors(self) -> Tensor:
        """The state after (state, token), (R, A): the longest known end of what was read; a mark changes nothing."""
        contexts, size = self.states, self.tokens
        code = ((contexts[:, 0] + 1) * (size + 1) + contexts[:, 1] + 1) * (size + 1) + contexts[:, 2] + 1
        order = code.argsort()
        sorted_R = code[order]
        token_A = torch.arange(size)
        found = torch.full((len(contexts), size), -1)
        for kept in (2, 1, 0):
            first, second = (contexts[:, 1] if kept > 1 else None), (contexts[:, 2] if kept > 0 else None)
            usable = torch.ones(len(contexts), dtype=torch.bool)
            if first is not None:
                usable &= first >= 0
            a = (first + 1) if first is not None else torch.zeros(len(contexts), dtype=torch.long)
            b = (second + 1) if second is not None else torch.zeros(len(contexts), dtype=torch.long)
            wanted = (a * (size + 1) + b)[:, None] * (size + 1) + token_A + 1
            place = torch.searchsorted(sorted_R, wanted).clamp_max(len(sorted_R) - 1)
            hit = (sorted_R[place] == wanted) & usable[:, None] & (found < 0)
            found = torch.where(hit, order[place], found)
        return torch.where(self.marks, torch.arange(len(contexts))[:, None], found).clamp_min(0)

    # -- likelihood --------------------------------------------------------------------------------------------------

    def base(self, tokens_BT: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the automaton at every place (B, T, A), the tokens before (B, T) and the places left (B, T)."""
        length_B = (tokens_BT != 0).sum(1)
        before_BT = torch.cat([torch.zeros_like(tokens_BT[:, :1]), tokens_BT[:, :-1]], 1)
        left_BT = length_B[:, None] - 1 - torch.arange(tokens_BT.shape[1])
        state_B = torch.zeros_like(label_B)
        states = []
        for place in range(tokens_BT.shape[1]):
            states.append(state_B)
            state_B = self.successor[state_B, tokens_BT[:, place]]
        state_BT = torch.stack(states, 1)
        return self.place(state_BT, left_BT.clamp_min(0), label_B[:, None]), before_BT, left_BT.clamp_min(0)

    def place(self, state: Tensor, left: Tensor, label: Tensor) -> Tensor:
        """Logits of the automaton, (..., A), for states, places left after this one, and labels."""
        ahead = self.ahead[left]
        if self.ending is not None:
            ahead = torch.where((left == 0)[..., None], self.ending[state], ahead)
        return self.log_rows[state] + self.leaning[label] + ahead

    def log_prob(self, network: nn.Module, base_BTA: Tensor, before_BT: Tensor, left_BT: Tensor, tokens_BT: Tensor,
                 z_BZ: Tensor, label_B: Tensor) -> Tensor:
        """log p(tokens | length, label, z), (B,) nats; a rare token counts as one."""
        log_BTA = (base_BTA + network(before_BT, left_BT, z_BZ, label_B)).log_softmax(-1)
        there_BT = tokens_BT != 0
        return (log_BTA.gather(-1, tokens_BT[..., None])[..., 0] * there_BT).sum(1)

    def outside(self, tokens_BT: Tensor, label_B: Tensor) -> Tensor:
        """log p(label) + log p(length | label), (B,): what the latent says nothing about."""
        length_B = (tokens_BT != 0).sum(1)
        return (self.spans[label_B, length_B].clamp_min(1e-12).log()
                + self.labels.float()[label_B].clamp_min(1e-12).log())

    def elbo(self, tokens_BT: Tensor, label_B: Tensor, noise_BZ: Tensor) -> Elbo:
        """Of each text, one sample of the latent; the distortion holds label and length."""
        base_BTA, before_BT, left_BT = self.base(tokens_BT, label_B)
        mean_BZ, log_std_BZ = self.encoder(tokens_BT, label_B)
        z_BZ = mean_BZ + log_std_BZ.exp() * noise_BZ
        log_B = self.log_prob(self.network, base_BTA, before_BT, left_BT, tokens_BT, z_BZ, label_B)
        return Elbo(rate=kl_to_standard_normal(mean_BZ, log_std_BZ),
                    distortion=-(log_B + self.outside(tokens_BT, label_B)))

    def importance(self, tokens_BT: Tensor, label_B: Tensor, noise_KZ: Tensor) -> Tensor:
        """log p(text, label), (B,) nats: the importance-weighted bound (Burda et al. 2015) over K latents."""
        base_BTA, before_BT, left_BT = self.base(tokens_BT, label_B)
        mean_BZ, log_std_BZ = self.encoder(tokens_BT, label_B)
        found = []
        for noise_Z in noise_KZ:
            z_BZ = mean_BZ + log_std_BZ.exp() * noise_Z
            log_B = self.log_prob(self.network, base_BTA, before_BT, left_BT, tokens_BT, z_BZ, label_B)
            found.append(log_B - 0.5 * (z_BZ**2 - noise_Z**2).sum(-1) + log_std_BZ.sum(-1))
        return torch.stack(found).logsumexp(0) - math.log(len(noise_KZ)) + self.outside(tokens_BT, label_B)

    # -- drawing -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, label_B: Tensor, *, generator: torch.Generator, z_BZ: Tensor | None = None,
               use_network: bool = True) -> Tensor:
        """Texts with these labels as active tokens, (B, T), T the longest drawn. Post-processing: costs nothing."""
        return Drawer(self, use_network=use_network).draw(label_B, generator=generator, z_BZ=z_BZ)
