"""The whole audit: correct programs pass, broken ones are caught, and what failed is not signed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpvae import api
from dpvae.audit.battery import CATALOGUE, CLIPPINGS, Program, all_stages, gather, self_test, specimen
from dpvae.audit.mutants.base import TRAINED, Mutant
from dpvae.audit.run import AuditReport
from dpvae.config import DATA_KINDS, TRAINERS, AuditConfig, ReportConfig, RunConfig
from dpvae.errors import ReleaseError, RunError
from dpvae.modalities import modality
from dpvae.release.certificate import Certificate

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
BY_NAME = {mutant.name: mutant for mutant in CATALOGUE}
QUICK = ("same values shuffled", "five per cent over", "encoder sees raw rows", "books every second step",
         "quiet choices", "quiet when it is late", "an old sum comes back", "a rounded count is printed",
         "progress shows the private loss", "a file is left elsewhere", "books a larger noise",
         "noise in all directions but one", "source cut at four sd", "rate two per cent too high",
         "large tables get a fixed size", "spoiled records are counted", "rows saved by torch", "a warning tells",
         "a cache beside the run", "rows mixed into the release", "a key of a thousand", "names are cut",
         "crowded cells are quieter", "codes are ranks", "everything at half price", "resume takes any rows",
         "types follow the cells")


CLEAN = [(name, clipping) for name in TRAINERS for clipping in CLIPPINGS]


@pytest.mark.parametrize("kind", DATA_KINDS)
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_every_kind_of_data_has_a_specimen_of_every_way_to_clip(clipping: str, kind: str) -> None:
    config, _ = specimen("anchored", clipping, kind=kind)
    assert (config.performance.clipping, config.data.kind) == (clipping, kind)


@pytest.mark.parametrize(("name", "clipping"), [CLEAN[0], *(pytest.param(*each, marks=pytest.mark.slow)
                                                            for each in CLEAN[1:])])
def test_a_correct_program_passes(name: str, clipping: str) -> None:
    config, table = specimen(name, clipping)
    program = Program(api.train, config, table, modality("table").troublemakers(table), quick=True)
    battery = gather(all_stages(program))
    steps = {"T1", "T2", "T3", "T4", "T7"}
    if name == "density":
        assert f"{', '.join(sorted(steps))}: this plan has no DP-SGD" in battery.left_out
        steps = set()
    assert battery.failed == ()
    assert set(battery.tests) == {*steps, "A1", "T5", "T6", "P1", "M1", "M2"}


def test_the_catalogue_names_at_least_forty_broken_programs_once_each() -> None:
    assert len(BY_NAME) == len(CATALOGUE) >= 40


@pytest.mark.parametrize("name", QUICK)
def test_a_broken_program_is_caught(name: str) -> None:
    caught = self_test(api.train, trainers=["anchored"], clippings=["fast"], mutants=[BY_NAME[name]], kinds=["table"])
    assert [c.by != () for c in caught] == [True], caught


def test_a_broken_ghost_norm_is_caught() -> None:
    mutant = BY_NAME["ghost mode underestimates the norm"]
    caught = self_test(api.train, trainers=["anchored"], clippings=["ghost"], mutants=[mutant], kinds=["table"])
    assert [c.by != () for c in caught] == [True], caught


@pytest.mark.parametrize(("kind", "name"), [
    ("images", "five per cent over"), ("images", "products not cut"), ("posed", "frames are exact means"),
    ("posed", "redrawn in the mean pose"), ("text", "texts not scaled"), ("text", "fast mode forgets a layer"),
    pytest.param("posed", "leaning is looked at", marks=pytest.mark.slow),
    pytest.param("text", "quiet sums", marks=pytest.mark.slow)])
def test_a_broken_program_of_images_or_texts_is_caught(kind: str, name: str) -> None:
    caught = self_test(api.train, clippings=["fast"], mutants=[BY_NAME[name]], kinds=[kind])
    assert [c.by != () for c in caught] == [True], caught


@pytest.mark.parametrize("kind", [pytest.param("images", marks=pytest.mark.slow), "posed", "text"])
def test_a_correct_program_of_images_or_texts_passes(kind: str) -> None:
    config, records = specimen("anchored", kind=kind)
    people = modality(config.data.kind).troublemakers(records)
    battery = gather(all_stages(Program(api.train, config, records, people, quick=True)))
    assert [str(finding) for finding in battery.failed] == []
    alike = [text for text in battery.left_out if "of 160 planted records" in text]
    assert len(alike) == (kind == "text")  # a few words make few gradients, and the page says how many


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "text"])
def test_every_broken_program_of_images_or_texts_is_caught(kind: str) -> None:
    assert [str(each) for each in self_test(api.train, kinds=[kind]) if not each.by] == []


@pytest.mark.slow
@pytest.mark.parametrize("mutant", CATALOGUE, ids=lambda mutant: mutant.name)
@pytest.mark.parametrize("name", TRAINED)
def test_every_broken_program_is_caught_with_every_trainer(mutant: Mutant, name: str) -> None:
    caught = self_test(api.train, trainers=[name], mutants=[mutant], kinds=["table"])
    assert [str(c) for c in caught if not c.by] == []


def test_a_mutant_leaves_the_program_as_it_was() -> None:
    from dpvae.train.clipping.optimizer import SecretOptimizer

    before = SecretOptimizer.add_noise
    self_test(api.train, trainers=["anchored"], clippings=["fast"], mutants=[BY_NAME["no noise"]], kinds=["table"])
    assert SecretOptimizer.add_noise is before


# -- a run, its audit, its release -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config, table = specimen("anchored")
    root = tmp_path_factory.mktemp("runs")
    return api.train(replace(config, run=RunConfig(root=str(root), name="first"), report=ReportConfig(
        progress="quiet")), table)


@pytest.fixture(scope="module")
def audited(trained: Any) -> AuditReport:
    return api.audit(AuditConfig(run=str(trained.path), quick=True))


def test_a_quick_audit_of_a_run_passes_says_what_it_left_out_and_writes_a_page(audited: AuditReport) -> None:
    assert audited.passed, str(audited)
    assert "left out" in str(audited)
    page = audited.path.read_text()
    assert "<script" not in page
    assert "Nothing contradicts the claim" in page
    written = json.loads(audited.path.with_suffix(".json").read_text())
    assert (written["format"], written["passed"]) == ("dpvae-audit/1", True)
    assert all(each["epsilon"] <= each["claim"] for each in written["bounds"])


def test_the_certificate_holds_the_audit(trained: Any, audited: AuditReport, tmp_path: Path) -> None:
    from dpvae.audit.verify import verify

    folder = api.release(tmp_path / "release", trained, rows=20)
    audit = Certificate.from_bytes((folder / "certificate.json").read_bytes()).evidence.audit
    assert audit != "none"
    assert audit.quick
    assert {test.test for test in audit.tests} >= {"A1", "T1", "T2", "T3", "T4", "T5", "T6", "T7", "P1", "M1", "M2"}
    assert verify(folder).ok


def test_a_run_made_with_half_of_its_noise_is_refused_a_signature(tmp_path: Path) -> None:
    config, table = specimen("anchored")
    with BY_NAME["noise halved"].living(api):
        run = api.train(replace(config, run=RunConfig(root=str(tmp_path), name="weak")), table)
        report = api.audit(AuditConfig(run=str(run.path), quick=True))
    assert not report.passed
    assert "T2" in report.battery.caught_by
    with pytest.raises(ReleaseError, match="the audit of this run failed"):
        api.release(tmp_path / "release", run, rows=20)
    assert not (tmp_path / "release").exists()


def test_a_plan_that_was_not_booked_fails_and_what_twins_do_not_do_is_said(trained: Any) -> None:
    from dpvae.audit.run import accounting, config_of, unlike_the_run
    from dpvae.report.source import read_run

    source = read_run(trained.path)
    assert all(finding.p > 0 for finding in accounting(trained.path, source)[0])
    plan = json.loads(source.plan_bytes)
    plan["sgd"]["noise_multiplier"] *= 2 / 3
    found, _ = accounting(trained.path, replace(source, plan_bytes=json.dumps(plan).encode()))
    assert [finding.law for finding in found if not finding.p > 0] == ["DP-SGD was booked as it was planned"]
    config = config_of(source)
    assert unlike_the_run(config) == []
    half = replace(config, performance=replace(config.performance, precision="bfloat16"))
    assert unlike_the_run(half) == ["performance.precision=bfloat16: twins run uncompiled, in single precision, in one "
                                    "process"]


def test_an_audit_of_another_model_is_refused(trained: Any, audited: AuditReport, tmp_path: Path) -> None:
    path = audited.path.with_suffix(".json")
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "model_sha256": "0" * 64}))
    with pytest.raises(ReleaseError, match="another model"):
        api.release(tmp_path / "release", trained, rows=20)
    path.write_text(before)


def test_a_run_that_is_not_there_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run"):
        api.audit(AuditConfig(root=str(tmp_path)))
