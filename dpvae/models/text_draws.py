"""Drawing texts from a :class:`~dpvae.models.text.TextVAE`, fast: what does not change from place to place is worked
out once, and texts of like length are drawn together, as many as a processor's cache likes.

Each token is drawn from the law of the model: the product of the automaton's row, the label's tilt, what the end of the
text asks for, what the grammar allows, and the network. Latent, label and a one stand beside the hidden state, so that
all they say of a token is one product of matrices; of many tokens first a group is drawn, then a member.

    tokens = Drawer(vae).draw(label_B, generator=generator)

Shapes: B texts, T places, A active tokens, H hidden, Z latent, L labels, K = H + Z + L + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from dpvae.models.text import TextVAE

DEEP = 3  # tokens that a started character, or a mark, may need to be complete
TOGETHER = 400_000  # weights at once: fewer waste the matrices that must be read for each place, more leave the cache
MOST = 1024  # texts at once
LEAST = 1e-15  # factor of the network: a token that must come, to complete a character, never vanishes
GROUPS = 32  # in which many weights are added up, before one is looked for


class Drawer:
    """Draws from ``vae`` as it is now; ``use_network`` false: from the automaton alone."""

    @torch.no_grad()
    def __init__(self, vae: TextVAE, *, use_network: bool = True) -> None:
        self.vae = vae
        self.rows, self.ahead, self.leaning = (_wide(table.exp()) for table in (vae.log_rows, vae.ahead, vae.leaning))
        self.ending = None if vae.ending is None else _wide(vae.ending.exp())
        self.fits, self.successor, self.after = _wide(vae.fits), vae.successor.flatten(), vae.after.flatten()
        self.step = _Recurrence(vae) if use_network else None

    @torch.no_grad()
    def draw(self, label_B: Tensor, *, generator: torch.Generator, z_BZ: Tensor | None = None) -> Tensor:
        """Texts with these labels as active tokens, (B, T), T the longest drawn. Post-processing: costs nothing."""
        count = len(label_B)
        if z_BZ is None:
            z_BZ = torch.randn(count, self.vae.shape["latent_dim"], generator=generator)
        length_B = draw_index(_wide(self.vae.spans)[label_B], torch.rand(2, count, generator=generator))
        tokens_BT = torch.zeros(count, max(int(length_B.max()), 1), dtype=torch.long)
        together = min(max(TOGETHER // self.rows.shape[1], GROUPS), MOST)
        for part in length_B.argsort(descending=True, stable=True).split(together):
            drawn_BT = self._part(label_B[part], z_BZ[part], length_B[part], generator)
            tokens_BT[part, :drawn_BT.shape[1]] = drawn_BT
        return tokens_BT

    def _part(self, label_B: Tensor, z_BZ: Tensor, length_B: Tensor, generator: torch.Generator) -> Tensor:
        """Of texts whose lengths descend, so that those which are done are the last."""
        count, most = len(length_B), int(length_B[0])
        alive_T = (length_B > torch.arange(most + 1)[:, None]).sum(1).tolist()
        tokens_BT = torch.zeros(count, most, dtype=torch.long)
        state, grammar, before = (torch.zeros(count, dtype=torch.long) for _ in range(3))
        both_BA = torch.empty(2, count, self.rows.shape[1])
        if self.step is not None:
            self.step.begin(label_B, z_BZ)
        for place, alive in enumerate(alive_T[:-1]):
            state, grammar, before = state[:alive], grammar[:alive], before[:alive]
            left, (weights, factor) = length_B[:alive] - (1 + place), both_BA[:, :alive]
            torch.index_select(self.rows, 0, state, out=weights)
            weights.mul_(torch.index_select(self.fits, 0, grammar * (DEEP + 1) + left.clamp_max(DEEP), out=factor))
            weights.mul_(self.step(before, left, out=factor) if self.step is not None else
                         torch.index_select(self.leaning, 0, label_B[:alive], out=factor))
            self._end(weights, factor, left, state, alive_T[place + 1])
            before = draw_index(weights, torch.rand(2, alive, generator=generator))
            tokens_BT[:alive, place] = before
            state = self.successor.take(state * self.vae.tokens + before)
            grammar = self.after.take(grammar * self.vae.tokens + before)
        return tokens_BT

    def _end(self, weights_BA: Tensor, factor_BA: Tensor, left_B: Tensor, state_B: Tensor, going: int) -> None:
        """Weigh tokens by how likely a text of the given length ends after them; the first ``going`` go on."""
        if self.ending is None:
            weights_BA.mul_(torch.index_select(self.ahead, 0, left_B, out=factor_BA))
            return
        weights_BA[:going].mul_(torch.index_select(self.ahead, 0, left_B[:going], out=factor_BA[:going]))
        weights_BA[going:].mul_(torch.index_select(self.ending, 0, state_B[going:], out=factor_BA[going:]))


class _Recurrence:
    """The network and the label's tilt at one place after another, for texts of which the last ones end first."""

    def __init__(self, vae: TextVAE) -> None:
        network = vae.network
        own, aside = network.embed.embedding_dim, network.left.embedding_dim
        into = network.cell.weight_ih_l0
        self.network, self.hidden = network, network.cell.hidden_size
        self.token_A = functional.linear(network.embed.weight, into[:, :own], network.cell.bias_ih_l0)
        self.left_F = functional.linear(network.left.weight, into[:, own:own + aside])
        self.fixed = into[:, own + aside:]
        self.last_KA = _wide(torch.cat([network.out.weight, network.topic.weight, vae.leaning.T,
                                        network.out.bias[:, None]], 1).T)
        self.labels = len(vae.leaning)

    def begin(self, label_B: Tensor, z_BZ: Tensor) -> None:
        """Start anew, with these labels and latents."""
        told = torch.cat([self.network.label(label_B), self.network.latent(z_BZ)], -1)
        self.told = functional.linear(told, self.fixed)
        there = functional.one_hot(label_B, self.labels).to(z_BZ)
        self.seen_BK = torch.cat([z_BZ.new_zeros(len(z_BZ), self.hidden), z_BZ, there, torch.ones_like(z_BZ[:, :1])], 1)

    def __call__(self, before_B: Tensor, left_B: Tensor, *, out: Tensor) -> Tensor:
        """Factors (B, A) of the tokens, by a constant for each text; ``out`` is written over."""
        alive, size, cell = len(before_B), self.hidden, self.network.cell
        hidden = self.seen_BK[:alive, :size]
        given = self.told[:alive] + self.token_A.index_select(0, before_B)
        given += self.left_F.index_select(0, left_B.clamp_max(len(self.left_F) - 1))
        past = functional.linear(hidden, cell.weight_hh_l0, cell.bias_hh_l0)
        gates = (given[:, :2 * size] + past[:, :2 * size]).sigmoid_()
        fresh = given[:, 2 * size:].addcmul_(gates[:, :size], past[:, 2 * size:]).tanh_()
        hidden.copy_(torch.lerp(fresh, hidden, gates[:, size:]))
        torch.mm(self.seen_BK[:alive], self.last_KA, out=out)
        return torch.softmax(out, 1, out=out).clamp_min_(LEAST)


def _wide(table_XA: Tensor) -> Tensor:
    """With columns of zeros up to a whole number of groups, where there are many."""
    wide = table_XA.shape[1]
    return functional.pad(table_XA, (0, -wide % GROUPS if wide > GROUPS**2 // 4 else 0)).contiguous()


def draw_index(weights_BX: Tensor, uniform_2B: Tensor) -> Tensor:
    """One index per row by weight, (B,), never one without weight; a row holds at least one weight above zero. Of many
    weights first a group is drawn, then one of its members."""
    wide = weights_BX.shape[1]
    if wide <= GROUPS**2 // 4 or wide % GROUPS:
        return _edge(weights_BX, uniform_2B[0])
    groups_BGX = weights_BX.view(len(weights_BX), GROUPS, -1)
    which_B = _edge(groups_BGX.sum(1), uniform_2B[0])
    member_B = _edge(groups_BGX.gather(2, which_B[:, None, None].expand(-1, GROUPS, 1))[..., 0], uniform_2B[1])
    return member_B.mul_(wide // GROUPS).add_(which_B)


def _edge(weights_BX: Tensor, uniform_B: Tensor) -> Tensor:
    edges_BX = weights_BX.cumsum(1)
    total_B = edges_BX[:, -1]
    below_B = torch.nextafter(total_B, torch.zeros_like(total_B))  # u * total may be rounded up to the total itself
    return torch.searchsorted(edges_BX, torch.minimum(uniform_B * total_B, below_B)[:, None], right=True)[:, 0]
