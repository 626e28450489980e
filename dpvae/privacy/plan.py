"""The promise, resolved before the data is opened: public facts in, every noise scale out.

A user gives (epsilon, delta). The plan splits that budget over phases by *shares of squared signal*: a Gaussian
release with noise multiplier ``nm`` has signal mu = 1/nm (its Gaussian-DP parameter, Dong et al. 2019), and
squared signals add up under composition. A phase with share ``a`` of a total signal ``s`` gets mu = s sqrt(a); for
DP-SGD the central limit mu = q sqrt(T (exp(1/sigma^2) - 1)) (ibid., corollary 5.4) turns that into a sigma. The
split is only a rule; the claim is not: ``s`` is the largest signal whose complete list of events, priced by PLD,
costs at most epsilon.

Nothing here depends on a private row: not the number of steps, not a rate, not a divisor. Spends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from dpvae.config import TrainConfig, TrainerConfig
from dpvae.errors import AccountingError, ConfigError
from dpvae.privacy.accountant import Epsilon, calibrate, price
from dpvae.privacy.events import Event, Gaussian, PureDP, SampledGaussian, Threshold

ASSUMED_ROWS = 50_000  # scales the noisy ELBO's divisor and the DP-SGD batch where no public row count is known
THRESHOLD_SHARE = 0.05  # of delta, for the categories that a thresholded step of the survey may publish
ELBO_RANGE_PER_COLUMN = 6.0  # nats: a record's log-likelihood is clipped to [-6 D, 0]
SURVEY_WEIGHTS = {"rows": 0.03, "kinds": 0.05, "missing": 0.10, "values": 0.15, "rare": 0.75, "bounds": 0.12,
                  "bins": 0.35}
SURVEY_WHAT = {
    "rows": "noisy number of rows",
    "kinds": "noisy counts of cells that parse as a number, a date, a boolean",
    "missing": "noisy counts of missing cells",
    "values": "values held by many records (thresholded noisy counts)",
    "rare": "rarer values of the columns that have many (thresholded noisy counts)",
    "bounds": "noisy histogram of magnitudes, for bounds",
    "bins": "noisy fine histogram, for bin edges",
}
THRESHOLDED = ("values", "rare")  # the steps that may publish a value only because many records hold it
WIDE = 60  # columns from which the latent code takes the place of all pairs
FEW = 5  # columns below which tables of a pair and the target leave nothing out
INTERACTION_SHARE = 0.02  # of what the survey leaves, to find and measure interactions of many columns
FOUND = 3  # interactions that are measured
TRIPLES = 20  # columns up to which tables of three columns by the target are measured, over groups of codes
TRIPLES_SHARE = 0.15  # of the anchors at epsilon 1; twice as much where there is little noise
MOST_GROUPS = 4  # of a column's codes in them
CELL = 2.0  # times its noise: what a cell of them should hold on average
METRIC_RELEASES = 5  # of the noisy ELBO
LATENT_SAMPLES = 4  # of a record in a step of DP-SGD
SUBSPACE_ROUNDS = 5
CODE_ROUNDS = 5
LATENT_WEIGHTS = {"target": 0.25, "subspace": 0.48, "moments": 0.04, "codes": 0.16, "table": 0.07}
LATENT_WHAT = {
    "target": "noisy sums of contrasts by target value",
    "subspace": "noisy power method on the contrasts",
    "moments": "noisy second moments in the subspace",
    "codes": "noisy sums by latent code",
    "table": "noisy counts of latent code by target value",
}
CHOSEN_WHAT = "interactions of several columns, by the exponential mechanism"
TABLES_WHAT = "noisy tables of the chosen interactions"


@dataclass(frozen=True, kw_only=True)
class PublicFacts:
    """All a plan may look at. ``columns`` and ``steps`` follow from the header and the declared schema."""

    columns: int
    survey_steps: tuple[str, ...] = ()
    rows: int | None = None
    has_target: bool = False
    what: str = ""  # what a record is, where it is no row of a table: "10 classes of 28x28 grey images"
    elbo_range: float | None = None  # nats: a record's ELBO is clipped to [-elbo_range, 0]; None: 6 per column

    @property
    def size(self) -> str:
        """What a record is, in words."""
        return self.what or f"{self.columns} columns"


@dataclass(frozen=True, kw_only=True)
class SgdPlan:
    """DP-SGD, complete: what is drawn, clipped, noised and divided, and how often."""

    noise_multiplier: float
    sampling_rate: float
    steps: int
    clip_norm: float
    latent_samples: int


@dataclass(frozen=True, kw_only=True)
class LatentPlan:
    """The latent code of a wide table, complete. ``noise`` is by release; see :mod:`dpvae.train.latent`."""

    noise: Mapping[str, float]
    directions: int
    codes: int
    subspace_rounds: int = SUBSPACE_ROUNDS
    code_rounds: int = CODE_ROUNDS

    def count(self, name: str) -> int:
        """How often the release ``name`` is made."""
        return {"subspace": self.subspace_rounds, "codes": self.code_rounds}.get(name, 1)


@dataclass(frozen=True, kw_only=True)
class InteractionPlan:
    """Which interactions of several columns there are, and their tables; see :mod:`dpvae.train.interactions`."""

    epsilon: float  # of each choice
    choices: int
    noise: float  # of their tables together


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be spent, on what, with which noise. ``epsilon`` is the price of ``events``, not a wish."""

    target_epsilon: float
    delta: float
    neighbouring: str
    trainer: str
    facts: PublicFacts
    shares: Mapping[str, float]
    survey_noise: Mapping[str, float] = field(default_factory=dict)
    survey_delta: float = 0.0
    anchor_noise: Mapping[str, float] = field(default_factory=dict)
    metric_noise: float = 0.0
    metric_releases: int = 0
    latent: LatentPlan | None = None
    interactions: InteractionPlan | None = None
    sgd: SgdPlan | None = None
    components: int = 0  # points of the codebook; 0: a standard normal prior
    fit_steps: int = 0  # free: of the decoder on the anchors
    groups: int = 0  # most groups of a column's codes in tables of three columns
    epsilon: Epsilon | None = None

    @property
    def rows(self) -> int:
        """The public row count that scales divisors: declared, or assumed."""
        return self.facts.rows or ASSUMED_ROWS

    @property
    def elbo_range(self) -> float:
        """Nats; a record's ELBO is clipped to [-elbo_range, 0] before it is averaged."""
        return self.facts.elbo_range or ELBO_RANGE_PER_COLUMN * self.facts.columns

    def events(self) -> tuple[Event, ...]:
        """Every access to private data, in order."""
        return _events(self)

    def events_until(self, sgd_steps: int, metric_releases: int) -> tuple[Event, ...]:
        """The part of :meth:`events` that is drawn once that many DP-SGD steps and noisy ELBOs are done."""
        sgd = replace(self.sgd, steps=sgd_steps) if self.sgd is not None and sgd_steps else None
        return _events(replace(self, sgd=sgd, metric_releases=metric_releases))

    def expected_noise(self) -> dict[str, float]:
        """Noise (standard deviation) of one number of each kind of release; counts in rows, ELBO in nats per row."""
        columns, targets = self.facts.columns, self.facts.has_target
        features = columns - targets
        tables = {"one-way": columns, "with-target": features, "pairs": features * (features - 1) // 2,
                  "triples": math.comb(features, 3)}
        held = {"rows": 1, "bins": 3 * columns}  # bins: up to three tables of different width for a column
        noise = {f"survey/{step}": nm * math.sqrt(held.get(step, columns)) for step, nm in self.survey_noise.items()}
        noise |= {f"anchor/{name}": nm * math.sqrt(max(tables.get(name, 1), 1))
                  for name, nm in self.anchor_noise.items()}
        if self.latent is not None:
            noise |= {f"latent/{name}": nm for name, nm in self.latent.noise.items()}
        if self.interactions is not None:
            noise["interactions/choice"] = 2 / self.interactions.epsilon
            noise["interactions/tables"] = self.interactions.noise * math.sqrt(self.interactions.choices)
        noise["metric/elbo"] = self.metric_noise * self.elbo_range / 2 / self.rows
        if self.sgd is not None:
            batch = self.sgd.sampling_rate * self.rows
            noise["dpsgd/gradient"] = self.sgd.noise_multiplier * self.sgd.clip_norm / batch
        return noise

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(plan: Plan) -> list[str]:
    """The plan as ``dpvae plan`` prints it."""
    rows = f"{plan.rows:,}" if plan.facts.rows else "measured with noise"
    lines = [f"plan: {plan.epsilon}", f"  trainer {plan.trainer}, {plan.facts.size}, rows {rows}",
             f"  route {route(plan)}", "",
             f"  {'release':22}{'budget':>8}{'noise multiplier':>19}   one number's noise"]
    noise = plan.expected_noise()
    multipliers = {f"survey/{name}": nm for name, nm in plan.survey_noise.items()}
    multipliers |= {f"anchor/{name}": nm for name, nm in plan.anchor_noise.items()}
    multipliers["metric/elbo"] = plan.metric_noise
    if plan.latent is not None:
        multipliers |= {f"latent/{name}": nm for name, nm in plan.latent.noise.items()}
    if plan.interactions is not None:
        multipliers |= {"interactions/choice": noise["interactions/choice"],
                        "interactions/tables": plan.interactions.noise}
    for name, share in plan.shares.items():
        if name == "dpsgd":
            continue
        kind = name.split("/")[0]
        bounded = {"latent"} | ({"anchor"} if plan.facts.what else set())
        nats = "nats per record" if plan.facts.what else "nats per row"
        unit = "times a record's bound" if kind in bounded else {"metric": nats}.get(kind, "rows per cell")
        lines.append(f"  {name:22}{share:>8.1%}{multipliers[name]:>19.3f}   +-{noise[name]:.3g} {unit}")
    if plan.sgd is not None:
        sgd = plan.sgd
        lines.append(f"  {'dpsgd':22}{plan.shares['dpsgd']:>8.1%}{sgd.noise_multiplier:>19.3f}   "
                     f"+-{noise['dpsgd/gradient']:.3g} per coordinate of the mean gradient")
        lines.append(f"  {'':22}{sgd.steps} steps, sampling rate {sgd.sampling_rate:.4g}, clip norm {sgd.clip_norm:g}, "
                     f"{sgd.latent_samples} latent samples per record")
    lines += ["", "  Budget shares are of squared signal; the claim is the PLD price of all releases together.",
              "  Nothing was opened and nothing was spent."]
    return lines


def route(plan: Plan) -> str:
    """Which way a table goes and the public facts that decided it, in a line: nothing else was looked at."""
    facts = plan.facts
    inputs = f"{facts.size}, {plan.rows:,} rows, epsilon {plan.target_epsilon:g}"
    if plan.latent is not None:
        size = f"{plan.latent.codes} codes, {plan.latent.directions} directions"
        return f"latent code ({size}): {inputs}; over {WIDE} columns"
    if plan.trainer == "anchored" and not facts.what:
        triples = f", triples over {plan.groups} groups" if plan.groups else ""
        return f"all pairs{triples}: {inputs}; up to {WIDE} columns, or by trainer.anchor_share"
    return f"{plan.trainer}, as asked for: {inputs}"


def default_delta(rows: int | None) -> float:
    """1/rows^1.1, and never above 1e-5; 1e-6 where the number of rows is not public.

    >>> default_delta(None), default_delta(1000)
    (1e-06, 1e-05)
    """
    return 1e-6 if rows is None else min(1e-5, rows**-1.1)


class Rule(Protocol):
    """How the budget of one kind of data is split: from public facts alone, and in no other place."""

    def draft(self, config: TrainConfig, facts: PublicFacts, delta: float) -> Plan:
        """The plan without its noise: shares of squared signal by release, sizes, steps of free phases."""

    def at(self, draft: Plan, config: TrainConfig, signal: float) -> Plan:
        """``draft`` with every noise scale resolved for a total ``signal``."""


class TableRule:
    """The rule of tables."""

    def draft(self, config: TrainConfig, facts: PublicFacts, delta: float) -> Plan:
        """See :func:`split` and :func:`capacity`."""
        wide = is_wide(config, facts)
        components, fit_steps = capacity(config)
        if wide:
            components = config.model.components or 4 * latent_size(config.privacy.epsilon, facts)[1]
        groups = 0 if wide else groups_of(config, facts)
        triples = TRIPLES_SHARE * finer(config.privacy.epsilon) if groups else 0.0
        return replace(blank(config, facts, delta), components=components, fit_steps=fit_steps, groups=groups,
                       shares=split(config.trainer, facts, wide=wide, triples=triples))

    def at(self, draft: Plan, config: TrainConfig, signal: float) -> Plan:
        """Adds the releases that tables alone have."""
        return scaled(replace(draft, latent=_latent(draft, noise_of(draft, signal)),
                              interactions=_interactions(draft, signal)), config.trainer, signal)


TABLE = TableRule()


def blank(config: TrainConfig, facts: PublicFacts, delta: float) -> Plan:
    """A plan of which nothing is resolved but what was promised."""
    privacy = config.privacy
    return Plan(target_epsilon=privacy.epsilon, delta=delta, neighbouring=privacy.neighbouring,
                trainer=config.trainer.name, facts=facts, shares={})


def make_plan(config: TrainConfig, facts: PublicFacts, rule: Rule = TABLE) -> Plan:
    """Resolve ``config`` over public ``facts``; raises :class:`ConfigError` where no plan can exist.

    What it returns costs at most ``privacy.epsilon``: :class:`AccountingError` where the search for noise went wrong.
    """
    privacy = config.privacy
    delta = privacy.delta if privacy.delta is not None else default_delta(facts.rows)
    if facts.rows is not None:
        check_delta(delta, facts.rows)
    draft = rule.draft(config, facts, delta)

    def at(signal: float) -> Plan:
        return rule.at(draft, config, signal)

    signal = calibrate(lambda s: at(s).events(), epsilon=privacy.epsilon, delta=delta,
                       neighbouring=privacy.neighbouring)
    plan = at(signal)
    priced = price(plan.events(), delta=delta, neighbouring=privacy.neighbouring)
    if not priced.upper <= privacy.epsilon:
        raise AccountingError(f"privacy.epsilon={privacy.epsilon:g}: the plan costs {priced}; nothing was spent. "
                              "Please report these settings")
    return replace(plan, epsilon=priced)


def check_delta(delta: float, rows: float, note: str = "") -> None:
    """:class:`ConfigError` where ``delta`` would allow publishing one of ``rows``: declared, or counted with noise.

    ``note`` says what has been spent by then.
    """
    if delta * rows >= 1:
        raise ConfigError(
            f"privacy.delta={delta:g}: expected less than 1/rows = {1 / rows:.3g}; a larger delta would allow "
            f"publishing whole records{note}. Try privacy.delta={default_delta(round(rows)):.2g}"
        )


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


def split(trainer: TrainerConfig, facts: PublicFacts, *, wide: bool = False, triples: float = 0.0) -> dict[str, float]:
    """Shares of squared signal by release; they add up to one. ``triples``: that of tables of three
    columns among the anchors. The rule and its evidence: docs/decisions.md."""
    survey = trainer.survey_share
    if survey is None:
        few = set(facts.survey_steps) <= {"rows", "bins"}
        survey = 0.05 if few else _survey_share(facts.rows)
        if trainer.name == "density":  # needs a column's scale, and has few rows to learn it from
            survey = 0.15
    survey = survey if facts.survey_steps else 0.0
    metric = trainer.metric_share
    left = 1.0 - survey - metric
    if left <= 0:
        raise ConfigError(f"trainer.survey_share={survey:g}, trainer.metric_share={metric:g}: expected a sum below 1")
    anchor = trainer.anchor_share
    if anchor is None:
        anchor = {"anchored": 0.08 if wide else 0.90, "decoder_only": 0.05, "joint": 0.05,
                  "density": 1.0}[trainer.name]
    shares = {f"survey/{step}": survey * SURVEY_WEIGHTS[step] / sum(SURVEY_WEIGHTS[s] for s in facts.survey_steps)
              for step in facts.survey_steps}
    parts = {"one-way": 1.0} if wide else _anchor_parts(trainer.name, facts, triples)
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


def _survey_share(rows: int | None) -> float:
    """Of an undeclared table: the more rows, the less the tables' own noise matters and the more values can be shown.

    >>> [round(_survey_share(rows), 2) for rows in (1000, 40_000, 120_000, None)]
    [0.12, 0.14, 0.3, 0.16]
    """
    return min(max(0.14 * math.pow((rows or ASSUMED_ROWS) / 40_000, 0.7), 0.12), 0.30)


def _anchor_parts(trainer: str, facts: PublicFacts, triples: float) -> dict[str, float]:
    """One-way tables alone for the trainers that learn from gradients; pairs and a share of ``triples`` (by target
    value) for ``anchored``; moments and rounds of clustering for ``density``."""
    if trainer == "density":
        return {"one-way": 0.05, "second-moment": 0.29, **{f"cluster-{i + 1}": 0.22 for i in range(3)}}
    if trainer != "anchored" or facts.columns - facts.has_target < 2:
        return {"one-way": 1.0} if not facts.has_target else {"one-way": 0.5, "with-target": 0.5}
    if not facts.has_target:
        return {"one-way": 0.08, "pairs": 0.92}
    parts = {"one-way": 0.05, "with-target": 0.15, "pairs": 0.80}
    if not triples:
        return parts
    return {**{name: part * (1 - triples) for name, part in parts.items()}, "triples": triples}


def noise_of(draft: Plan, signal: float) -> dict[str, float]:
    """Noise multiplier by release; one that is made several times is given by what all of them cost together."""
    return {name: 1 / (signal * math.sqrt(share)) for name, share in draft.shares.items()}


def scaled(draft: Plan, trainer: TrainerConfig, signal: float) -> Plan:
    """``draft`` with the noise of survey, anchors, noisy ELBO and DP-SGD resolved for a total ``signal``."""
    noise = noise_of(draft, signal)
    survey = {name.removeprefix("survey/"): nm for name, nm in noise.items() if name.startswith("survey/")}
    sgd = _sgd(draft.facts, trainer, signal * math.sqrt(draft.shares["dpsgd"])) if "dpsgd" in noise else None
    moments = (sgd.steps if sgd else 0) + (trainer.name == "anchored")
    releases = min(trainer.metric_releases or METRIC_RELEASES, moments)
    return replace(
        draft, survey_noise=survey, survey_delta=THRESHOLD_SHARE * draft.delta if {*THRESHOLDED} & {*survey} else 0.0,
        anchor_noise={n.removeprefix("anchor/"): nm for n, nm in noise.items() if n.startswith("anchor/")},
        metric_noise=noise["metric/elbo"] * math.sqrt(releases), metric_releases=releases, sgd=sgd)


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


def _sgd(facts: PublicFacts, trainer: TrainerConfig, signal: float) -> SgdPlan:
    """Rate and steps by rule; sigma from the central limit of Gaussian DP, later corrected by the PLD price."""
    rows = facts.rows or ASSUMED_ROWS
    rate = trainer.sampling_rate or min(0.25, max(512, rows / 16) / rows)
    steps = trainer.steps or (100 if trainer.name == "anchored" else 400)
    sigma = 1 / math.sqrt(math.log1p((signal / rate) ** 2 / steps))
    return SgdPlan(noise_multiplier=sigma, sampling_rate=rate, steps=steps, clip_norm=trainer.clip_norm,
                   latent_samples=trainer.latent_samples or LATENT_SAMPLES)


def _events(plan: Plan) -> tuple[Event, ...]:
    events: list[Event] = []
    for step, nm in plan.survey_noise.items():
        what = SURVEY_WHAT[step]
        events.append(Threshold("survey", what, nm, plan.survey_delta) if step in THRESHOLDED
                      else Gaussian("survey", what, nm))
    events += [Gaussian("anchor", f"noisy {name} tables", nm) for name, nm in plan.anchor_noise.items()]
    if plan.latent is not None:
        events += [Gaussian("latent", LATENT_WHAT[name], nm, plan.latent.count(name))
                   for name, nm in plan.latent.noise.items()]
    if plan.interactions is not None:
        events += [PureDP("interactions", CHOSEN_WHAT, plan.interactions.epsilon, plan.interactions.choices),
                   Gaussian("interactions", TABLES_WHAT, plan.interactions.noise)]
    if plan.sgd is not None:
        events.append(SampledGaussian("dpsgd", "clipped gradients, Poisson sampling", plan.sgd.noise_multiplier,
                                      plan.sgd.sampling_rate, plan.sgd.steps))
    if plan.metric_releases:
        events.append(Gaussian("metric", "noisy ELBO", plan.metric_noise, plan.metric_releases))
    return tuple(events)
