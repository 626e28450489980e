"""How a budget is split over what is measured of texts: by public facts alone. The evidence is in docs/decisions.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dpvae.config import TrainConfig
from dpvae.errors import ConfigError
from dpvae.privacy import plan as plans
from dpvae.privacy.plan import Plan, PublicFacts

SURVEY_WEIGHTS = {"rows": 0.01, "values": 0.04}
BYTE_WEIGHTS = {"length": 0.04, "unigram": 0.06, "bigram": 0.22, "trigram": 0.38, "fourgram": 0.30}
WORD_WEIGHTS = {"length": 0.04, "unigram": 0.66, "bigram": 0.30}
FIT_STEPS = 200
STEPS = 40  # of DP-SGD, where trainer.anchor_share leaves it something
RELEASES = 2  # of the noisy ELBO: after the fit, and after DP-SGD if there is any
NATS_PER_BYTE = 1.5  # a text's ELBO is clipped to that much for each byte of the cap, at most


@dataclass(frozen=True)
class TextRule:
    """Lengths by label, then sequences of one token, two, three, four, which take everything unless
    ``trainer.anchor_share`` leaves a part to DP-SGD; ``words``: texts have public words."""

    words: bool

    def draft(self, config: TrainConfig, facts: PublicFacts, delta: float) -> Plan:
        """The shares of squared signal."""
        trainer = config.trainer
        if trainer.name != "anchored":
            raise ConfigError(f"trainer={trainer.name}: expected trainer=anchored, the one that learns from texts")
        weights = {step: SURVEY_WEIGHTS[step] for step in facts.survey_steps}
        survey = trainer.survey_share if trainer.survey_share is not None else sum(weights.values())
        if weights and not survey:
            raise ConfigError("trainer.survey_share=0: the number of texts or their labels are not declared; declare "
                              "data.rows and data.labels, or leave trainer.survey_share to the plan")
        left = 1.0 - (survey if weights else 0.0) - trainer.metric_share
        if left <= 0:
            raise ConfigError(f"trainer.survey_share={survey:g}, trainer.metric_share={trainer.metric_share:g}: "
                              "expected a sum below 1")
        anchor = 1.0 if trainer.anchor_share is None else trainer.anchor_share
        if anchor < 1 and config.performance.compile:
            raise ConfigError("performance.compile=true: texts differ in length, and a compiled step has one shape; "
                              "expected performance.compile=false, or trainer.anchor_share=1")
        shares = {f"survey/{step}": survey * weight / sum(weights.values()) for step, weight in weights.items()}
        shares |= {f"anchor/{name}": left * anchor * weight for name, weight in self.weights.items()}
        shares |= {"metric/elbo": trainer.metric_share} | ({"dpsgd": left * (1 - anchor)} if anchor < 1 else {})
        return replace(plans.blank(config, facts, delta), shares=shares,
                       fit_steps=trainer.fit_steps if trainer.fit_steps is not None else FIT_STEPS)

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the anchors, in the order they are measured."""
        return WORD_WEIGHTS if self.words else BYTE_WEIGHTS

    def at(self, draft: Plan, config: TrainConfig, signal: float) -> Plan:
        """See :class:`dpvae.privacy.plan.Rule`."""
        trainer = config.trainer
        return plans.scaled(draft, replace(trainer, steps=trainer.steps or STEPS,
                                           latent_samples=trainer.latent_samples or 1,
                                           metric_releases=trainer.metric_releases or RELEASES), signal)
