"""Columns that follow another one inside a point of a mixture: a tree-shaped Bayesian network in each component.

A product of columns knows of a pair what point and columns say; two columns that always go together would need points
that are sure of both. A link says it instead: given point k and code a of its source, its target has the law

    p(b | a, k) = p(b | k) R[a, b] / sum over b' of p(b' | k) R[a, b']

so p(a | k), and every table that the source is in, stay as they were. A column follows at most one other, and links are
in an order in which a column is a target before it is a source: trees, on which sums are exact.

Shapes: B rows, D columns, W one-hot width, K points; S, T codes of source and target.

>>> import torch
>>> same = Link(0, 1, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
>>> law, zero = torch.full((1, 4), 0.5).log(), torch.tensor([1.0, 0.0])
>>> given, log_evidence = conditioned(Columns((2, 2)), (same,), law, {1: zero})
>>> given.exp()[0, :2], log_evidence.exp()                 # where the target is 0, so is the source
(tensor([1., 0.]), tensor([0.5000]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpvae.models.likelihood import ROWS_AT_ONCE, Columns
from dpvae.models.prior import strata

_NUMBERS = 2**22  # in a table (parts of rows, points, codes): bounds memory


@dataclass(frozen=True)
class Link:
    """Column ``target`` follows column ``source``."""

    source: int
    target: int
    ratio_ST: Tensor

    def law(self, columns: Columns, p_KW: Tensor, source_KS: Tensor) -> Tensor:
        """p(b | k), (K, T), where the source has the law ``source_KS`` in each point."""
        p_KT = p_KW[:, columns.slice(self.target)]
        ratio_ST = self.ratio_ST.to(p_KT)
        return p_KT * ((source_KS / (p_KT @ ratio_ST.T)) @ ratio_ST)

    def table(self, columns: Columns, p_KW: Tensor, source_KS: Tensor) -> Tensor:
        """The law of (source, target), (S, T), summed over points; ``source_KS`` may hold their weights."""
        p_KT = p_KW[:, columns.slice(self.target)]
        return ((source_KS / (p_KT @ self.ratio_ST.T)).T @ p_KT) * self.ratio_ST

    def log_ratio(self, codes_BD: Tensor) -> Tensor:
        """log R[a, b] of each row, (B,)."""
        return self.ratio_ST.log()[codes_BD[:, self.source].long(), codes_BD[:, self.target].long()]

    def log_ratios(self, j: int, codes_BD: Tensor) -> Tensor:
        """The same for every value that column ``j``, one of the two, could have had, (B, its codes)."""
        other, log_ST = self.target if j == self.source else self.source, self.ratio_ST.log()
        return (log_ST.T if j == self.source else log_ST)[codes_BD[:, other].long()]


def told(columns: Columns, links: Sequence[Link], log_KW: Tensor) -> Tensor:
    """``log_KW`` such that log p(x | k) is the sum of its places and of every link's :meth:`Link.log_ratio`: a source
    bears what divides the ratios of its targets."""
    out_KW = log_KW.clone()
    for link in links:
        p_KT = log_KW[:, columns.slice(link.target)].exp()
        out_KW[:, columns.slice(link.source)] -= (p_KT @ link.ratio_ST.T.to(p_KT)).log()
    return out_KW


def follow(columns: Columns, links: Sequence[Link], log_KW: Tensor, index_B: Tensor, codes_BD: Tensor, *,
           generator: torch.Generator) -> Tensor:
    """``codes`` of rows of the points ``index_B``, sorted, with every target drawn anew, given its source."""
    for link in links:
        uniform_B1 = strata(index_B, 1, generator=generator)
        one, log_KT = Columns((columns.sizes[link.target],)), log_KW[:, columns.slice(link.target)]
        log_ST = link.ratio_ST.to(log_KT).log()
        parts = zip(index_B.split(ROWS_AT_ONCE), codes_BD[:, link.source].split(ROWS_AT_ONCE),
                    uniform_B1.split(ROWS_AT_ONCE), strict=True)
        drawn = [one.quantile(log_KT[k_B] + log_ST[a_B], u_B1) for k_B, a_B, u_B1 in parts]
        codes_BD[:, link.target] = torch.cat(drawn)[:, 0]
    return codes_BD


def conditioned(columns: Columns, links: Sequence[Link], log_KW: Tensor, masks: Mapping[int, Tensor]
         ) -> tuple[Tensor, Tensor]:
    """What is left of every column in every point where column j falls under ``masks[j]`` (a share for each code), (K,
    W), and log p(all masks | k), (K,)."""
    given_KW, log_evidence_K = log_KW.clone(), torch.zeros_like(log_KW[:, 0])
    pulls = _pulls(columns, links, log_KW.exp(), {j: share_C.to(log_KW) for j, share_C in masks.items()})
    following = {link.target for link in links}
    for j, pull_KC in pulls.items():
        part_KC = log_KW[:, columns.slice(j)] + pull_KC.log()
        if j not in following:  # the law of a target is made a law once its source is known
            held_K = part_KC.logsumexp(1)
            log_evidence_K = log_evidence_K + held_K
            part_KC = torch.where(held_K[:, None] > -torch.inf, part_KC - held_K[:, None], part_KC)
        given_KW[:, columns.slice(j)] = part_KC
    return given_KW, log_evidence_K


def _pulls(columns: Columns, links: Sequence[Link], p_KW: Tensor, shares: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """``shares`` of each code of some columns, (..., C), with what they say of the columns that these follow, (..., K,
    C): messages from targets to their sources, as on any tree (Pearl 1988)."""
    pulls = dict(shares)
    for link in reversed(links):
        if link.target in pulls:
            p_KT, ratio_TS = p_KW[:, columns.slice(link.target)], link.ratio_ST.T.to(p_KW)
            message_KS = ((p_KT * pulls[link.target]) @ ratio_TS) / (p_KT @ ratio_TS)
            pulls[link.source] = pulls[link.source] * message_KS if link.source in pulls else message_KS
    return pulls


def seen(columns: Columns, links: Sequence[Link], log_KW: Tensor, codes_BD: Tensor, observed_BD: Tensor
         ) -> list[tuple[Tensor, Tensor]]:
    """log p(those linked columns that are observed | k), one term for each tree: worked out once for each different
    part of a row, (U, K), and which of them each row has, (B,)."""
    p_KW, found = log_KW.double().exp(), []
    for root, tree in trees(links).items():
        members = [root, *(link.target for link in tree)]
        held_BM = torch.where(observed_BD[:, members], codes_BD[:, members], -1)
        different_UM, place_B = held_BM.unique(dim=0, return_inverse=True)
        step = max(_NUMBERS // (len(p_KW) * max(columns.sizes[j] for j in members)), 1)
        log_UK = torch.cat([_alone(columns, tree, p_KW, members, part) for part in different_UM.split(step)])
        found.append((log_UK.to(log_KW), place_B))
    return found


def _alone(columns: Columns, tree: Sequence[Link], p_KW: Tensor, members: Sequence[int], held_UM: Tensor) -> Tensor:
    """One term: the codes ``held`` (-1: not observed) of the ``members`` of a tree, its root first, (U, K)."""
    shares = {}
    for j, code_U in zip(members, held_UM.unbind(1), strict=True):
        same_UC = code_U[:, None] == torch.arange(columns.sizes[j])
        shares[j] = (same_UC | (code_U < 0)[:, None]).to(p_KW)[:, None, :]
    pull_UKS = _pulls(columns, tree, p_KW, shares)[members[0]]
    return (p_KW[:, columns.slice(members[0])] * pull_UKS).sum(2).log()


def trees(links: Sequence[Link]) -> dict[int, list[Link]]:
    """The links by the column that all of their columns follow at last.

    >>> one = torch.ones(2, 2)
    >>> [(root, len(tree)) for root, tree in trees([Link(0, 1, one), Link(3, 4, one), Link(1, 2, one)]).items()]
    [(0, 2), (3, 1)]
    """
    root: dict[int, int] = {}
    found: dict[int, list[Link]] = {}
    for link in links:
        root[link.target] = root.get(link.source, link.source)
        found.setdefault(root[link.target], []).append(link)
    return found


def fill(columns: Columns, links: Sequence[Link], log_BW: Tensor, codes_BD: Tensor, observed_BD: Tensor, *,
         generator: torch.Generator) -> Tensor:
    """Cells that are not observed, drawn given those that are, (B, D); ``log_BW`` are the laws of the rows' points."""
    given_BW = log_BW.clone()
    for link in reversed(links):
        source, target, log_ST = columns.slice(link.source), columns.slice(link.target), link.ratio_ST.to(log_BW).log()
        told_BS = log_ST.T[codes_BD[:, link.target]]
        pulled_BS = (given_BW[:, target].exp() @ log_ST.exp().T).log()
        free_BS = (log_BW[:, target].exp() @ log_ST.exp().T).log()
        given_BW[:, source] += torch.where(observed_BD[:, link.target, None], told_BS, pulled_BS) - free_BS
    drawn_BD = torch.where(observed_BD, codes_BD, columns.sample(given_BW, generator=generator))
    for link in links:
        logits_BT = given_BW[:, columns.slice(link.target)] + link.ratio_ST.to(log_BW).log()[drawn_BD[:, link.source]]
        anew_B = Columns((columns.sizes[link.target],)).sample(logits_BT, generator=generator)[:, 0]
        drawn_BD[:, link.target] = torch.where(observed_BD[:, link.target], codes_BD[:, link.target], anew_B)
    return drawn_BD
