"""The mixture's marginals, conditionals and completions are those of the enumerated law."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chisquare

from dpvae.models.likelihood import Columns
from dpvae.models.mixture import Mixture, effective_size
from dpvae.models.vae import VAE

SIZES = (3, 2, 4)
ROWS = torch.tensor(list(itertools.product(*map(range, SIZES))))


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    generator = torch.Generator().manual_seed(0)
    columns = Columns(SIZES)
    logits = torch.randn(5, columns.width, generator=generator, dtype=torch.float64) * 2
    return Mixture(columns, torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0),
                   columns.log_probs(logits))


@pytest.fixture(scope="module")
def law(mixture: Mixture) -> torch.Tensor:
    """p(x) of every row, by the formula."""
    return torch.stack([sum((mixture.log_weights + sum(mixture.log_probs[:, mixture.columns.starts[j] + int(c)]
                                                       for j, c in enumerate(row))).exp()) for row in ROWS])


def test_the_density_is_the_formula_and_sums_to_one(mixture: Mixture, law: torch.Tensor) -> None:
    assert mixture.log_prob(ROWS).exp() == pytest.approx(law.numpy())
    assert float(law.sum()) == pytest.approx(1.0)


def test_a_marginal_is_the_sum_over_what_was_not_observed(mixture: Mixture, law: torch.Tensor) -> None:
    seen = torch.tensor([[True, False, True]]).expand(len(ROWS), -1)
    found = mixture.log_prob(ROWS, seen).exp()
    for row, value in zip(ROWS, found, strict=True):
        same = (ROWS[:, 0] == row[0]) & (ROWS[:, 2] == row[2])
        assert float(value) == pytest.approx(float(law[same].sum()))


def test_a_conditional_is_the_ratio_of_joint_and_marginal(mixture: Mixture, law: torch.Tensor) -> None:
    found = mixture.leave_one_out(ROWS).exp()
    for i, row in enumerate(ROWS):
        for j in range(3):
            rest = torch.ones(len(ROWS), dtype=torch.bool)
            for other in set(range(3)) - {j}:
                rest &= ROWS[:, other] == row[other]
            assert float(found[i, j]) == pytest.approx(float(law[i] / law[rest].sum()), rel=1e-9)


def test_completed_cells_follow_the_law_given_what_was_observed(mixture: Mixture, law: torch.Tensor) -> None:
    rows = torch.tensor([[2, 0, 1]]).expand(20_000, -1)
    seen = torch.tensor([[True, False, False]]).expand(20_000, -1)
    full = mixture.complete(rows, seen, generator=torch.Generator().manual_seed(1))
    assert (full[:, 0] == 2).all()
    counts = torch.stack([((full == row).all(1)).sum() for row in ROWS])
    wanted = torch.where(ROWS[:, 0] == 2, law, 0)
    wanted = wanted[ROWS[:, 0] == 2] / wanted.sum() * 20_000
    assert chisquare(counts[ROWS[:, 0] == 2].numpy(), wanted.numpy()).pvalue > 1e-4


def test_a_forbidden_code_is_never_drawn(mixture: Mixture) -> None:
    seen = torch.zeros(500, 3, dtype=torch.bool)
    full = mixture.complete(torch.zeros(500, 3), seen, generator=torch.Generator().manual_seed(1), forbidden=[2, 8])
    assert not (full[:, 0] == 2).any()
    assert not (full[:, 2] == 3).any()


def test_evidence_of_a_share_of_codes_is_their_weighted_sum(mixture: Mixture, law: torch.Tensor) -> None:
    share = torch.tensor([1.0, 0.25, 0.0, 0.0], dtype=torch.float64)
    found = (mixture.log_weights + mixture.log_evidence({2: share, 1: torch.tensor([0.0, 1.0])})).logsumexp(0).exp()
    wanted = sum(law[(ROWS[:, 2] == v) & (ROWS[:, 1] == 1)].sum() * share[v] for v in range(4))
    assert float(found) == pytest.approx(float(wanted))


def test_another_balance_changes_the_label_and_nothing_given_the_label(mixture: Mixture, law: torch.Tensor) -> None:
    tilted = mixture.balanced(1, {0: 1.0, 1: 3.0}).log_prob(ROWS).exp()
    for label, share in ((0, 0.25), (1, 0.75)):
        held = ROWS[:, 1] == label
        assert float(tilted[held].sum()) == pytest.approx(share)
        assert (tilted[held] / share).numpy() == pytest.approx((law[held] / law[held].sum()).numpy())


def test_the_mixture_of_a_codebook_is_the_model() -> None:
    vae = VAE(SIZES, latent_dim=3, hidden=4, layers=1, components=7, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(0)
    wanted = vae.log_prob(ROWS, samples=1, generator=generator)
    assert Mixture.of(vae, generator=generator).log_prob(ROWS).numpy() == pytest.approx(wanted.numpy(), abs=1e-5)


def test_equal_weights_count_in_full_and_one_weight_counts_once() -> None:
    assert effective_size(torch.zeros(50)) == pytest.approx(50)
    assert effective_size(torch.tensor([0.0, -1e9])) == pytest.approx(1)


def test_rows_under_a_condition_are_spread_more_evenly_than_chance_would(mixture: Mixture, law: torch.Tensor) -> None:
    masks = {2: torch.tensor([1.0, 0.5, 0.0, 0.0])}
    given = mixture.given(masks)
    rows = given.sample(4000, generator=torch.Generator().manual_seed(3))
    held = law * masks[2][ROWS[:, 2]]
    for j, size in enumerate(SIZES):
        wanted = torch.stack([held[ROWS[:, j] == v].sum() for v in range(size)]) / held.sum()
        drawn = torch.bincount(rows[:, j], minlength=size)
        assert (drawn - 4000 * wanted).abs().max() <= 2 * given.points  # independent draws: about 30 off, often more
        assert not drawn[wanted == 0].any()
