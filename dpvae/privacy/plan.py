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
import textwrap
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
SEES = {"kinds": "kind", "bounds": "range"}  # steps of the survey, and what they tell of a column
FEW_ROWS = 6.0  # noise sds of such a step that all rows should make, for it to tell that
WIDE = 60  # columns from which the latent code takes the place of all pairs
METRIC_RELEASES = 5  # of the noisy ELBO
LATENT_SAMPLES = 4  # of a record in a step of DP-SGD
SUBSPACE_ROUNDS = 5
CODE_ROUNDS = 5
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
        pairs = math.comb(features, 2)
        tables = {"one-way": columns, "with-target": features, "pairs": pairs, "whole-pairs": pairs,
                  "triples": math.comb(features, 3)}
        held = {"rows": 1, "bounds": 2 * columns, "bins": 3 * columns}  # tables of different width for a column
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

    @property
    def warning(self) -> str:
        """What so much noise will hide of undeclared columns; nothing where it hides little or nobody can tell."""
        noise = self.expected_noise()
        blind = [what for step, what in SEES.items()
                 if (self.facts.rows or math.inf) < FEW_ROWS * noise.get(f"survey/{step}", 0.0)]
        return (f"Few rows for so much noise: the {' and the '.join(blind)} of many columns will be guessed. Declare "
                "what is public of them (kind, min and max, categories: dpvae init TABLE drafts a schema), or take a "
                "larger epsilon or fewer columns.") if blind else ""

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
    if plan.warning:
        lines += ["", *textwrap.wrap(plan.warning, 118, initial_indent="  ", subsequent_indent="  ")]
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


def blank(config: TrainConfig, facts: PublicFacts, delta: float) -> Plan:
    """A plan of which nothing is resolved but what was promised."""
    privacy = config.privacy
    return Plan(target_epsilon=privacy.epsilon, delta=delta, neighbouring=privacy.neighbouring,
                trainer=config.trainer.name, facts=facts, shares={})


def make_plan(config: TrainConfig, facts: PublicFacts, rule: Rule) -> Plan:
    """Resolve ``config`` over public ``facts`` by the ``rule`` of their kind of data; :class:`ConfigError` where
    no plan can exist.

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
    priced = price(plan.events(), delta=delta, neighbouring=privacy.neighbouring, unit=config.data.protects)
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
