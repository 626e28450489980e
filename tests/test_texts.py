"""Runs on texts, from the file to the release: what is claimed, what is drawn, what is refused."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dpvae import api
from dpvae.audit.verify import verify
from dpvae.config import (
    DataConfig,
    EvaluateConfig,
    ImputeConfig,
    PrivacyConfig,
    ReleaseConfig,
    ReportConfig,
    RunConfig,
    SampleConfig,
    ScoreConfig,
    TrainConfig,
    TrainerConfig,
)
from dpvae.errors import ConfigError, DataError
from dpvae.evaluate.judge import evaluate
from dpvae.modalities import text as modality
from dpvae.privacy.events import Threshold
from dpvae.privacy.ledger import Ledger
from dpvae.release import text_parts, verbs
from dpvae.release.texts import TextModel
from dpvae.release.unlike import Unlike
from dpvae.report.progress import Progress
from dpvae.train import texts as training

BANK, MUSIC = ["pay my card", "what is my balance", "pay the bill now"], ["play a song", "Play the next song please"]
ROWS = {"query": (BANK + MUSIC) * 60, "domain": (["bank"] * 3 + ["music"] * 2) * 60}
PUBLIC = "pay my card\nwhat is my balance\npay the bill now\nplay a song\nplay the next song please\n"
RELEASED = ("model.safetensors", "model.json", "events.jsonl", "metrics.jsonl", "schema.json", "reference.json",
            "tokens.json", "plan.json")


class Killed(BaseException):
    """No handler of the program knows it."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "POOL", 600)
    monkeypatch.setattr(training, "CALIBRATIONS", 2)


@pytest.fixture
def public(tmp_path: Path) -> str:
    path = tmp_path / "public.txt"
    path.write_text(PUBLIC)
    return str(path)


def config_of(folder: Path, public: str, *, privacy: dict[str, Any] | None = None, **data: Any) -> TrainConfig:
    known = {"text": "query", "label": "domain", "labels": "bank|music", "rows": 300, "cap": 40, "public": public}
    return TrainConfig(data=DataConfig(kind="text", **{**known, **data}), trainer=TrainerConfig(fit_steps=4),
                       privacy=PrivacyConfig(**({"epsilon": 5.0, "delta": 1e-5} | (privacy or {}))),
                       report=ReportConfig(progress="quiet"), run=RunConfig(root=str(folder / "runs"), name="t"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A run that tests only read."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "public.txt").write_text(PUBLIC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "POOL", 600)
        patch.setattr(training, "CALIBRATIONS", 2)
        return api.train(config_of(folder, str(folder / "public.txt")), ROWS)


def test_a_run_on_texts_is_released_verified_sampled_scored_and_judged(tmp_path: Path, public: str) -> None:
    run = api.train(config_of(tmp_path, public), ROWS)
    assert run.epsilon.upper <= 5.0
    assert (run.path / "public" / "report.html").is_file()
    to = api.release(tmp_path / "out", run, rows=500)
    assert verify(to).ok
    found = pq.read_table(to / "data").to_pydict()
    assert list(found) == ["query", "domain"]
    assert len(found["query"]) == 500
    assert set(found["domain"]) == {"bank", "music"}
    assert max(len(text.encode()) for text in found["query"]) <= 40
    certificate = (to / "certificate.json").read_text()
    assert "at most 40 bytes" in certificate
    assert "sha256" in certificate  # of the public text
    assert public not in certificate
    of_bank = [text for text, about in zip(found["query"], found["domain"], strict=True) if about == "bank"]
    assert sum("pay" in text or "balance" in text for text in of_bank) > 0.3 * len(of_bank)

    said = verbs.sample(SampleConfig(run=str(run.path), rows=50, to=str(tmp_path / "s.csv"),
                                     given='{"domain": "music"}'))
    assert "50 synthetic texts" in said
    assert (tmp_path / "s.csv").read_text().count('"music"') == 50
    with pytest.raises(DataError, match="did you mean 'music'"):
        verbs.sample(SampleConfig(run=str(run.path), to=str(tmp_path / "s.csv"), given='{"domain": "musik"}'))

    asked = tmp_path / "asked.tsv"
    asked.write_text("query\tdomain\npay my card\tbank\nqqq zzz xxx\tbank\n")
    told = verbs.score(ScoreConfig(run=str(run.path), table=str(asked), to=str(tmp_path / "scores.parquet"),
                                   threshold="synthetic"))
    assert "1.00% of the model's own texts" in told
    scores = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    assert scores["score"][1] > scores["score"][0] + 5
    assert scores["anomaly"] in ([False, False], [False, True], [True, True])  # never the usual one alone
    verbs.score(ScoreConfig(run=str(run.path), table=str(asked), to=str(tmp_path / "elbo.parquet"), score="elbo"))
    elbo = pq.read_table(tmp_path / "elbo.parquet").to_pydict()["score"]
    assert elbo[1] > elbo[0]
    assert elbo != scores["score"]
    with pytest.raises(ConfigError, match="score=iwae or score=elbo for texts"):
        verbs.score(ScoreConfig(run=str(run.path), table=str(asked), score="regret"))
    with pytest.raises(ConfigError, match="costs budget; say how much"):
        verbs.score(ScoreConfig(run=str(run.path), table=str(asked), threshold="private"))

    with pytest.raises(ConfigError, match="of texts, which have no cells to impute"):
        verbs.impute(ImputeConfig(run=str(run.path), table=str(asked)))

    real = tmp_path / "real.tsv"
    real.write_text("query\tdomain\n" + "".join(f"{t}\t{k}\n" for t, k in zip(*ROWS.values(), strict=True)))
    judged = evaluate(EvaluateConfig(real=str(real), test=str(real), synth=str(to)))
    assert judged.to_dict()["utility"]["accuracy"] > 0.6
    assert str(judged).startswith("SEALED")


def test_texts_follow_the_seed_and_the_first_of_many_are_those_of_few(trained: api.Run) -> None:
    model = TextModel.load(trained.path / "public")
    few, many = (next(model.blocks(rows, seed=3))[0] for rows in (7, 30))
    assert many[:7] == few
    assert next(model.blocks(7, seed=4))[0] != few
    line = model.between("pay my card", "play a song", 4, label="bank", seed=0)
    assert len(line) == 4


def test_a_text_has_the_same_elbo_and_score_to_the_last_bit_whoever_else_is_there(trained: api.Run) -> None:
    texts = [*ROWS["query"][:40], "", "zq!" * 12, "pay " * 9, *(f"pay {i} now" for i in range(60))]
    records = {"query": texts, "domain": ["bank"] * len(texts)}
    model = TextModel.load(trained.path / "public")
    order = np.random.default_rng(0).permutation(len(texts))
    alone = modality.log_prob(trained.path / "public", records)
    scores = model.log_prob(texts, model.label_numbers(records["domain"]), samples=2, seed=0)
    for kept in (order, order[:50], order[:1], order[-7:]):
        some = {name: [values[i] for i in kept] for name, values in records.items()}
        assert modality.log_prob(trained.path / "public", some).tolist() == alone[kept].tolist()
        assert model.log_prob(some["query"], model.label_numbers(some["domain"]), samples=2, seed=0
                              ).tolist() == scores[kept].tolist()


def test_a_threshold_from_private_texts_is_booked_and_near_the_rate_that_was_asked_for(
        tmp_path: Path, public: str) -> None:
    run = api.train(config_of(tmp_path, public), ROWS)
    ledger = Ledger.open(tmp_path / "runs" / "ledger.db")
    before = len(ledger.rows())
    told = verbs.score(ScoreConfig(run=str(run.path), table=str(_written(tmp_path)), to=str(tmp_path / "s.parquet"),
                                   threshold="private", epsilon=20.0, false_alarm=0.2, root=str(tmp_path / "runs")))
    assert "epsilon 20 booked on" in told
    added = ledger.rows()[before:]
    assert [row.kind for row in added] == ["reserve", "commit"]
    assert added[0].content["events"][0]["phase"] == "threshold"
    assert np.mean(pq.read_table(tmp_path / "s.parquet").to_pydict()["anomaly"]) <= 0.6


def test_a_threshold_from_the_texts_of_persons_is_refused_and_nothing_is_booked(tmp_path: Path, public: str) -> None:
    rows = {**ROWS, "user": [f"u{i // 5}" for i in range(300)]}
    run = api.train(config_of(tmp_path, public, unit="user", per_unit=4, rows=60), rows)
    before = len(Ledger.open(tmp_path / "runs" / "ledger.db").rows())
    with pytest.raises(ConfigError, match="a user holds several texts"):
        verbs.score(ScoreConfig(run=str(run.path), table=str(_written(tmp_path)), threshold="private", epsilon=1.0,
                                root=str(tmp_path / "runs")))
    assert len(Ledger.open(tmp_path / "runs" / "ledger.db").rows()) == before


def test_a_release_has_the_same_bytes_however_many_workers_draw_it(
        trained: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_parts, "PART", text_parts.BLOCK)
    files = []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        written = text_parts.text_writer(trained.path / "public", 2500, seed=3, workers=workers)(
            tmp_path / str(workers), {})
        assert written["rows"] == 2500 == sum(written["histograms"]["domain"])
        files.append((tmp_path / str(workers) / "part-00000.parquet").read_bytes())
    assert files[0] == files[1]
    alone = next(TextModel.load(trained.path / "public").blocks(2500, seed=3))[0]
    assert pq.read_table(tmp_path / "1").column("query").to_pylist()[:1024] == alone


def test_what_comes_near_a_public_line_is_not_released_and_card_and_certificate_say_so(
        trained: api.Run, tmp_path: Path) -> None:
    plain = api.release(tmp_path / "plain", trained, rows=400)
    lines = pq.read_table(plain / "data").column("query").to_pylist()
    line = max(set(lines), key=lines.count)
    known = tmp_path / "known.txt"
    known.write_text(f"{line.upper()}!\none that nobody says at all\n")
    config = ReleaseConfig(run=str(trained.path), rows=400, to=str(tmp_path / "kept"), unlike=str(known))
    kept = Path(api.release(config))
    drawn = pq.read_table(kept / "data").to_pydict()
    unlike = Unlike.of(str(known))
    assert sum(unlike.near(text) for text in lines) > 0
    assert not any(unlike.near(text) for text in drawn["query"])
    same = [a for a, b in zip(lines, drawn["query"], strict=True) if a == b]
    assert len(same) == sum(not unlike.near(text) for text in lines)  # the others are what they were
    assert drawn["domain"] == pq.read_table(plain / "data").column("domain").to_pylist()
    digest = hashlib.sha256(known.read_bytes()).hexdigest()
    certificate = json.loads((kept / "certificate.json").read_text())
    assert digest in certificate["lineage"]["unlike"]
    assert any(digest in line for line in certificate["scope"]["public_inputs"])
    assert digest in (kept / "card.md").read_text()
    assert json.loads((plain / "certificate.json").read_text())["lineage"]["unlike"] == "none"
    assert verify(kept).ok


def test_eight_words_in_a_row_of_a_public_line_come_near_it_and_seven_do_not(tmp_path: Path) -> None:
    path = tmp_path / "public.txt"
    path.write_text("It was the best of times, it was the worst of times\n")
    unlike = Unlike.of(str(path))
    assert unlike.near("they say IT WAS THE BEST OF TIMES it was ok")
    assert not unlike.near("they say it was the best of times it is ok")
    assert not unlike.near("")


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot be read"), (b"\xff\xfe", "not UTF-8"), (b"\n", "no word")])
def test_a_public_file_that_cannot_be_compared_with_is_refused(
        content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "public.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Unlike.of(str(path))


def test_a_card_of_texts_speaks_of_texts_and_its_model_folder_draws_them(trained: api.Run, tmp_path: Path) -> None:
    to = Path(api.release(ReleaseConfig(run=str(trained.path), rows=20, to=str(tmp_path / "out"), with_model=True)))
    card = (to / "card.md").read_text()
    assert "20 texts drawn from a variational autoencoder" in card
    assert "on a set of 300 texts (declared)" in card
    assert "synthetic rows" not in card + (to / "croissant.json").read_text()
    assert next(TextModel.load(to / "model").blocks(5, seed=0)) == next(
        TextModel.load(trained.path / "public").blocks(5, seed=0))
    assert "TextModel.load" in (to / "model" / "README.md").read_text()
    lines = json.loads((trained.path / "public" / "preview.json").read_text())["lines"]
    assert [len(line["texts"]) for line in lines] == [modality.STOPS] * modality.LINES
    assert "Along the latent" in (to / "report.html").read_text()


def test_texts_between_two_are_drawn_from_the_command_line(trained: api.Run, tmp_path: Path) -> None:
    to, given = tmp_path / "line.csv", '{"domain": "music"}'
    told = verbs.sample(SampleConfig(run=str(trained.path), between="play a song|pay my card", given=given, rows=5,
                                     to=str(to), id="place"))
    assert "as private as those" in told
    rows = list(csv.DictReader(to.read_text().splitlines()))
    assert [row["place"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert {row["domain"] for row in rows} == {"music"}
    for wrong in ("one", "a|b|c", "a|"):
        with pytest.raises(ConfigError, match="expected two texts"):
            verbs.sample(SampleConfig(run=str(trained.path), between=wrong, to=str(to)))


def test_one_more_text_changes_no_event_and_no_size(tmp_path: Path, public: str) -> None:
    more = {name: [*values, values[0]] for name, values in ROWS.items()}
    runs = [api.train(config_of(tmp_path / name, public), rows) for name, rows in (("n", ROWS), ("more", more))]
    for name in ("events.jsonl", "plan.json"):
        assert (runs[0].path / "public" / name).read_bytes() == (runs[1].path / "public" / name).read_bytes()
    plan = api.plan(config_of(tmp_path, public, path=str(_written(tmp_path))))
    assert [json.loads(line) for line in (runs[0].path / "public" / "events.jsonl").read_text().splitlines()] == [
        {"type": type(event).__name__, **event.__dict__} for event in plan.events()]


def _written(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"query": t, "domain": k}) + "\n" for t, k in zip(*ROWS.values(), strict=True)))
    return path


@contextlib.contextmanager
def killed_at(moment: int) -> Iterator[list[str]]:
    shown: list[str] = []
    real = Progress._show

    def show(self: Progress, name: str, *rest: Any) -> None:
        shown.append(name)
        if len(shown) == moment:
            raise Killed
        real(self, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "_show", show)
        yield shown


def test_a_run_killed_anywhere_ends_with_the_same_bits_and_one_reservation(tmp_path: Path, public: str) -> None:
    secret = {"secret_seed": 5}
    with killed_at(-1) as moments:
        straight = api.train(config_of(tmp_path / "straight", public, privacy=secret), ROWS)
    assert {*moments} == {"survey", "anchor", "fit"}
    for number in range(1, len(moments) + 1):
        config = config_of(tmp_path / str(number), public, privacy=secret)
        with killed_at(number), pytest.raises(Killed):
            api.train(config, ROWS)
        again = api.train(config, ROWS)
        for name in RELEASED:
            assert (again.path / "public" / name).read_bytes() == (straight.path / "public" / name).read_bytes(), name
        kinds = [row.kind for row in Ledger.open(tmp_path / str(number) / "runs" / "ledger.db").rows()]
        assert kinds.count("reserve") == 1


def test_a_label_seen_once_is_not_published_and_finding_labels_is_charged(tmp_path: Path, public: str) -> None:
    rows = {"query": [*ROWS["query"], "my secret"], "domain": [*ROWS["domain"], "leukaemia"]}
    run = api.train(config_of(tmp_path, public, labels=None), rows)
    assert any(isinstance(event, Threshold) for event in run.plan.events())
    for path in (run.path / "public").iterdir():
        assert b"leukaemia" not in path.read_bytes()
    schema = json.loads((run.path / "public" / "schema.json").read_text())
    assert schema["columns"][1]["categories"] == ["bank", "music"]


def test_the_unit_may_be_a_person_whose_bound_is_on_the_certificate(tmp_path: Path, public: str) -> None:
    rows = {**ROWS, "user": [f"u{i // 5}" for i in range(300)]}
    run = api.train(config_of(tmp_path, public, unit="user", per_unit=4, rows=60), rows)
    to = api.release(tmp_path / "out", run, rows=20)
    certificate = json.loads((to / "certificate.json").read_text())
    assert certificate["claim"]["unit"] == "user"
    assert certificate["scope"]["records_per_unit"].startswith("4: ")
    assert "one user added or removed" in certificate["sentence"]
    assert verify(to).ok


def test_records_drawn_from_a_run_train_again_troublemakers_included(tmp_path: Path, public: str) -> None:
    run = api.train(config_of(tmp_path, public), ROWS)
    drawn = modality.made_up(run.path / "public", 200, seed=1)
    assert {len(values) for values in drawn.values()} == {200}
    for record in modality.troublemakers(drawn).values():
        drawn = {name: [*values, record[name]] for name, values in drawn.items()}
    again = replace(config_of(tmp_path, public), run=RunConfig(root=str(tmp_path / "runs"), name="again"))
    found = api.train(again, drawn)
    texts = next(TextModel.load(found.path / "public").blocks(300, seed=0))[0]
    assert all("\ufffd" not in text and len(text.encode()) <= 40 for text in texts)


@pytest.mark.parametrize(("data", "message"), [
    ({"text": "nothing"}, "no such column"), ({"label": "query"}, "another column"),
    ({"overlong": "refuse", "cap": 5}, "expected data.overlong=cut"), ({"labels": "bank"}, "'music'"),
    ({"labels": "bank|bank"}, "distinct values"),
    ({"unit": "query"}, "another column"), ({"unit": "domain", "labels": None}, "must be declared"),
])
def test_what_cannot_be_trained_on_is_refused_in_a_line_and_nothing_is_spent(
        data: dict[str, Any], message: str, tmp_path: Path, public: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        api.train(config_of(tmp_path, public, **data), ROWS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_trainer_that_texts_do_not_have_is_refused(tmp_path: Path, public: str) -> None:
    with pytest.raises(ConfigError, match="expected trainer=anchored"):
        api.train(replace(config_of(tmp_path, public), trainer=TrainerConfig(name="joint")), ROWS)


@pytest.mark.parametrize("texts", [[""] * 300, ["same"] * 300, ["e\u0301\x00 שלום"] * 300])
def test_texts_that_are_all_empty_or_all_alike_train(texts: list[str], tmp_path: Path, public: str) -> None:
    run = api.train(config_of(tmp_path, public, label=None, labels=None), {"query": texts})
    drawn = next(TextModel.load(run.path / "public").blocks(100, seed=0))[0]
    assert all("\ufffd" not in text for text in drawn)
    assert texts[0] or sum(not text for text in drawn) > 80


def test_texts_of_bytes_alone_without_a_label_train_and_round_trip(tmp_path: Path, public: str) -> None:
    names = {"query": ["Zoë", "Åsa", "Noël", "Chloë", "Anna"] * 60}
    run = api.train(config_of(tmp_path, public, label=None, labels=None, cap=12), names)
    to = api.release(tmp_path / "out", run, rows=400)
    found = pq.read_table(to / "data").column("query").to_pylist()
    assert any("ë" in text for text in found)
    assert all("\ufffd" not in text for text in found)
    assert verify(to).ok
