"""The estimator keeps scikit-learn's contracts, and its density, its samples and its conditions agree."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

import dpvae
from dpvae import DPVAE
from dpvae.data.schema import Schema
from dpvae.errors import BudgetError, ConfigError, DataError, RunError, SchemaError
from dpvae.privacy.ledger import Ledger

TINY = {"trainer.fit_steps": 5, "trainer.steps": 2, "trainer.sleep_steps": 5, "model.components": 16,
        "model.latent_dim": 4, "model.hidden": 8, "performance.threads": 1}
SEEDED = TINY | {"privacy.secret_seed": 1}  # not private: for tests that noise must not make fail once in a while
ROWS = 300
PUBLIC = {"columns": {
    "age": {"kind": "integer", "min": 0, "max": 11, "edges": [0, 3, 4, 8, 11], "heaps": [5]},
    "sex": {"categories": ["Female", "Male"]},
    "job": {"categories": ["a", "b", "c"], "missing": True}}}


def small(rows: int = ROWS) -> pd.DataFrame:
    """Three discrete columns: few enough to be added up over all there is."""
    rng = np.random.default_rng(rows)
    return pd.DataFrame({"age": rng.integers(0, 12, rows), "sex": rng.choice(["Female", "Male"], rows),
                         "job": rng.choice(np.array(["a", "b", "c", None], dtype=object), rows)})


def everything() -> pd.DataFrame:
    """Every row that the schema PUBLIC allows, once."""
    rows = list(itertools.product(range(12), ["Female", "Male"], ["a", "b", "c", None]))
    return pd.DataFrame(rows, columns=["age", "sex", "job"])


def wide(rows: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(rows)
    return pd.DataFrame({
        "age": rng.integers(17, 90, rows), "pay": np.round(rng.gamma(2.0, 100.0, rows), 2),
        "joined": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 700, rows), unit="D"),
        "retired": rng.random(rows) < 0.3, "children": pd.array(rng.integers(0, 4, rows), dtype="Int64"),
        "team": pd.Series(rng.choice(["u", "v"], rows), dtype=object),
        "grade": pd.Categorical(rng.choice(["a", "b", "c"], rows)),
        "height": rng.normal(170, 10, rows).astype("float32")})


def stirred(model: DPVAE) -> DPVAE:
    """``model`` with a law of its own: the same every time, and one in which columns depend on each other."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model_.prior.parameters():
            parameter.normal_(0, 1, generator=generator)
        for parameter in model.model_.decoder.parameters():
            parameter.normal_(0, 2 if parameter.ndim > 1 else 0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def fitted() -> DPVAE:
    """Fitted on ``small``, prior a codebook; its decoder is stirred."""
    return stirred(DPVAE(rows=ROWS, options=TINY).fit(small(), schema=PUBLIC))


@pytest.fixture(scope="module")
def gaussian() -> DPVAE:
    """The same with the normal prior."""
    return stirred(DPVAE(rows=ROWS, trainer="joint", options=TINY).fit(small(), schema=PUBLIC))


@pytest.fixture(scope="module")
def mixed() -> DPVAE:
    return DPVAE(20.0, options=SEEDED).fit(wide())


# -- scikit-learn's own checks -----------------------------------------------------------------------------------------

WHY_DIFFERENT = ("two private fits on the same rows must differ: equal results would mean that the noise repeats, and "
                 "then the difference of fits on neighbouring tables would reveal a row")
SKIPPED_FOR_NOISE = {"check_pipeline_consistency", "check_transformer_data_not_an_array", "check_transformer_general"}
NEEDS_ARRAY_API = {"check_array_api_input"}  # runs only where SCIPY_ARRAY_API is set


def checked(model: DPVAE, expected: dict[str, str]) -> dict[str, set[str]]:
    results = check_estimator(model, expected_failed_checks=expected, on_fail=None, on_skip=None)
    broken = {r["check_name"]: repr(r["exception"]) for r in results if r["status"] == "failed"}
    assert broken == {}
    return {status: {r["check_name"] for r in results if r["status"] == status} for status in ("skipped", "xfail")}


def test_check_estimator_passes_on_a_private_model_but_for_the_check_that_forbids_fresh_noise() -> None:
    # epsilon=20: at 1, twenty rows drown in the noise, every column gets a single code and the checks would be empty
    found = checked(DPVAE(20.0, options=TINY), {"check_fit_idempotent": WHY_DIFFERENT})
    assert found == {"xfail": {"check_fit_idempotent"}, "skipped": SKIPPED_FOR_NOISE | NEEDS_ARRAY_API}


def test_check_estimator_passes_whole_once_the_noise_is_fixed() -> None:
    assert checked(DPVAE(20.0, options=SEEDED), {}) == {"xfail": set(), "skipped": NEEDS_ARRAY_API}


def test_only_a_fixed_secret_seed_makes_two_fits_equal() -> None:
    one, two = (DPVAE(options=SEEDED).fit(small()).model_.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (DPVAE(options=TINY).fit(small()).model_.state_dict() for _ in range(2))
    assert not all(torch.equal(one[name], two[name]) for name in set(one) & set(two))  # each may find links of its own


def test_parameters_are_kept_as_given_and_cloned() -> None:
    model = DPVAE(2.0, rows=50, target="sex", options={"trainer.fit_steps": 7})
    copied = clone(model).set_params(epsilon=3.0)
    assert copied.get_params() == model.get_params() | {"epsilon": 3.0}
    assert copied.options is not model.options
    assert model.epsilon == 2.0


def test_an_unfitted_model_says_so() -> None:
    for method, argument in (("sample", 3), ("score_samples", small()), ("transform", small()),
                             ("inverse_transform", np.zeros((1, 4)))):
        with pytest.raises(NotFittedError):
            getattr(DPVAE(), method)(argument)


def test_a_failed_fit_leaves_no_model_of_other_rows(fitted: DPVAE) -> None:
    model = copy.deepcopy(fitted)
    with pytest.raises(DataError, match=r"'12' in row 1"):
        model.fit(small().assign(age=12), schema=PUBLIC)
    with pytest.raises(NotFittedError):
        model.sample(1)


# -- the density -------------------------------------------------------------------------------------------------------


def test_the_density_of_a_codebook_sums_to_one_over_all_rows_there_are(fitted: DPVAE) -> None:
    assert np.exp(fitted.score_samples(everything())).sum() == pytest.approx(1.0, abs=1e-6)


def test_the_bound_of_a_normal_prior_sums_to_almost_one(gaussian: DPVAE) -> None:
    total = np.exp(gaussian.score_samples(everything())).sum()
    assert 0.5 < total < 1.1  # exp of a lower bound, up to its Monte-Carlo error


def test_the_density_of_a_continuous_column_integrates_to_one() -> None:
    schema = {"columns": {"x": {"kind": "continuous", "min": 0, "max": 10, "edges": [0, 0.5, 4, 10], "decimals": 9}}}
    rng = np.random.default_rng(0)
    model = DPVAE(rows=200, options=TINY).fit(pd.DataFrame({"x": rng.uniform(0, 10, 200)}), schema=schema)
    middles = (np.arange(2000) + 0.5) / 200
    assert np.exp(model.score_samples(pd.DataFrame({"x": middles}))).sum() / 200 == pytest.approx(1.0, abs=1e-6)


def test_a_row_scores_the_same_alone_and_in_company(fitted: DPVAE) -> None:
    rows = everything()
    together = fitted.score_samples(rows)
    assert fitted.score_samples(rows[5:6]) == pytest.approx(together[5:6], rel=1e-12)
    assert fitted.score(rows) == pytest.approx(together.mean())


def test_samples_follow_the_density(fitted: DPVAE) -> None:
    assert_same_law(fitted.sample(20_000), np.exp(fitted.score_samples(everything())))


def assert_same_law(rows: pd.DataFrame, probabilities: np.ndarray) -> None:
    """Each cell's count is within 5.5 standard deviations (seeds and laws are fixed: it holds, or it does not)."""
    counts = counted(rows)
    sd = np.sqrt(len(rows) * probabilities * (1 - probabilities)) + 1
    assert np.abs((counts - len(rows) * probabilities) / sd).max() < 5.5


def counted(rows: pd.DataFrame) -> np.ndarray:
    """How often each row of ``everything()`` comes up."""
    keys = everything().fillna("missing").apply(tuple, axis=1)
    found = rows.fillna("missing").apply(tuple, axis=1).value_counts()
    return keys.map(found).fillna(0).to_numpy()


# -- conditions --------------------------------------------------------------------------------------------------------

GIVEN = [{"sex": "Female"}, {"age": 7}, {"job": None, "sex": "Male"}, {"age": 5, "job": "b"}]


def conditional(model: DPVAE, given: dict[str, Any]) -> np.ndarray:
    """The exact conditional law, by enumeration."""
    rows = everything()
    kept = np.ones(len(rows), dtype=bool)
    for name, value in given.items():
        kept &= (rows[name].isna() if value is None else rows[name] == value).to_numpy()
    joint = np.exp(model.score_samples(rows)) * kept
    return joint / joint.sum()


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_a_condition_on_a_codebook_gives_the_exact_conditional_law(given: dict[str, Any], fitted: DPVAE) -> None:
    wanted = conditional(fitted, given)
    rows = fitted.sample(20_000, given=given)
    assert_same_law(rows, wanted)
    for name, value in given.items():
        assert (rows[name].isna() if value is None else rows[name] == value).all()


def test_overwriting_the_column_would_not_pass_for_a_condition(fitted: DPVAE) -> None:
    wanted = conditional(fitted, {"sex": "Female"})
    with pytest.raises(AssertionError):
        assert_same_law(fitted.sample(20_000).assign(sex="Female"), wanted)


def test_a_condition_on_a_normal_prior_gives_what_rejection_gives(gaussian: DPVAE) -> None:
    free = gaussian.sample(100_000)
    kept = free[(free["sex"] == "Male") & (free["job"] == "c")]
    asked = gaussian.sample(len(kept), given={"sex": "Male", "job": "c"})
    overwritten = free[:len(kept)].assign(sex="Male", job="c")
    one, two, three = counted(kept), counted(asked), counted(overwritten)
    # rows share proposals, which doubles the variance at most
    assert (np.abs(one - two) / np.sqrt(2 * (one + two) + 4)).max() < 4
    assert (np.abs(one - three) / np.sqrt(2 * (one + three) + 4)).max() > 8


def test_a_condition_that_hardly_any_latent_fits_is_refused(gaussian: DPVAE) -> None:
    model = copy.deepcopy(gaussian)
    with torch.no_grad():
        model.model_.decoder[-1].weight.mul_(1000)
    with pytest.raises(DataError, match="next to impossible"):
        model.sample(10, given={"age": 5, "job": None, "sex": "Male"})


@pytest.mark.parametrize(("given", "message"), [
    ({"sex": "Femal"}, "did you mean 'Female'"), ({"age": 12}, "expected integer in 0 .. 11"),
    ({"age": 2.5}, "as precise as the column"), ({"age": None}, "no missing cells"),
    ({"sx": "Female"}, "did you mean 'sex'"), ({"age": "old"}, "expected integer")])
def test_an_impossible_condition_is_named(given: dict[str, Any], message: str, fitted: DPVAE) -> None:
    with pytest.raises(ValueError, match=message):
        fitted.sample(3, given=given)


def test_dates_and_numbers_can_be_given(mixed: DPVAE) -> None:
    day = mixed.sample(1)["joined"].iloc[0]
    pay = float(mixed.schema_.column("pay").lower or 0)
    rows = mixed.sample(9, given={"joined": day, "pay": pay, "retired": np.bool_(True), "grade": "b"})
    assert (rows["joined"] == day).all()
    assert (rows["pay"] == pay).all()
    assert rows["retired"].all()
    assert (rows["grade"] == "b").all()


# -- rows come back as they came ---------------------------------------------------------------------------------------


def test_a_pandas_frame_comes_back_with_its_types_and_labels(mixed: DPVAE) -> None:
    rows = mixed.sample(40)
    assert list(rows.columns) == list(wide().columns)
    assert [str(dtype) for dtype in rows.dtypes] == [str(dtype) for dtype in wide().dtypes]
    numbered = DPVAE(20.0, options=SEEDED).fit(wide()[["age", "pay"]].set_axis([10, 20], axis=1))
    assert list(numbered.sample(2).columns) == [10, 20]


def test_an_arrow_table_comes_back_with_its_schema() -> None:
    table = pa.Table.from_pandas(wide(), preserve_index=False).replace_schema_metadata()
    model = DPVAE(20.0, options=TINY).fit(table)
    assert model.sample(5).schema.equals(table.schema)
    assert list(model.feature_names_in_) == table.column_names
    assert len(model.score_samples(table.slice(0, 1))) == 1


def test_a_polars_frame_comes_back_with_its_schema() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.from_arrow(pa.Table.from_pandas(wide().drop(columns="grade"), preserve_index=False))
    model = DPVAE(20.0, options=TINY).fit(frame)
    assert model.sample(5).schema == frame.schema
    assert len(model.score_samples(frame[:1])) == 1


ARRAYS = {
    "double": np.random.default_rng(0).normal(size=(ROWS, 3)),
    "single": np.random.default_rng(0).normal(size=(ROWS, 2)).astype(np.float32),
    "integer": np.random.default_rng(0).integers(0, 9, (ROWS, 2)),
    "text": np.array([["a", "x"], ["b", "y"]] * 100),
    "days": np.datetime64("2020-01-01") + np.random.default_rng(0).integers(0, 500, (ROWS, 2)),
    "mixed": np.array([["a", 1], ["b", 2], [None, 3]] * 100, dtype=object)}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_comes_back_as_an_array_of_its_type(kind: str) -> None:
    array = ARRAYS[kind]
    rows = DPVAE(20.0, options=SEEDED).fit(array).sample(70)
    assert (rows.shape, rows.dtype) == ((70, array.shape[1]), array.dtype)
    if kind in ("text", "mixed"):
        assert set(rows.ravel().tolist()) <= set(array.ravel().tolist())


def test_a_file_comes_back_as_an_arrow_table_and_is_scored_like_its_frame(tmp_path: Path) -> None:
    small().to_csv(tmp_path / "people.csv", index=False)
    model = DPVAE(rows=ROWS, runs=tmp_path / "runs", options=TINY).fit(tmp_path / "people.csv", schema=PUBLIC)
    assert isinstance(model.sample(4), pa.Table)
    assert model.sample(4).column_names == ["age", "sex", "job"]
    assert model.n_features_in_ == 3
    scores = model.score_samples(tmp_path / "people.csv")
    assert scores == pytest.approx(model.score_samples(small()))
    assert Ledger.open(tmp_path / "runs" / "ledger.db").events("people") == list(model.plan_.events())


def test_columns_of_another_order_are_refused(fitted: DPVAE, tmp_path: Path) -> None:
    other = small()[["sex", "age", "job"]]
    other.to_csv(tmp_path / "people.csv", index=False)
    for rows in (other, tmp_path / "people.csv", pa.Table.from_pandas(other)):
        with pytest.raises(ValueError, match=r"same order|in their order"):
            fitted.score_samples(rows)


def test_the_seed_of_a_sample_is_public_and_makes_it_repeatable(fitted: DPVAE) -> None:
    assert fitted.sample(30).equals(fitted.sample(30))
    assert fitted.sample(30).equals(fitted.sample(30, seed=fitted.seed))
    assert not fitted.sample(30).equals(fitted.sample(30, seed=1))


# -- latents -----------------------------------------------------------------------------------------------------------


def test_latents_come_back_as_the_most_likely_row(fitted: DPVAE) -> None:
    latents = fitted.transform(small())
    assert latents.shape == (ROWS, 4)
    assert list(fitted.get_feature_names_out()) == [f"dpvae{i}" for i in range(4)]
    rows = fitted.inverse_transform(latents)
    assert list(rows.columns) == ["age", "sex", "job"]
    assert rows.equals(fitted.inverse_transform(latents))
    logits = fitted.model_.decode(torch.as_tensor(latents, dtype=torch.float32))
    assert (rows["sex"] == np.array(["Female", "Male"])[logits[:, 5:7].argmax(1).numpy()]).all()
    assert set(rows["age"]) <= {1, 2, 3, 5, 6, 7, 9, 10}  # the heap, or a bin's middle
    with pytest.raises(DataError, match=r"expected \(rows, 4\)"):
        fitted.inverse_transform(np.zeros((2, 5)))


# -- what it spends, what it keeps -------------------------------------------------------------------------------------


def test_a_fit_costs_the_epsilon_it_says(fitted: DPVAE) -> None:
    assert fitted.epsilon_.upper <= 1.0
    assert fitted.epsilon_ == fitted.plan_.epsilon == fitted.run_.epsilon
    assert fitted.epsilon_.delta == fitted.plan_.delta < 1 / ROWS


def test_fits_on_one_ledger_add_up_until_its_cap(tmp_path: Path) -> None:
    url = tmp_path / "ledger.db"
    model = DPVAE(ledger=url, dataset="people", options=TINY | {"ledger.cap_epsilon": 1.2, "ledger.cap_delta": 1e-5})
    model.fit(small())
    with pytest.raises(BudgetError, match="dataset 'people'"):
        clone(model).fit(small())
    assert Ledger.open(url).events("people") == list(model.plan_.events())


def test_a_named_run_is_found_again_and_not_spent_twice(tmp_path: Path) -> None:
    model = DPVAE(runs=tmp_path, run_name="one", rows=ROWS, options=TINY)
    first = model.fit(small(), schema=PUBLIC).sample(20)
    head = Ledger.open(tmp_path / "ledger.db").head()
    assert clone(model).fit(small(), schema=PUBLIC).sample(20).equals(first)
    assert Ledger.open(tmp_path / "ledger.db").head() == head


def test_a_named_run_of_other_columns_is_not_taken_for_this_one(tmp_path: Path) -> None:
    model = DPVAE(runs=tmp_path, run_name="one", options=TINY).fit(small())
    with pytest.raises(RunError, match="schema changed since"):
        clone(model).fit(small().rename(columns={"age": "years"}))


def test_a_fitted_model_can_be_released_even_from_a_pickle_whose_original_is_gone(tmp_path: Path) -> None:
    model = DPVAE(rows=ROWS, options=TINY).fit(small(), schema=PUBLIC)
    twin, thawed = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    folder, scores = model.run_.path, model.score_samples(small())
    assert dpvae.verify(dpvae.release(tmp_path / "own", model)).ok
    del model
    gc.collect()
    assert not folder.exists()  # a temporary run lives as long as its estimator
    for name, copied in (("twin", twin), ("thawed", thawed)):
        assert (copied.score_samples(small()) == scores).all()
        verdict = dpvae.verify(dpvae.release(tmp_path / name, copied, rows=10))
        assert verdict.ok, verdict


def test_a_model_with_a_run_folder_of_its_own_is_pickled_by_its_path(tmp_path: Path) -> None:
    model = DPVAE(runs=tmp_path / "runs", options=TINY).fit(small())
    assert pickle.loads(pickle.dumps(model)).run_.path == model.run_.path
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 1


def test_a_category_held_by_one_person_reaches_neither_rows_nor_pickle() -> None:
    frame = small().assign(job=pd.Categorical(["only-me-71"] + ["a", "b", "c"] * (ROWS // 3 - 1) + ["a", "a"]))
    model = DPVAE(options=TINY).fit(frame)
    assert "only-me-71" not in list(model.sample(500)["job"].cat.categories)
    assert b"only-me-71" not in pickle.dumps(model)


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changed", "message"), [
    ({"options": {"trainer.fit_step": 5}}, "did you mean 'fit_steps'"),
    ({"options": {"privacy.epsilon": 3.0}}, "give epsilon=3.0"),
    ({"options": {"data.path": "x.csv"}}, "argument of fit"),
    ({"options": {"fit_steps": 5}}, "expected group.knob"),
    ({"options": ["trainer.fit_steps=5"]}, "expected a mapping"),
    ({"epsilon": -1.0}, "privacy.epsilon=-1.0"), ({"epsilon": float("nan")}, "privacy.epsilon=nan"),
    ({"rows": 0}, "data.rows=0"), ({"trainer": "anchord"}, "did you mean 'anchored'"),
    ({"target": "incom"}, "no such column"), ({"delta": 0.5, "rows": 100}, "less than 1/rows")])
def test_a_wrong_parameter_is_named_at_fit_and_nothing_is_written(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = DPVAE(**{"runs": tmp_path / "runs", "options": TINY, **changed})
    with pytest.raises(ValueError, match=message):
        model.fit(small())
    assert not (tmp_path / "runs").exists()


def test_numbers_of_a_parameter_search_are_understood() -> None:
    model = DPVAE(np.float64(1.0), rows=np.int64(ROWS), seed=np.int64(3),
                  options=TINY | {"trainer.fit_steps": np.int64(4)}).fit(small())
    assert model.plan_.facts.rows == ROWS
    assert len(model.sample(np.int64(3))) == 3


def test_a_schema_may_be_a_file_a_mapping_or_a_schema(tmp_path: Path, fitted: DPVAE) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text("columns:\n  age: {kind: integer, min: 0, max: 11, edges: [0, 3, 4, 8, 11], heaps: [5]}\n"
                    "  sex: {categories: [Female, Male]}\n  job: {categories: [a, b, c], missing: true}\n")
    for schema in (path, str(path), Schema.from_yaml(path), fitted.schema_):
        model = DPVAE(rows=ROWS, options=TINY).fit(small(), schema=schema)
        assert model.schema_.columns[0].edges == (-0.5, 2.5, 3.5, 7.5, 11.5)
        assert [c.labels for c in model.schema_.columns] == [c.labels for c in fitted.schema_.columns]
        assert model.plan_ == fitted.plan_  # nothing is left to survey


def test_a_measured_schema_can_be_used_again_without_paying_for_it(mixed: DPVAE) -> None:
    model = DPVAE(20.0, rows=ROWS, options=TINY | {"data.outside": "clip"}).fit(wide(), schema=mixed.schema_)
    assert set(model.plan_.facts.survey_steps) <= {"bins"}  # a column without bins has them looked for again
    for name in ("age", "pay", "joined", "grade"):
        one, two = model.schema_.column(name), mixed.schema_.column(name)
        assert (one.edges, one.heaps, one.categories) == (two.edges, two.heaps, two.categories)


def test_a_wrong_schema_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for schema in ({"columns": {"age": {"kind": "number"}}}, {"age": {}}, 3):
        with pytest.raises(SchemaError):
            DPVAE(runs=tmp_path / "runs", options=TINY).fit(small(), schema=schema)
    assert not (tmp_path / "runs").exists()


def test_infinity_is_refused_and_missing_cells_are_not(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(ROWS, 2))
    array[:100, 0] = np.nan
    model = DPVAE(20.0, options=SEEDED).fit(array)
    assert np.isnan(model.sample(500)[:, 0]).any()
    array[0, 1] = np.inf
    for rows in (array, pd.DataFrame(array, columns=["a", "b"])):
        with pytest.raises(ValueError, match="inf"):
            DPVAE(runs=tmp_path / "runs", options=TINY).fit(rows)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match=r"seed=-1"):
        model.sample(3, seed=-1)


# -- one model, many uses ----------------------------------------------------------------------------------------------


def test_a_range_or_alternatives_give_the_exact_conditional_law(fitted: DPVAE) -> None:
    rows = everything()
    law = np.exp(fitted.score_samples(rows)) * (rows["age"].between(2, 6) & rows["job"].isin(["a", "c"]))
    drawn = fitted.sample(20_000, given={"age": (2, 6), "job": ["a", "c"]})
    assert_same_law(drawn, (law / law.sum()).to_numpy())
    found = fitted.evidence({"age": (2, 6), "job": ["a", "c"]})
    assert found.probability == pytest.approx(float(law.sum()), rel=1e-6)
    assert 1 <= found.effective <= found.points == 16


def test_a_condition_that_contradicts_the_model_is_refused(fitted: DPVAE) -> None:
    model = copy.deepcopy(fitted)
    places = model.model_.likelihood.starts
    with torch.no_grad():  # every point holds (Female, a) or (Male, b), and nothing else
        model.model_.decoder[-1].weight.zero_()
        model.model_.decoder[-1].weight[places[1]] = model.model_.decoder[-1].weight[places[2]] = 0
        points = model.model_.prior.points
        points.zero_()
        points[::2, 0] = 1
        for j, code, sign in ((1, 0, 40), (1, 1, -40), (2, 0, 40), (2, 1, -40)):
            model.model_.decoder[-1].weight[places[j] + code, 0] = sign
            model.model_.decoder[-1].bias[places[j] + code] = -sign / 2
    with pytest.raises(DataError, match="next to impossible together"):
        model.sample(5, given={"sex": "Female", "job": "b"})


def test_imputed_cells_follow_the_law_given_what_was_seen(fitted: DPVAE) -> None:
    holed = pd.DataFrame({"age": [7] * 20_000, "sex": [None] * 20_000, "job": ["b"] * 20_000}, dtype=object)
    holed["age"] = holed["age"].astype("int64")
    (full,) = fitted.impute(holed, draws=1)
    law = conditional(fitted, {"age": 7, "job": "b"})
    assert_same_law(full, law)
    assert list(full.dtypes) == list(holed.dtypes)


def test_draws_of_an_imputation_differ_and_keep_what_was_seen(gaussian: DPVAE) -> None:
    holed = small().astype(object).mask(np.random.default_rng(0).random((ROWS, 3)) < 0.3)
    holed["age"] = pd.array(holed["age"].tolist(), dtype="Int64")
    one, two = gaussian.impute(holed, draws=2)
    seen = holed.notna()
    assert (one[seen] == holed[seen]).where(seen, True).all().all()
    assert not one.equals(two)
    assert not one["age"].isna().any()
    assert not one["sex"].isna().any()
    assert str(one["age"].dtype) == "Int64"


def test_a_balance_is_drawn_as_asked() -> None:
    model = DPVAE(20.0, target="sex", options=SEEDED).fit(small())
    rows = model.sample(4000, balance={"Female": 0.9, "Male": 0.1})
    assert (rows["sex"] == "Female").mean() == pytest.approx(0.9, abs=0.02)
    with pytest.raises(DataError, match="balance="):
        model.sample(5, balance={"Female": -1})


def test_explanations_and_thresholds_are_there_for_every_form(fitted: DPVAE) -> None:
    assert fitted.explain(small()).shape == (ROWS, 3)
    assert (fitted.score_samples(fitted.sample(4000, seed=8)) < fitted.threshold(0.05)).mean() <= 0.07
