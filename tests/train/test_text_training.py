"""DP-SGD on texts: the loss is the likelihood, a person's texts are one record, and a run that stops goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import ScriptedKey, silent, small_config
from small_texts import LETTERS, model
from test_resume import Killed, book_of, killed_at

from dpvae import api
from dpvae.config import LedgerConfig, PerformanceConfig, TrainConfig
from dpvae.errors import ConfigError
from dpvae.modalities import text as modality
from dpvae.models.text import TextVAE
from dpvae.privacy.accountant import price
from dpvae.privacy.plan import SgdPlan
from dpvae.train import texts
from dpvae.train import trainer as trainer_module
from dpvae.train.dpsgd import PrivateSteps
from dpvae.train.text_trainer import decoder_only, packed, random_texts, split

RELEASED = ("model.safetensors", "model.json", "events.jsonl", "metrics.jsonl", "schema.json", "reference.json",
            "plan.json", "latent.json")
ROWS = {"text": ["pay my card", "play a song", "what is my balance", ""] * 30, "label": ["bank", "fun"] * 60}
TOKENS = torch.tensor([[2, 3, 4], [4, 0, 0], [0, 0, 0], [3, 3, 0]])
PLAN = SgdPlan(noise_multiplier=1.0, sampling_rate=0.5, steps=1, clip_norm=1.0, latent_samples=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "POOL", 300)
    monkeypatch.setattr(texts, "CALIBRATIONS", 1)


def config_of(folder: Path, **changes: Any) -> TrainConfig:
    data = {"kind": "text", "label": "label", "labels": "bank|fun", "cap": 32, "rows": 120} | changes.pop("data", {})
    trainer = {"steps": 6, "sampling_rate": 0.3, "fit_steps": 2, "sleep_steps": 2, "anchor_share": 0.7,
               "metric_releases": 3} | changes.pop("trainer", {})
    return small_config("anchored", run={"root": str(folder), "name": "run"}, ledger=LedgerConfig(dataset="said"),
                        data=data, trainer=trainer, model={"hidden": 8, "latent_dim": 3, "components": None},
                        privacy={"epsilon": 8.0, "delta": 1e-5, "secret_seed": 5}, **changes)


def test_the_loss_of_a_text_is_minus_its_likelihood_given_the_latent() -> None:
    vae, labels = model(LETTERS), torch.tensor([0, 1, 1, 0])
    noise = torch.randn(4, 2, 1, 2, generator=torch.Generator().manual_seed(0))
    loss_B = decoder_only(vae)(vae.network, packed(TOKENS, labels, np.arange(4), 1), noise)
    for k in range(2):
        base, before, left = vae.base(TOKENS, labels)
        mean, log_std = vae.encoder(TOKENS, labels)
        z = mean + log_std.exp() * noise[:, k, 0]
        loss_B = loss_B + vae.log_prob(vae.network, base, before, left, TOKENS, z, labels) / 2
    assert loss_B.detach().numpy() == pytest.approx(0.0, abs=1e-5)


def test_a_person_is_the_sum_of_their_texts_and_a_text_that_is_not_there_adds_nothing() -> None:
    vae, labels, owners = model(LETTERS), torch.tensor([0, 1, 1, 0]), np.array([0, 0, 1, 1])
    noise = torch.randn(2, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    together = decoder_only(vae)(vae.network, packed(TOKENS, labels, owners, 3), noise)
    alone = decoder_only(vae)(vae.network, packed(TOKENS, labels, np.arange(4), 1),
                              noise[:, 0, :2].reshape(4, 1, 1, 2))
    assert together.detach().numpy() == pytest.approx(alone.view(2, 2).sum(1).detach().numpy(), rel=1e-5)


def test_packed_texts_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        owners = np.sort(np.unique(rng.integers(0, 9, 12), return_inverse=True)[1])
        most = int(np.bincount(owners).max())
        tokens, labels = torch.tensor(rng.integers(0, 5, (12, 4))), torch.tensor(rng.integers(0, 3, 12))
        found, label = split(packed(tokens, labels, owners, most), most)
        assert torch.equal(found[label > 0], tokens)
        assert torch.equal(label[label > 0], labels + 1)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # nothing that enters a decoder needs a gradient
@pytest.mark.parametrize("per_unit", [1, 2])
def test_fast_clipping_and_opacus_give_the_same_network(per_unit: int) -> None:
    found = []
    for mode in ("hooks", "fast"):
        vae = model(LETTERS)
        codes = random_texts(vae, 4 * per_unit, per_unit)(12, torch.Generator().manual_seed(0))
        private = PrivateSteps(vae.network, codes, decoder_only(vae), plan=PLAN, rows=12,
                               key=ScriptedKey(normal=silent), learning_rate=1e-3, microbatch=5, clipping=mode,
                               latents=(1, per_unit, 2), example=random_texts(vae, 4 * per_unit, per_unit))
        private.step(0, 1.0)
        private.close()
        found.append(torch.cat([p.detach().flatten() for p in vae.network.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_loss_in_which_texts_meet_is_refused() -> None:
    vae = model(LETTERS)

    def together(module: Any, records: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return decoder_only(vae)(module, records, noise) * (1 + records.float().mean())

    with pytest.raises(ConfigError, match="moved the"):
        PrivateSteps(vae.network, random_texts(vae, 4, 1)(6, torch.Generator().manual_seed(0)), together, plan=PLAN,
                     rows=6, key=ScriptedKey(), learning_rate=1e-3, microbatch=None, latents=(1, 1, 2),
                     example=random_texts(vae, 4, 1))


def test_a_run_killed_at_any_moment_ends_with_the_same_bits_and_one_reservation(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "CHECKPOINT_EVERY", 2)
    with killed_at(-1) as moments:
        api.train(config_of(tmp_path / "straight"), ROWS)
    wanted = {name: (tmp_path / "straight" / "run" / "public" / name).read_bytes() for name in RELEASED}
    assert list(dict.fromkeys(moment[0] for moment in moments)) == ["survey", "anchor", "fit", "dpsgd", "sleep"]
    for number in range(4, len(moments) + 1, 5):
        folder = tmp_path / str(number)
        with killed_at(number), pytest.raises(Killed):
            api.train(config_of(folder), ROWS)
        assert book_of(folder) == ["reserve"], "a crash counts as spent"
        api.train(config_of(folder), ROWS)
        assert {name: (folder / "run" / "public" / name).read_bytes() for name in RELEASED} == wanted
        assert book_of(folder) == ["reserve", "commit"]


def test_one_text_more_changes_no_step_no_size_and_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name, rows in (("n", ROWS), ("more", {k: [*v, v[1]] for k, v in ROWS.items()})):
        key = ScriptedKey()
        monkeypatch.setattr(modality, "secrets_of", lambda run, config, key=key: key)
        run = api.train(config_of(tmp_path / name), rows)
        noise = [(d.names, d.size) for d in key.draws if d.names[0] == "dpsgd" and d.kind == "normal"]
        found.append((noise, run.plan.events()))
    assert found[0] == found[1]
    assert len(found[0][0]) == 6


def test_texts_of_persons_are_learnt_from_and_their_noisy_elbo_is_released_three_times(tmp_path: Path) -> None:
    rows = {**ROWS, "user": [f"u{i // 3}" for i in range(120)]}
    run = api.train(config_of(tmp_path, data={"unit": "user", "per_unit": 2, "rows": 40}), rows)
    metrics = [json.loads(line) for line in (run.path / "public" / "metrics.jsonl").read_text().splitlines()]
    assert [metric["phase"] for metric in metrics] == ["fit", "dpsgd", "dpsgd"]
    assert {event.phase for event in run.plan.events()} == {"anchor", "dpsgd", "metric"}


def test_the_share_of_dp_sgd_is_taken_from_the_sequences_and_the_price_holds(tmp_path: Path) -> None:
    public = modality.Public.of(config_of(tmp_path).data).found_in((("text", "string"), ("label", "string")))
    knobs = {"steps": None, "latent_samples": None}
    plain, shared = (public.plan(config_of(tmp_path, trainer={"anchor_share": a, **knobs}))
                     for a in (None, 0.9))
    assert plain.sgd is None
    assert shared.sgd is not None
    assert (shared.sgd.steps, shared.sgd.latent_samples) == (40, 1)
    assert sum(shared.shares.values()) == pytest.approx(1.0)
    assert shared.shares["dpsgd"] == pytest.approx(0.1 * (1 - shared.shares["metric/elbo"]))
    assert price(shared.events(), delta=1e-5, neighbouring="add_remove").upper <= 8.0


def test_a_compiled_step_on_texts_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    config = replace(config_of(tmp_path), performance=PerformanceConfig(compile=True))
    with pytest.raises(ConfigError, match=r"performance\.compile=true: texts differ in length"):
        api.train(config, ROWS)
    assert not (tmp_path / "run").exists()


def test_the_encoder_asleep_learns_the_latent_of_what_the_decoder_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = model(LETTERS)
    monkeypatch.setattr(texts, "POOL", 2000)
    before = _error(vae)
    texts.sleep(vae, steps=150, seed=0)
    assert _error(vae) < 0.97 * before


def _error(vae: TextVAE) -> float:
    """Mean nats of -log q(z | text) over drawn pairs, up to a constant."""
    generator = torch.Generator().manual_seed(9)
    labels, z = torch.zeros(2000, dtype=torch.long), torch.randn(2000, 2, generator=generator)
    tokens = vae.sample(labels, generator=generator, z_BZ=z)
    with torch.no_grad():
        mean, log_std = vae.encoder(tokens, labels)
        return float((0.5 * ((z - mean) * (-log_std).exp()) ** 2 + log_std).sum(-1).mean())


