"""Every file of conf/ composes, agrees with the dataclasses key by key, and trains two steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dpvae import cli
from dpvae.config import DataConfig, TrainConfig, build

CONF = cli.conf_dir()
GROUPS = sorted(cli.groups_of(cli.VERBS["train"]))
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
ROWS = 400
OPEN = {("data", "file"): {"path"}}  # what a config leaves for the user to say


@pytest.fixture(autouse=True)
def hydra_here() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(word: str, *overrides: str) -> dict[str, Any]:
    config = OmegaConf.to_container(compose(word, list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def defaults_of(cls: Any) -> dict[str, Any]:
    return dataclasses.asdict(cls())


@pytest.mark.parametrize("word", cli.VERBS)
def test_the_config_of_a_verb_is_its_dataclass_key_by_key_with_its_defaults(word: str) -> None:
    wanted = defaults_of(cli.VERBS[word].config)
    config = composed(word)
    if "data" in wanted:  # the one default of conf/ that differs: the built-in table
        wanted["data"] |= {"builtin": "adult", "target": "income", "rows": 48842}
        wanted["data"] = {key: wanted["data"][key] for key in config["data"]}  # those of tables
    assert config == wanted
    assert list(config) == list(wanted) or "data" in wanted
    build(cli.VERBS[word].config, config)


@pytest.mark.parametrize(("group", "name"), [c for c in CHOICES if c[0] != "experiment"])
def test_a_config_of_a_group_names_every_key_of_its_dataclass_in_order(group: str, name: str) -> None:
    kind = next(field for field in dataclasses.fields(TrainConfig) if field.name == group).default_factory
    text = (CONF / group / f"{name}.yaml").read_text()
    values = yaml.safe_load(text)
    every = list(defaults_of(kind))
    assert list(values) == ([key for key in every if key in values] if group == "data" else every)
    assert text.startswith("# "), "a config opens with the reason to choose it"
    left = {key for key, value in values.items() if value == "???"}
    assert left == OPEN.get((group, name), set())
    build(kind, {key: value for key, value in values.items() if key not in left})


def test_every_key_of_data_is_a_knob_of_some_kind_of_data() -> None:
    named = {key for path in (CONF / "data").glob("*.yaml") for key in yaml.safe_load(path.read_text())}
    assert named == set(defaults_of(DataConfig))


@pytest.mark.parametrize("group", [g for g in GROUPS if (CONF / g / "default.yaml").exists()])
def test_the_default_of_a_group_holds_the_defaults_of_its_dataclass(group: str) -> None:
    kind = next(field for field in dataclasses.fields(TrainConfig) if field.name == group).default_factory
    assert yaml.safe_load((CONF / group / "default.yaml").read_text()) == defaults_of(kind)


def test_every_trainer_has_a_config_of_its_name_that_differs_in_nothing_else() -> None:
    from dpvae.config import TRAINERS, TrainerConfig

    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "trainer").glob("*.yaml")}
    assert set(files) == set(TRAINERS)
    assert all(values == defaults_of(TrainerConfig) | {"name": name} for name, values in files.items())


def test_every_verb_has_a_config_and_every_config_a_verb() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(cli.VERBS)


def test_plan_asks_about_exactly_what_train_would_run() -> None:
    assert composed("plan", "experiment=smoke") == composed("train", "experiment=smoke")


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_into_a_valid_configuration(group: str, name: str) -> None:
    path = [] if group == "experiment" or name != "file" else ["data.path=x.csv"]
    assert isinstance(build(TrainConfig, composed("train", f"{group}={name}", *path)), TrainConfig)


def test_a_key_that_is_in_no_dataclass_is_in_no_configuration() -> None:
    with pytest.raises(HydraException, match=r"privacy\.epsilom"):
        compose("train", ["privacy.epsilom=1"])


def test_hydra_makes_no_folder_and_leaves_logging_alone() -> None:
    config = compose("train", return_hydra_config=True).hydra
    assert (config.run.dir, config.output_subdir, config.job_logging.root) == (".", None, None)


def people(folder: Path) -> Path:
    """A small table of made-up people with the columns any trainer should take."""
    rng = np.random.default_rng(3)
    age = rng.integers(18, 80, ROWS)
    rows = ["age,city,hours,income"]
    for value, city, hours in zip(age, rng.choice(["north", "south"], ROWS), rng.normal(38, 6, ROWS), strict=True):
        rows.append(f"{value},{city},{hours:.1f},{'high' if value > 50 else 'low'}")
    table = folder / "people.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


TRAINED = [(group, name) for group, name in CHOICES if (group, name) not in {("experiment", "smoke")}]


@pytest.mark.parametrize(("group", "name"), TRAINED)
def test_every_choice_trains_two_steps(group: str, name: str, tmp_path: Path) -> None:
    from dpvae import api

    table = people(tmp_path)
    whose = [] if group in ("data", "experiment") else ["data=file", f"data.path={table}", f"data.rows={ROWS}"]
    if (group, name) == ("data", "file"):
        whose = [f"data.path={table}", "data.target=income"]
    small = [f"{key}={value}" for key, value in (
        ("trainer.fit_steps", 2), ("trainer.steps", 2), ("trainer.sampling_rate", 0.01), ("trainer.sleep_steps", 2),
        ("trainer.metric_releases", 1), ("trainer.latent_samples", 1), ("report.progress", "quiet"),
        ("run.root", tmp_path / "runs"), ("run.name", "two-steps"))]
    tiny = [] if group == "model" else ["model.latent_dim=4", "model.hidden=8", "model.components=16"]
    config = build(TrainConfig, composed("train", f"{group}={name}", *whose, *small, *tiny))
    api.train(config)
    assert (tmp_path / "runs" / "two-steps" / "public" / "events.jsonl").read_text().strip()


def test_the_smoke_experiment_trains_the_built_in_table(tmp_path: Path) -> None:
    from dpvae import api

    api.train(build(TrainConfig, composed("train", "experiment=smoke", f"run.root={tmp_path}", "run.name=smoke")))
    assert (tmp_path / "smoke" / "public" / "events.jsonl").read_text().strip()
