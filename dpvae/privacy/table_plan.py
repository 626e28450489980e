"""How a budget is split over what is measured of a table: by public facts alone; evidence in docs/decisions.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from dpvae.config import TrainConfig, TrainerConfig
from dpvae.errors import ConfigError
from dpvae.privacy.plan import (
    ASSUMED_ROWS,
    WIDE,
    InteractionPlan,
    LatentPlan,
    Plan,
    PublicFacts,
    blank,
    noise_of,
    scaled,
)

SURVEY_WEIGHTS = {"rows": 0.03, "kinds": 0.05, "missing": 0.10, "values": 0.15, "rare": 0.75, "bounds": 0.24,
                  "bins": 0.35}
SEEN = {"kinds": 8.0, "missing": 4.0, "rare": 20.0, "bounds": 8.0, "bins": 6.0}  # how many noise sds all rows should
# make, for a step of the survey to see where they are
MOST_SURVEY = 0.60  # of the budget, for the survey of a table of few rows
CELLS, MOST_SINGLE = 16.0, 0.35  # the same for tables of one column; most of the anchors that each kind of them gets
FEW = 5  # columns below which tables of a pair and the target leave nothing out
INTERACTION_SHARE = 0.02  # of what the survey leaves, to find and measure interactions of many columns
FOUND = 3  # interactions that are measured
TRIPLES = 20  # columns up to which tables of three columns by the target are measured, over groups of codes
TRIPLES_SHARE = 0.15  # of the anchors at epsilon 1; twice as much where there is little noise
WHOLE = 0.5  # of what pairs get beside them, for tables that are not split by the target's values
MOST_GROUPS = 4  # of a column's codes in them
CELL = 2.0  # times its noise: what a cell of them should hold on average
LATENT_WEIGHTS = {"target": 0.25, "subspace": 0.48, "moments": 0.04, "codes": 0.16, "table": 0.07}


class TableRule:
    """Counts in tables of one, two and three columns for what is narrow, a latent code for what is wide; DP-SGD gets
    what they leave."""

    def draft(self, config: TrainConfig, facts: PublicFacts, delta: float) -> Plan:
        """See :func:`split` and :func:`capacity`."""
        wide = is_wide(config, facts)
        components, fit_steps = capacity(config)
        if wide:
            components = config.model.components or 4 * latent_size(config.privacy.epsilon, facts)[1]
        groups = 0 if wide else groups_of(config, facts)
        triples = TRIPLES_SHARE * finer(config.privacy.epsilon) if groups else 0.0
        return replace(blank(config, facts, delta), components=components, fit_steps=fit_steps, groups=groups,
                       shares=split(config.trainer, facts, config.privacy.epsilon, wide=wide, triples=triples))

    def at(self, draft: Plan, config: TrainConfig, signal: float) -> Plan:
        """Adds the releases that tables alone have."""
        return scaled(replace(draft, latent=_latent(draft, noise_of(draft, signal)),
                              interactions=_interactions(draft, signal)), config.trainer, signal)


def is_wide(config: TrainConfig, facts: PublicFacts) -> bool:
    """Whether a latent code takes the place of all pairs: many columns, and nobody asked for something else."""
    linear = config.model.layers in (None, 0)
    return (config.trainer.name == "anchored" and config.trainer.anchor_share is None and linear
            and facts.columns > WIDE)


def latent_size(epsilon: float, facts: PublicFacts) -> tuple[int, int]:
    """Directions and codes: as many as their noise leaves of use. A code needs hundreds of rows at epsilon 1."""
    strength = math.sqrt((facts.rows or ASSUMED_ROWS) * min(epsilon, 10.0))
    codes = 2 ** round(math.log2(min(max(strength / 4, 4.0), 256.0)))
    return min(max(round(strength / 14), 4), 32, facts.columns), codes


def capacity(config: TrainConfig) -> tuple[int, int]:
    """Points and fitting steps of the anchored decoder: the less noise there is, the more of it there is to hold.

    Measured on Adult (reports/bench): at epsilon 1 more of either changes nothing, at epsilon 10 the fit is the
    bottleneck. Costs time, never privacy.
    """
    if config.trainer.name == "density":
        return config.model.components or _density_points(config), 0
    if config.trainer.name != "anchored":
        return 0, 0
    more = finer(config.privacy.epsilon)
    return config.model.components or round(1000 * more), config.trainer.fit_steps or round(600 * more)


def finer(epsilon: float) -> float:
    """How much more there is to learn than at epsilon 1: up to twice as much.

    >>> [finer(epsilon) for epsilon in (0.1, 1.0, 4.0, 10.0)]
    [1.0, 1.0, 2.0, 2.0]
    """
    return min(max(math.sqrt(epsilon), 1.0), 2.0)


def _density_points(config: TrainConfig) -> int:
    """As many clusters as the noise lets one tell apart; 100 where there is none."""
    if not config.privacy.noise:
        return 100
    rows = config.data.rows or ASSUMED_ROWS
    return min(max(round(16 * math.sqrt(config.privacy.epsilon * rows / 5000)), 8), 128)


def groups_of(config: TrainConfig, facts: PublicFacts) -> int:
    """Into how many groups of codes a column is put in tables of three columns by the target: as many as leave the
    average cell well above its noise, for a target of two values; 0 where two would not, and none are measured."""
    if config.trainer.name != "anchored" or not facts.has_target or not FEW <= facts.columns <= TRIPLES:
        return 0
    share = TRIPLES_SHARE * finer(config.privacy.epsilon)
    noise = 4 / config.privacy.epsilon * math.sqrt(math.comb(facts.columns - 1, 3) / share)  # about
    groups = int(((facts.rows or ASSUMED_ROWS) / (2 * CELL * noise)) ** (1 / 3))
    return min(groups, MOST_GROUPS) if groups > 1 else 0


def split(trainer: TrainerConfig, facts: PublicFacts, epsilon: float, *, wide: bool = False, triples: float = 0.0
          ) -> dict[str, float]:
    """Shares of squared signal by release; they add up to one. ``triples``: that of tables of three
    columns among the anchors. The rule and its evidence: docs/decisions.md."""
    survey = survey_shares(trainer, facts, epsilon)
    metric = trainer.metric_share
    left = 1.0 - sum(survey.values()) - metric
    if left <= 0:
        raise ConfigError(f"trainer.survey_share={sum(survey.values()):g}, trainer.metric_share={metric:g}: expected a "
                          "sum below 1")
    anchor = trainer.anchor_share
    if anchor is None:
        anchor = {"anchored": 0.08 if wide else 0.90, "decoder_only": 0.05, "joint": 0.05,
                  "density": 1.0}[trainer.name]
    shares = {f"survey/{step}": share for step, share in survey.items()}
    parts = {"one-way": 1.0} if wide else _anchor_parts(trainer.name, facts, triples)
    if trainer.name == "anchored" and facts.rows is not None and not wide:
        parts = _seen(parts, facts, epsilon * math.sqrt(left * anchor))
    shares |= {f"anchor/{name}": left * anchor * part for name, part in parts.items()}
    rest = left * (1 - anchor)
    if trainer.name == "anchored" and facts.columns >= FEW and rest > 0:
        found = min(left * INTERACTION_SHARE, rest / 2)
        shares |= {"interactions/choice": found / 2, "interactions/tables": found / 2}
        rest -= found
    if wide:
        kept = {name: weight for name, weight in LATENT_WEIGHTS.items() if facts.has_target or name != "target"}
        shares |= {f"latent/{name}": rest * weight / sum(kept.values()) for name, weight in kept.items()}
        rest = 0.0
    shares["metric/elbo"] = metric
    shares["dpsgd"] = rest
    return {name: share for name, share in shares.items() if share > 0}


def survey_shares(trainer: TrainerConfig, facts: PublicFacts, epsilon: float) -> dict[str, float]:
    """Shares of squared signal by step of the survey. Where few rows are declared, each step gets as much as it takes
    to see them: a model of columns whose range nobody knows is worth nothing."""
    whole = trainer.survey_share
    if whole is None:
        few = set(facts.survey_steps) <= {"rows", "kinds", "bins"}
        whole = 0.05 if few else _survey_share(facts.rows)
        if trainer.name == "density":  # needs a column's scale, and has few rows to learn it from
            whole = 0.15
    weights = {step: SURVEY_WEIGHTS[step] for step in facts.survey_steps}
    usual = {step: whole * weight / sum(weights.values()) for step, weight in weights.items()}
    if trainer.survey_share is not None or facts.rows is None:
        return usual
    tables = {"rare": 1, "bounds": 2 * facts.columns, "bins": 3 * facts.columns}
    row = epsilon * facts.rows / 4  # noise sds that all rows make in a table by itself, for the whole budget; about
    wanted = {step: max(share, tables.get(step, facts.columns) * (SEEN.get(step, 0.0) / row) ** 2)
              for step, share in usual.items()}
    return {step: share * min(1.0, MOST_SURVEY / sum(wanted.values())) for step, share in wanted.items()}


def _survey_share(rows: int | None) -> float:
    """Of an undeclared table: the more rows, the less the tables' own noise matters and the more values can be shown.

    >>> [round(_survey_share(rows), 2) for rows in (1000, 40_000, 120_000, None)]
    [0.12, 0.14, 0.3, 0.16]
    """
    return min(max(0.14 * math.pow((rows or ASSUMED_ROWS) / 40_000, 0.7), 0.12), 0.30)


def _anchor_parts(trainer: str, facts: PublicFacts, triples: float) -> dict[str, float]:
    """One-way tables alone for the trainers that learn from gradients; pairs and a share of ``triples`` (by target
    value) for ``anchored``; moments and rounds of clustering for ``density``. Where triples hold what goes with the
    target, part of what pairs get leaves it out."""
    if trainer == "density":
        return {"one-way": 0.05, "second-moment": 0.29, **{f"cluster-{i + 1}": 0.22 for i in range(3)}}
    if trainer != "anchored" or facts.columns - facts.has_target < 2:
        return {"one-way": 1.0} if not facts.has_target else {"one-way": 0.5, "with-target": 0.5}
    if not facts.has_target:
        return {"one-way": 0.08, "pairs": 0.92}
    parts = {"one-way": 0.05, "with-target": 0.15, "pairs": 0.80}
    if not triples:
        return parts
    parts |= {"pairs": (1 - WHOLE) * parts["pairs"], "whole-pairs": WHOLE * parts["pairs"]}
    return {**{name: part * (1 - triples) for name, part in parts.items()}, "triples": triples}


def _seen(parts: dict[str, float], facts: PublicFacts, epsilon: float) -> dict[str, float]:
    """``parts`` with as much for tables of one column, and of one by the target, as lets few rows be seen in them; what
    epsilon the anchors have is about ``epsilon``."""
    row = epsilon * facts.rows / 4 if facts.rows else math.inf
    tables = {"one-way": facts.columns, "with-target": facts.columns - 1}
    wanted = {name: max(part, min(MOST_SINGLE, tables[name] * (CELLS / row) ** 2) if name in tables else 0.0)
              for name, part in parts.items()}
    single = sum(wanted[name] for name in wanted if name in tables)
    others = sum(part for name, part in parts.items() if name not in tables)
    return {name: part if name in tables else part * (1 - single) / others for name, part in wanted.items()
            } if others else parts


def _latent(draft: Plan, noise: Mapping[str, float]) -> LatentPlan | None:
    found = {name.removeprefix("latent/"): nm for name, nm in noise.items() if name.startswith("latent/")}
    if not found:
        return None
    directions, codes = latent_size(draft.target_epsilon, draft.facts)
    latent = LatentPlan(noise=found, directions=directions, codes=codes)
    return replace(latent, noise={name: nm * math.sqrt(latent.count(name)) for name, nm in found.items()})


def _interactions(draft: Plan, signal: float) -> InteractionPlan | None:
    """A pure epsilon is about as much as a squared signal of epsilon squared; the price corrects it."""
    if "interactions/choice" not in draft.shares:
        return None
    return InteractionPlan(epsilon=signal * math.sqrt(draft.shares["interactions/choice"] / FOUND), choices=FOUND,
                           noise=1 / (signal * math.sqrt(draft.shares["interactions/tables"])))
