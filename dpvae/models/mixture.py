"""A trained VAE as what its density is: a finite mixture of products, with every conditional in closed form.

With a codebook prior this is the model itself: log p(x) = logsumexp_k [log w_k + sum_j log p(x_j | z_k)], exactly. With
the normal prior the points are a fixed set of draws from it, and everything here holds for the Monte-Carlo mixture.
Given k the columns are independent, so a marginal leaves columns out of the sum, a conditional is a posterior over k,
and a row with holes is completed by drawing k, then the holes.

Shapes: B rows, D columns, W one-hot width, K points.

>>> columns = Columns((2, 2))
>>> mixture = Mixture(columns, torch.zeros(2).log_softmax(0), torch.log(torch.tensor([[.9, .1, .9, .1],
...                                                                                 [.1, .9, .1, .9]])))
>>> mixture.log_prob(torch.tensor([[0, 0]])).exp()          # 1/2 * .81 + 1/2 * .01
tensor([0.4100])
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dpvae.models.likelihood import Columns
from dpvae.models.links import Link, conditioned, fill, follow, seen, told
from dpvae.models.prior import systematic
from dpvae.models.vae import VAE

POINTS = 16_384  # draws from a normal prior that stand for it
_CELLS = 2**19  # numbers in a (rows, points) table: bounds memory, and fits in a cache
_BLOCK = 2**14  # rows with holes, whose linked parts are worked out together
_LARGEST = {torch.float32: 80.0, torch.float64: 700.0}  # nats, of one over a probability


class Mixture:
    """``log_weights`` (K,) and ``log_probs`` (K, W), normalised inside each column, both in nats; columns follow the
    ``links`` (:mod:`dpvae.models.links`)."""

    def __init__(self, columns: Columns, log_weights_K: Tensor, log_probs_KW: Tensor, links: Sequence[Link] = ()
                 ) -> None:
        self.columns, self.log_weights, self.log_probs = columns, log_weights_K, log_probs_KW
        self.links = tuple(links)
        nothing_1K = torch.zeros(1, len(log_weights_K), dtype=log_probs_KW.dtype)
        self._table_WK = torch.cat([log_probs_KW.T, nothing_1K])  # the last row: a cell that was not observed

    @cached_property
    def _whole_WK(self) -> Tensor:
        """The table of rows without holes, whose cells know what their links divide by."""
        if not self.links:
            return self._table_WK[:self.columns.width]
        return told(self.columns, self.links, self.log_probs).T.contiguous()

    @cached_property
    def _linked_D(self) -> Tensor:
        """Which columns follow another or are followed."""
        places = [j for link in self.links for j in (link.source, link.target)]
        return torch.zeros(len(self.columns.sizes), dtype=torch.bool).index_fill_(0, torch.tensor(places).long(), True)

    @classmethod
    @torch.no_grad()
    def of(cls, vae: VAE, *, generator: torch.Generator, points: int = POINTS, double: bool = False) -> Mixture:
        """The mixture that ``vae`` is (codebook) or is well described by (normal prior: ``points`` draws of it).

        ``double`` makes every sum exact enough for a row's score not to depend on the rows beside it.
        """
        dtype = torch.float64 if double else torch.float32
        if vae.codebook is not None:
            z_KZ, log_weights_K = vae.codebook.points, vae.codebook.weights.detach().to(dtype).log_softmax(0)
        else:
            z_KZ = vae.prior.sample(points, generator=generator)
            log_weights_K = torch.zeros(points, dtype=dtype).log_softmax(0)
        log_KW = torch.cat([vae.likelihood.log_probs(vae.decode(z).to(dtype)) for z in z_KZ.split(4096)])
        return cls(vae.likelihood, log_weights_K, log_KW.detach(), vae.links)

    @property
    def points(self) -> int:
        """K, the number of products."""
        return len(self.log_weights)

    def chunks(self, codes_BD: Tensor) -> Iterator[slice]:
        """Slices of rows whose (rows, K) table stays small."""
        step = max(_CELLS // self.points, 1)
        return (slice(i, min(i + step, len(codes_BD))) for i in range(0, len(codes_BD), step))

    def joint(self, codes_BD: Tensor) -> Tensor:
        """log w_k + log p(x | k), (B, K)."""
        flat_BD = self.columns.flat(codes_BD.long())
        joint_BK = functional.embedding_bag(flat_BD, self._whole_WK, mode="sum").add_(self.log_weights)
        for link in self.links:
            joint_BK += link.log_ratio(codes_BD).to(joint_BK)[:, None]
        return joint_BK

    def _partial(self, codes_BD: Tensor, observed_BD: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """log w_k + log p(the columns that are observed | k), (rows, K), of one slice of rows after the other."""
        alone_BD = torch.where(observed_BD & ~self._linked_D, self.columns.flat(codes_BD.long()), self.columns.width)
        for first in range(0, len(codes_BD), _BLOCK):
            block = slice(first, first + _BLOCK)
            terms = seen(self.columns, self.links, self.log_probs, codes_BD[block].long(), observed_BD[block])
            for s in self.chunks(codes_BD[block]):
                joint_BK = functional.embedding_bag(alone_BD[block][s], self._table_WK, mode="sum")
                for log_UK, place_B in terms:
                    joint_BK += log_UK[place_B[s]]
                yield slice(first + s.start, first + s.stop), joint_BK.add_(self.log_weights)

    def log_prob(self, codes_BD: Tensor, observed_BD: Tensor | None = None) -> Tensor:
        """log p(x), or the marginal of what is observed, (B,) nats."""
        parts = ((self.joint(codes_BD[s]) for s in self.chunks(codes_BD)) if observed_BD is None else
                 (joint_BK for _, joint_BK in self._partial(codes_BD, observed_BD)))
        return torch.cat([_logsumexp_(joint_BK) for joint_BK in parts] or [self.log_weights[:0]])

    def given(self, masks: Mapping[int, Tensor]) -> Mixture:
        """The mixture where column j falls under ``masks[j]``, a share in [0, 1] for each code, for every j."""
        given_KW, log_evidence_K = conditioned(self.columns, self.links, self.log_probs, masks)
        return Mixture(self.columns, (self.log_weights + log_evidence_K).log_softmax(0), given_KW, self.links)

    def log_evidence(self, masks: Mapping[int, Tensor]) -> Tensor:
        """log p(column j falls under ``masks[j]`` for every j | k), (K,)."""
        return conditioned(self.columns, self.links, self.log_probs, masks)[1]

    def balanced(self, j: int, shares: dict[int, float]) -> Mixture:
        """The mixture in which the codes of column j have these ``shares``, and the rows of each code follow the same
        law as before: a point for every (point, code)."""
        total, codes = sum(shares.values()), torch.arange(self.columns.sizes[j])
        parts = [(self.given({j: codes == code}), share / total) for code, share in shares.items() if share > 0]
        return Mixture(self.columns, torch.cat([part.log_weights + math.log(share) for part, share in parts]),
                       torch.cat([part.log_probs for part, _ in parts]), self.links)

    def one_way(self) -> Tensor:
        """p(x_j = v) of every column, (W,)."""
        probs_KW = self.log_probs.exp()
        law_KW = probs_KW.clone()
        for link in self.links:
            source_KS = law_KW[:, self.columns.slice(link.source)]
            law_KW[:, self.columns.slice(link.target)] = link.law(self.columns, probs_KW, source_KS)
        return self.log_weights.exp() @ law_KW

    def leave_one_out(self, codes_BD: Tensor) -> Tensor:
        """log p(x_j | the other columns), (B, D): the posterior mean of 1 / p(x_j | k), inverted.

        In single precision where every probability is above e^-60, so that nothing that counts is lost.
        """
        flat_BD, posterior_BK = self.columns.flat(codes_BD.long()), self.joint(codes_BD).softmax(1)
        inverse_WK = (-self._whole_WK).clamp_max(_LARGEST[self._whole_WK.dtype]).exp()
        log_BD = -(posterior_BK @ inverse_WK.T).gather(1, flat_BD).log()
        for j in sorted({j for link in self.links for j in (link.source, link.target)}):
            # of what links say of a value, points know nothing: all values of the column are weighed
            without_BK = inverse_WK.index_select(0, flat_BD[:, j]).mul_(posterior_BK)
            log_BC = (without_BK @ self._whole_WK[self.columns.slice(j)].T.exp()).log()
            for link in self.links:
                if j in (link.source, link.target):
                    log_BC += link.log_ratios(j, codes_BD)
            log_BD[:, j] = log_BC.log_softmax(1).gather(1, codes_BD[:, j:j + 1].long())[:, 0]
        return log_BD

    def sample(self, rows: int, *, generator: torch.Generator) -> Tensor:
        """Rows of codes, (rows, D), those of a point by strata."""
        order = torch.randperm(rows, generator=generator)
        index_B = systematic(self.log_weights, rows, generator=generator).sort().values
        codes_BD = self.columns.stratified(self.log_probs, index_B, generator=generator)
        return follow(self.columns, self.links, self.log_probs, index_B, codes_BD, generator=generator)[order]

    def complete(self, codes_BD: Tensor, observed_BD: Tensor, *, generator: torch.Generator,
                 forbidden: Sequence[int] = ()) -> Tensor:
        """``codes`` with the cells that are not observed drawn from p(missing | observed), (B, D).

        ``forbidden`` are places in the one-hot width that no drawn cell may take (the code of a missing cell).
        """
        log_KW = self.log_probs.clone()
        log_KW[:, list(forbidden)] = -torch.inf
        done = []
        for s, joint_BK in self._partial(codes_BD, observed_BD):
            k_B = _gumbel_max(joint_BK, generator=generator)
            done.append(fill(self.columns, self.links, log_KW[k_B], codes_BD[s].long(), observed_BD[s],
                             generator=generator))
        return torch.cat(done) if done else codes_BD.long()


def effective_size(log_weights: Tensor) -> float:
    """How many equally heavy points these weights are worth: 1 / sum of squares (Kish)."""
    return float(1 / log_weights.double().softmax(-1).square().sum())


def _logsumexp_(log_BK: Tensor) -> Tensor:
    """logsumexp over K that spends its argument."""
    top_B = log_BK.amax(1, keepdim=True)
    return log_BK.sub_(top_B).exp_().sum(1).log_() + top_B[:, 0]


def _gumbel_max(log_BK: Tensor, *, generator: torch.Generator) -> Tensor:
    uniform_BK = torch.rand(log_BK.shape, generator=generator, dtype=log_BK.dtype)
    return (log_BK - (-uniform_BK.clamp_min(1e-12).log()).log()).argmax(1)


def as_codes(codes: np.ndarray) -> Tensor:
    """numpy codes of any width as torch's int64."""
    return torch.as_tensor(np.ascontiguousarray(codes)).long()
