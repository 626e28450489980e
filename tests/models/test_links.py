"""Columns that follow others: what is drawn is the enumerated law, with and without a condition."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from dpvae.models.likelihood import Columns
from dpvae.models.links import Link
from dpvae.models.mixture import Mixture
from dpvae.models.vae import VAE
from dpvae.train.checkpoint import load_model, save_model

SIZES = (3, 2, 4)
ROWS = torch.tensor(list(itertools.product(*map(range, SIZES))))
MASKS = {2: torch.tensor([1.0, 0.25, 0.0, 0.5]), 1: torch.tensor([0.5, 1.0])}


def chain() -> tuple[Link, ...]:
    """1 follows 0 and 2 follows 1."""
    generator = torch.Generator().manual_seed(5)
    return tuple(Link(i, j, (torch.randn(SIZES[i], SIZES[j], generator=generator, dtype=torch.float64) * 2).exp())
                 for i, j in ((0, 1), (1, 2)))


def mixture_of(links: tuple[Link, ...]) -> Mixture:
    generator, columns = torch.Generator().manual_seed(0), Columns(SIZES)
    logits = torch.randn(5, columns.width, generator=generator, dtype=torch.float64) * 2
    return Mixture(columns, torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0),
                   columns.log_probs(logits), links)


def law_of(mixture: Mixture) -> torch.Tensor:
    """p(x) of every row, by the formula of the module."""
    total = torch.zeros(len(ROWS), dtype=torch.float64)
    above = {link.target: link for link in mixture.links}
    for k, weight in enumerate(mixture.log_weights.exp()):
        for number, row in enumerate(ROWS):
            value = weight.clone()
            for j, code in enumerate(row):
                p_C = mixture.log_probs[k, mixture.columns.slice(j)].exp()
                if j in above:
                    p_C = p_C * above[j].ratio_ST[row[above[j].source]]
                value = value * p_C[code] / p_C.sum()
            total[number] += value
    return total


def counted(rows: torch.Tensor) -> torch.Tensor:
    return torch.stack([((rows == row).all(1)).sum() for row in ROWS])


def test_rows_follow_the_linked_law_and_the_source_keeps_its_own() -> None:
    mixture = mixture_of(chain())
    law = law_of(mixture)
    assert float(law.sum()) == pytest.approx(1.0)
    drawn = counted(mixture.sample(20_000, generator=torch.Generator().manual_seed(1)))
    assert chisquare(drawn.numpy(), (law * 20_000).numpy()).pvalue > 1e-4
    alone = law_of(mixture_of(()))
    for code in range(SIZES[0]):
        assert float(law[ROWS[:, 0] == code].sum()) == pytest.approx(float(alone[ROWS[:, 0] == code].sum()))


def test_densities_and_their_conditionals_are_those_of_the_law_that_rows_are_drawn_by() -> None:
    """A column that follows and is followed, and one that two follow."""
    for links in (chain(), (chain()[0], Link(0, 2, chain()[1].ratio_ST.repeat(2, 1)[:3]))):
        mixture = mixture_of(links)
        law = law_of(mixture)
        assert mixture.log_prob(ROWS).exp().numpy() == pytest.approx(law.numpy(), rel=1e-9)
        found = mixture.leave_one_out(ROWS).exp()
        for i, row in enumerate(ROWS):
            for j in range(3):
                rest = ((row == ROWS) | (torch.arange(3) == j)).all(1)
                assert float(found[i, j]) == pytest.approx(float(law[i] / law[rest].sum()), rel=1e-9)
        alone = torch.cat([torch.stack([law[ROWS[:, j] == v].sum() for v in range(size)])
                           for j, size in enumerate(SIZES)])
        assert mixture.one_way().numpy() == pytest.approx(alone.numpy(), rel=1e-9)


def test_evidence_and_rows_of_a_condition_on_followers_are_those_of_the_enumerated_law() -> None:
    mixture = mixture_of(chain())
    held = law_of(mixture) * MASKS[2][ROWS[:, 2]] * MASKS[1][ROWS[:, 1]]
    assert float((mixture.log_weights + mixture.log_evidence(MASKS)).logsumexp(0).exp()) == pytest.approx(
        float(held.sum()))
    drawn = counted(mixture.given(MASKS).sample(20_000, generator=torch.Generator().manual_seed(2)))
    assert not drawn[held == 0].any()
    wanted = (held / held.sum() * 20_000)[held > 0]
    assert chisquare(drawn[held > 0].numpy(), wanted.numpy()).pvalue > 1e-4


def test_one_condition_after_another_is_both_at_once() -> None:
    mixture = mixture_of(chain())
    both, one = mixture.given(MASKS), mixture.given({2: MASKS[2]}).given({1: MASKS[1]})
    assert one.log_weights.numpy() == pytest.approx(both.log_weights.numpy())
    rows = [m.sample(500, generator=torch.Generator().manual_seed(3)) for m in (both, one)]
    assert (rows[0] == rows[1]).float().mean() > 0.99


def test_another_balance_of_a_follower_keeps_the_rows_of_each_of_its_codes() -> None:
    mixture = mixture_of(chain())
    law, tilted = law_of(mixture), mixture.balanced(1, {0: 1.0, 1: 3.0})
    drawn = counted(tilted.sample(20_000, generator=torch.Generator().manual_seed(4)))
    wanted = sum(torch.where(ROWS[:, 1] == code, law, 0) / law[ROWS[:, 1] == code].sum() * share
                 for code, share in ((0, 0.25), (1, 0.75)))
    assert chisquare(drawn.numpy(), (wanted * 20_000).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("seen", [{2: 1}, {1: 0}, {0: 2}, {0: 1, 2: 3}, {}])
def test_missing_cells_of_a_point_are_drawn_by_the_law_given_those_that_are_there(seen: dict[int, int]) -> None:
    columns = Columns(SIZES)
    one = Mixture(columns, torch.zeros(1, dtype=torch.float64), mixture_of(()).log_probs[:1], chain())
    rows, observed = torch.zeros(20_000, 3, dtype=torch.long), torch.zeros(20_000, 3, dtype=torch.bool)
    held = law_of(one)
    for j, code in seen.items():
        rows[:, j], observed[:, j] = code, True
        held = torch.where(ROWS[:, j] == code, held, 0)
    drawn = counted(one.complete(rows, observed, generator=torch.Generator().manual_seed(5)))
    assert int(drawn[held > 0].sum()) == 20_000
    wanted = (held / held.sum() * 20_000)[held > 0]
    assert chisquare(drawn[held > 0].numpy(), wanted.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("links", [chain(), (chain()[0], Link(0, 2, chain()[1].ratio_ST.repeat(2, 1)[:3]))])
@pytest.mark.parametrize("there", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_what_a_row_with_holes_shows_has_the_probability_of_the_enumerated_law(links: tuple[Link, ...],
                                                                               there: tuple[int, ...]) -> None:
    """Whatever is missing: the head of a chain, its middle, one or both of two that follow the same column."""
    mixture = mixture_of(links)
    law, observed = law_of(mixture), torch.isin(torch.arange(3), torch.tensor(there)).expand(len(ROWS), -1)
    found = mixture.log_prob(torch.where(observed, ROWS, 0), observed).exp()
    for row, value in zip(ROWS, found, strict=True):
        same = ((row == ROWS) | ~observed).all(1)
        assert float(value) == pytest.approx(float(law[same].sum()), rel=1e-9)


@pytest.mark.parametrize("seen", [{2: 1}, {1: 0}, {0: 1, 2: 3}])
def test_rows_are_completed_from_the_points_that_they_come_from(seen: dict[int, int]) -> None:
    """A point is as likely as links say that what is observed comes from it, not as its columns alone would say."""
    mixture = mixture_of(chain())
    rows, observed = torch.zeros(20_000, 3, dtype=torch.long), torch.zeros(20_000, 3, dtype=torch.bool)
    held = law_of(mixture)
    for j, code in seen.items():
        rows[:, j], observed[:, j] = code, True
        held = torch.where(ROWS[:, j] == code, held, 0)
    drawn = counted(mixture.complete(rows, observed, generator=torch.Generator().manual_seed(6)))
    wanted = (held / held.sum() * 20_000)[held > 0]
    assert chisquare(drawn[held > 0].numpy(), wanted.numpy()).pvalue > 1e-4


def test_a_rows_completion_does_not_depend_on_how_many_parts_are_worked_out_at_once(monkeypatch: pytest.MonkeyPatch
                                                                                    ) -> None:
    mixture, observed = mixture_of(chain()), torch.tensor([[False, True, True]]).expand(len(ROWS), -1)
    whole = mixture.log_prob(ROWS, observed)
    monkeypatch.setattr("dpvae.models.links._NUMBERS", 1)
    monkeypatch.setattr("dpvae.models.mixture._BLOCK", 5)
    monkeypatch.setattr("dpvae.models.mixture._CELLS", 10)
    assert mixture.log_prob(ROWS, observed).numpy() == pytest.approx(whole.numpy(), rel=1e-12)


def test_a_function_is_kept_in_every_row_of_a_saved_model(tmp_path: Path) -> None:
    vae = VAE(SIZES, latent_dim=3, hidden=4, layers=0, components=7, generator=torch.Generator().manual_seed(2))
    ratio_ST = torch.full((4, 3), 1e-9)
    ratio_ST[torch.arange(4), torch.tensor([2, 0, 1, 2])] = 1.0
    vae.link([Link(2, 0, ratio_ST)])
    save_model(vae, tmp_path)
    again = load_model(tmp_path)
    assert [(link.source, link.target) for link in again.links] == [(2, 0)]
    rows = again.sample(5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows[:, 0], torch.tensor([2, 0, 1, 2])[rows[:, 2]])
    assert torch.equal(rows, vae.sample(5000, generator=torch.Generator().manual_seed(0)))
    given = Mixture.of(again, generator=torch.Generator(), double=True).given({0: torch.tensor([0.0, 0.0, 1.0])})
    assert set(given.sample(500, generator=torch.Generator().manual_seed(1))[:, 2].tolist()) <= {0, 3}
