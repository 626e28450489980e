"""How surprising is a row? Scores in nats, what explains them, and where to draw the line. All of it post-processing.

Four scores, each a log density up to a bound, so that *lower means stranger* (scikit-learn's sense):

* ``iwae``: log p(x). Exact for the codebook prior; for the normal prior the bound of 64 importance samples of the free
  encoder (Burda et al. 2015).
* ``elbo``: the evidence lower bound. With the codebook's exact posterior it *is* log p(x), in single precision: the
  fast way. With the normal prior, the bound of the free encoder.
* ``reconstruction``: E_q(z|x) log p(x|z), the reconstruction probability (An & Cho 2015).
* ``regret``: minus the likelihood regret (Xiao et al. 2020): how much better the best posterior of this one row
  explains it than the encoder's does. For a codebook a KL divergence, in closed form; else 50 steps of Adam per row.

A numeric column counts by its density (the code's probability over the bin's width), every other by its probability.
A value outside what the model knows costs extra, more the farther it lies. **A score of a private row is about that
row**: the model is private, what it says of a row that you hold is as private as that row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dpvae import checks
from dpvae.data.cells import to_axis, to_keys
from dpvae.data.distinct import Distinct
from dpvae.data.lake import Cells, Table
from dpvae.data.schema import Column, Schema
from dpvae.data.table import TableCodec
from dpvae.errors import DataError
from dpvae.models.elbo import kl_to_standard_normal
from dpvae.models.likelihood import Columns
from dpvae.models.mixture import Mixture, as_codes
from dpvae.models.vae import VAE
from dpvae.release.sample import readable, sample_cells
from dpvae.rng import seed_of

SCORES = ("iwae", "elbo", "reconstruction", "regret")
IMPORTANCE_SAMPLES = 64
UNKNOWN = math.log(1e-5)  # nats: a category that the model never heard of counts as one in 100,000
REGRET_STEPS = 50
LEAST_SINGLE = -60.0  # nats: of a probability that single precision keeps when it is divided by
HELD = 0.2  # of wrong values, drawn as often as their column holds them
CERTAIN = 1e-7  # single precision does not tell a larger probability from one
CALIBRATION_ROWS = 20_000


class Density:
    """One released model as a judge of rows."""

    def __init__(self, vae: VAE, schema: Schema, *, seed: int = 0) -> None:
        self.vae, self.schema, self.seed = vae, schema, seed
        # a value outside its declared domain is no mistake here, but the strangest thing that a row can hold
        self.codec = TableCodec(replace(schema, columns=tuple(replace(c, declared=()) for c in schema.columns)))
        self._kept: dict[str, Any] = {}

    def encode(self, table: Table) -> np.ndarray:
        """Codes, (rows, D); the table has the columns of the schema, in their order."""
        return self._read(table)[1]

    def _read(self, table: Table) -> tuple[tuple[Distinct, ...], np.ndarray]:
        if table.names != self.schema.names:
            raise DataError(f"columns={', '.join(table.names)}: expected those of fit, in their order: "
                            f"{', '.join(self.schema.names)}")
        distinct = self.codec.distinct(table)
        return distinct, self.codec.encode(table, distinct=distinct)

    def score(self, table: Table, score: str = "iwae") -> np.ndarray:
        """The ``score`` of each row, (rows,) nats; lower is stranger."""
        checks.one_of(SCORES, score=score)
        distinct, codes = self._read(table)
        values = self._score(codes, score)
        if score == "regret":
            return values
        return values + self.codec.log_density_offset(codes) - beyond(self.schema, distinct).sum(1)

    def explain(self, table: Table) -> np.ndarray:
        """The evidence that each cell, and no other, is a mistake, (rows, D) nats: how much likelier the row is where
        the column's value was replaced by another of its values than as the model's own (Bayes' rule),

            log [(1 - p(x_j | x_-j)) q(x_j)] - log p(x_j | x_-j).

        A wrong value has the law q: any other of the column's values, each as likely, or (one in five) as often as the
        column holds it. The largest is the likeliest place of a single mistake, each cell being as likely before. A
        continuous column has its length in the place of other values. Numbers are looked at more finely than a bin.
        """
        (distinct, codes), mixture = self._read(table), self._mixture(double=False)
        if float(mixture.log_probs.min()) < LEAST_SINGLE:
            mixture = self._mixture(double=True)
        x_BD = as_codes(codes)
        parts = [mixture.leave_one_out(x_BD[part]) for part in mixture.chunks(x_BD)]
        if not parts:
            return np.zeros((0, len(self.schema.columns)))
        places = self.vae.likelihood.flat(x_BD).numpy()
        inside_BD = self.codec.log_within(distinct) - beyond(self.schema, distinct)
        inside_BD -= np.log(np.concatenate(self.codec.widths))[places]
        log_BD = torch.cat(parts).double().numpy() + inside_BD
        countable_BD = np.concatenate(self.codec.atoms)[places]
        other_BD = np.where(countable_BD, np.clip(-np.expm1(log_BD), CERTAIN, None), 1.0)
        many_D = [max(width.sum() - 1.0, 1.0) if atoms.all() else width.sum()
                  for width, atoms in zip(self.codec.widths, self.codec.atoms, strict=True)]
        held_BD = mixture.one_way().double().numpy()[places] * np.exp(inside_BD)
        return np.log(other_BD) + np.log((1 - HELD) / np.array(many_D) + HELD * held_BD) - log_BD

    def _mixture(self, *, double: bool) -> Mixture:
        name = f"mixture{double}"
        if name not in self._kept:
            self._kept[name] = Mixture.of(self.vae, generator=self._generator("points"), double=double)
        return self._kept[name]

    def _generator(self, *names: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, "score", *names))

    @torch.no_grad()
    def _score(self, codes: np.ndarray, score: str) -> np.ndarray:
        x_BD = as_codes(codes)
        if self.vae.codebook is not None:
            return self._with_codebook(x_BD, score)
        if score == "iwae":
            if "exact" not in self._kept:
                self._kept["exact"] = exact(self.vae)
            return self._kept["exact"].log_prob(x_BD, samples=IMPORTANCE_SAMPLES, generator=torch.Generator()
                                                .manual_seed(seed_of(self.seed, "score"))).numpy()
        noise_K1Z = torch.randn(4, 1, self.vae.prior.dim, generator=self._generator("elbo"))
        parts = []
        for part in x_BD.split(4096):
            noise_KBZ = noise_K1Z.expand(-1, len(part), -1)
            if score == "regret":
                parts.append(-_regret(self.vae, part, noise_KBZ))
            else:
                bound = self.vae.elbo(part, noise_KBZ)
                parts.append(bound.value if score == "elbo" else -bound.distortion)
        return torch.cat(parts).double().numpy()

    def _with_codebook(self, x_BD: torch.Tensor, score: str) -> np.ndarray:
        mixture = self._mixture(double=score != "elbo")
        if score in ("iwae", "elbo"):
            return mixture.log_prob(x_BD).double().numpy()
        parts = []
        for part in mixture.chunks(x_BD):
            joint_BK = mixture.joint(x_BD[part])
            if score == "reconstruction":
                parts.append((joint_BK.softmax(1) * (joint_BK - mixture.log_weights)).sum(1))
            else:  # KL(encoder's posterior over the points || the exact one)
                log_q_BK = self._amortised(x_BD[part])
                parts.append(-(log_q_BK.exp() * (log_q_BK - joint_BK.log_softmax(1))).sum(1))
        return torch.cat(parts).numpy() if parts else np.zeros(0)

    def _amortised(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The encoder's q(z | x) on the codebook's points, normalised over them, (B, K) log probabilities."""
        assert self.vae.codebook is not None
        mean_BZ, log_std_BZ = self.vae.encode(x_BD)
        z_KZ, precision_BZ = self.vae.codebook.points, (-2 * log_std_BZ).exp()
        squares_BK = precision_BZ @ (z_KZ**2).T - 2 * (precision_BZ * mean_BZ) @ z_KZ.T
        return (-0.5 * squares_BK.double()).log_softmax(1)


@dataclass(frozen=True)
class Ensemble:
    """Several released models as one judge: a mixture of their densities (a mean of other scores and explanations)."""

    members: Sequence[Density]

    @property
    def schema(self) -> Schema:
        """The columns that all members know."""
        return self.members[0].schema

    def score(self, table: Table, score: str = "iwae") -> np.ndarray:
        """(rows,) nats; lower is stranger."""
        values = np.stack([member.score(table, score) for member in self.members])
        if score in ("iwae", "elbo"):
            return np.logaddexp.reduce(values, 0) - math.log(len(values))
        return values.mean(0)

    def explain(self, table: Table) -> np.ndarray:
        """(rows, D) nats."""
        return np.mean([member.explain(table) for member in self.members], 0)

    def threshold(self, false_alarm: float, score: str = "iwae", *, rows: int = CALIBRATION_ROWS) -> float:
        """The score below which lie ``false_alarm`` of the rows that the models themselves draw: costs nothing.

        It holds for rows like the model's own; where the model is noisy, real rows are flagged more often.
        """
        checks.fraction(false_alarm=false_alarm)
        share = -(-rows // len(self.members))
        values = np.concatenate([self.score(readable(m.schema, sample_cells(
            m.vae, m.schema, share, seed=seed_of(m.seed, "calibration"))), score) for m in self.members])
        return float(np.quantile(values, false_alarm))


def beyond(schema: Schema, distinct: Sequence[Distinct]) -> np.ndarray:
    """Nats that cells cost for lying outside what the model knows, (rows, D); 0 inside.

    Outside its bounds a density falls off like Cauchy's, on the scale of the outermost bin; an unknown category (or a
    missing cell where none was known) counts as one in 100,000.
    """
    return np.stack([cells.rows(_beyond(column, cells.cells))
                     for column, cells in zip(schema.columns, distinct, strict=True)], 1)


def _beyond(column: Column, cells: Cells) -> np.ndarray:
    if not column.is_numeric:
        known = set(column.categories or ()) | ({None} if column.nullable else set())
        keys = to_keys(column, cells)
        return np.fromiter((0.0 if column.other or key in known else -UNKNOWN for key in keys), float, len(keys))
    axis = to_axis(column, cells)
    edges = column.edges or (column.lower or 0.0, column.upper or 0.0)
    low, high = min(edges[0], *(column.heaps or edges)), max(edges[-1], *(column.heaps or edges))
    below = (low - axis) / max(edges[1] - edges[0], 1e-300)
    above = (axis - high) / max(edges[-1] - edges[-2], 1e-300)
    out = 2 * np.log1p(np.nan_to_num(np.maximum(np.maximum(below, above), 0.0), posinf=1e9))
    return np.where(np.isnan(axis) & (not column.nullable), -UNKNOWN, out)


class _DoubleColumns(Columns):
    """Columns whose one-hot rows are in double precision."""

    def one_hot(self, codes_BD: torch.Tensor) -> torch.Tensor:
        return super().one_hot(codes_BD).double()


def exact(vae: VAE) -> VAE:
    """``vae`` in double precision: in single, the last digits of a row's score depend on the rows beside it."""
    twin = copy.deepcopy(vae).double()
    twin.likelihood = _DoubleColumns(vae.likelihood.sizes)
    return twin


def _regret(vae: VAE, x_BD: torch.Tensor, noise_KBZ: torch.Tensor) -> torch.Tensor:
    """ELBO at the row's own best q(z) minus ELBO at the encoder's, (B,) nats, on the same noise."""
    mean_BZ, log_std_BZ = (t.detach().clone() for t in vae.encode(x_BD))

    def bound() -> torch.Tensor:
        z_KBZ = mean_BZ + log_std_BZ.exp() * noise_KBZ
        log_KB = vae.likelihood.log_prob(vae.decode(z_KBZ), x_BD.expand(len(z_KBZ), -1, -1))
        return log_KB.mean(0) - kl_to_standard_normal(mean_BZ, log_std_BZ)

    start_B = bound()
    best_B = start_B.clone()
    with torch.enable_grad():
        mean_BZ.requires_grad_(), log_std_BZ.requires_grad_()
        optimiser = torch.optim.Adam([mean_BZ, log_std_BZ], lr=0.05)
        for _ in range(REGRET_STEPS):
            value_B = bound()
            best_B = torch.maximum(best_B, value_B.detach())
            optimiser.zero_grad()
            (-value_B.sum()).backward()
            optimiser.step()
    return best_B - start_B
