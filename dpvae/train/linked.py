"""What the released pair tables say and the fitted decoder does not: columns that follow another (functional
dependencies, and cells that the smooth fit misses).

The fit's prior keeps decoder weights small, which is right for the many pairs that noise drowns and wrong for the few
that always go together: a code and its name, a state and its capital. They show. Where a pair table is far away from
the model (in units of its own known noise, over ten thousands of cells), the table is right and the model is not. So:

    function  all of a table lies in one cell of each row, as far as its noise can tell, and the model has less there;
              in which cell is as likely as the noise of the row has it, so that rare codes stay the model's
    cells     single cells that stand out of noise and sampling, and that are not small: their row is tilted to the
              table's share

Each becomes a :class:`~dpvae.models.links.Link`, the strongest first, as long as no column follows two. Reads released
numbers only: post-processing, free.

Shapes: S, T codes of source and target, K points, W one-hot width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpvae.models.likelihood import Columns
from dpvae.models.links import Link
from dpvae.models.mixture import Mixture
from dpvae.models.vae import VAE
from dpvae.train.anchor import Anchors

STANDS_OUT = 4.0  # standard deviations: of 3,000 cells a fifth of one does by chance
SEEN = 2.0  # of them, that the model must expect in such a cell: in smaller ones little is ever missed
CERTAIN = 0.03  # of the rows: what a function's table must be able to tell apart
NEVER = 1e-9
ROUNDS = 200


@dataclass(frozen=True)
class _Found:
    """A link before it is worked out; ``gain`` in squared standard deviations."""

    gain: float
    source: int
    target: int
    table_ST: Tensor
    cells: Tensor  # (n, 2): those that stand out
    function_ST: Tensor | None = None  # the likelihood of each target, were it all that goes with the source's code


def find(vae: VAE, anchors: Anchors) -> list[Link]:
    """The links that ``anchors`` ask of ``vae`` (codebook prior), in the order of drawing: those that bring all pair
    tables of their target together nearer to what was released, and take its table with the label no farther. Of a
    function the label's tables with both columns are the same one twice, and differ by noise."""
    mixture, columns = Mixture.of(vae, generator=torch.Generator(), double=True), vae.likelihood
    weight_K1, p_KW = mixture.log_weights.exp()[:, None] * anchors.rows, mixture.log_probs.exp()
    chosen: list[_Found] = []
    for one in sorted(_candidates(columns, anchors, weight_K1, p_KW), key=lambda one: -one.gain):
        if one.target not in {link.target for link in chosen} and one.target != _root(one.source, chosen):
            chosen.append(one)
    links, law_KW = list[Link](), p_KW.clone()
    for one in _ordered(chosen):
        source_KS = law_KW[:, columns.slice(one.source)]
        link = _link(one, columns, p_KW, weight_K1 * source_KS)
        linked_KW = law_KW.clone()
        linked_KW[:, columns.slice(one.target)] = link.law(columns, p_KW, source_KS)
        known = {link.source: link.table(columns, p_KW, weight_K1 * source_KS)}
        pairs, label = _misfit(columns, anchors, weight_K1, linked_KW, link.target, known)
        before, label_before = _misfit(columns, anchors, weight_K1, law_KW, link.target, {})
        if pairs < before and (one.function_ST is not None or label < label_before + STANDS_OUT**2):
            links, law_KW = [*links, link], linked_KW
    return [replace(link, ratio_ST=link.ratio_ST.float()) for link in links]


def _misfit(columns: Columns, anchors: Anchors, weight_K1: Tensor, law_KW: Tensor, j: int, known: dict[int, Tensor]
            ) -> tuple[float, float]:
    """Sums of squares, in units of the noise, by which the pair tables of column j are off, and its table with the
    label; ``known`` (S, codes of j) by the other column, where a table does not follow from the points alone."""
    total = 0.0
    for columns_ in anchors.pairs:
        if j in columns_:
            other = columns_[0] if columns_[1] == j else columns_[1]
            counts, sd = anchors.pair(*columns_)
            table = torch.as_tensor(counts, dtype=law_KW.dtype)
            model = known[other] if other in known else (
                law_KW[:, columns.slice(other)].T @ (weight_K1 * law_KW[:, columns.slice(j)]))
            total += float((model - (table if columns_[1] == j else table.T)).square().sum()) / sd**2
    if j not in anchors.with_target or anchors.target is None:
        return total, 0.0
    table = torch.as_tensor(anchors.with_target[j], dtype=law_KW.dtype)
    model = law_KW[:, columns.slice(j)].T @ (weight_K1 * law_KW[:, columns.slice(anchors.target)])
    return total, float((model - table).square().sum()) / anchors.sd["with-target"] ** 2


def _root(column: int, chosen: list[_Found]) -> int:
    """Where the sources of ``column`` begin."""
    above = {link.target: link.source for link in chosen}
    while column in above:
        column = above[column]
    return column


def _ordered(chosen: list[_Found]) -> list[_Found]:
    """Each after the one that its source follows."""
    done: list[_Found] = []
    while len(done) < len(chosen):
        waiting = {link.target for link in chosen if link not in done}
        done += [link for link in chosen if link not in done and link.source not in waiting]
    return done


def _candidates(columns: Columns, anchors: Anchors, weight_K1: Tensor, p_KW: Tensor) -> Iterator[_Found]:
    for i, j in anchors.pairs:
        counts, sd = anchors.pair(i, j)
        table = torch.as_tensor(counts, dtype=p_KW.dtype)
        model = p_KW[:, columns.slice(i)].T @ (weight_K1 * p_KW[:, columns.slice(j)])
        if columns.sizes[i] >= columns.sizes[j]:  # a function of fewer codes into more would leave some out
            function = _function(i, j, table, model, sd)
        else:
            function = _function(j, i, table.T, model.T, sd)
        if function:
            yield function
        elif found := _cells(i, j, table, model, sd):
            yield found


def _function(source: int, target: int, table_ST: Tensor, model_ST: Tensor, sd: float) -> _Found | None:
    """Where every code of ``source`` goes with one code of ``target``."""
    rows, noise = float(model_ST.sum()), sd * math.sqrt(len(table_ST))
    alone_ST = table_ST * model_ST.sum(1, keepdim=True) / sd**2  # log likelihood, but for what is the same in a row
    function_S = (alone_ST + model_ST.clamp_min(NEVER).log()).argmax(1)
    held, expected = (float(t.gather(1, function_S[:, None]).sum()) for t in (table_ST, model_ST))
    if 3 * noise > CERTAIN * rows or held < rows - 3 * noise or held - expected < STANDS_OUT * noise:
        return None
    return _Found(((held - expected) / noise) ** 2, source, target, table_ST, torch.zeros(0, 2, dtype=torch.long),
                  alone_ST.softmax(1).clamp_min(NEVER))


def _cells(i: int, j: int, table: Tensor, model: Tensor, sd: float) -> _Found | None:
    """Cells that stand out; the row is the column of which they are the larger part."""
    z = (table - model) / (sd**2 + model).sqrt()  # the rows are a sample, and stray by the root of their number
    cells = ((z.abs() > STANDS_OUT) & (model > SEEN * sd)).nonzero()
    if not len(cells):
        return None
    larger = torch.maximum(table, model)
    of_row, of_column = ((larger / model.sum(d, keepdim=True))[cells[:, 0], cells[:, 1]].sum() for d in (1, 0))
    gain = float(z[cells[:, 0], cells[:, 1]].square().sum())
    if of_row >= of_column:
        return _Found(gain, i, j, table, cells)
    return _Found(gain, j, i, table.T, cells.flip(1))


def _link(one: _Found, columns: Columns, p_KW: Tensor, source_KS: Tensor) -> Link:
    """The ratios that give the table's share to each cell, and leave the shares of the target as they were;
    ``source_KS`` in rows."""
    if one.function_ST is not None:
        return Link(one.source, one.target, one.function_ST)
    ratio_ST = torch.ones_like(one.table_ST)
    known_ST = torch.zeros_like(ratio_ST, dtype=torch.bool).index_put(tuple(one.cells.T), torch.tensor(True))
    wanted_ST = torch.where(known_ST, one.table_ST.clamp_min(0.5), 0.0)
    rows_S1, rows_T = source_KS.sum(0)[:, None], source_KS.sum(1) @ p_KW[:, columns.slice(one.target)]
    left_S1 = (rows_S1 - wanted_ST.sum(1, keepdim=True)).clamp_min(0.5)
    for _ in range(ROUNDS):
        now_ST = Link(one.source, one.target, ratio_ST).table(columns, p_KW, source_KS).clamp_min(NEVER)
        others_ST = torch.where(known_ST, 0.0, now_ST)
        goal_ST = wanted_ST + others_ST * left_S1 / others_ST.sum(1, keepdim=True).clamp_min(NEVER)
        goal_ST = goal_ST * rows_S1 / goal_ST.sum(1, keepdim=True)
        ratio_ST = (ratio_ST * goal_ST / now_ST * rows_T / goal_ST.sum(0)).clamp(NEVER, 1 / NEVER)
    return Link(one.source, one.target, ratio_ST)
