"""How a budget is split over what is measured of images: by public facts alone.

    labels          how many images each class has (undeclared classes: above a threshold, survey/values)
    pose, lean      where the images of a class lie, how large they are, how they lean; and how differently images of
                    one class do; not of the smallest images
    mean-image      the sum of each class's images, in low frequencies
    second-moment   of what is left of an image without its class's mean: the directions in which images vary
    cluster-i       rounds of clustering inside each class, in those directions
    spread          second moments inside the clusters of a class
    shape           second moments inside a cluster, in units of the spread of its class; only with much signal
    stretch         how often what a cluster leaves of an image is so much longer or shorter than those moments say
    dpsgd           a small convolutional decoder learns what no moment holds: edges, black backgrounds

Measured on MNIST and Fashion-MNIST (reports/bench/images.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dpvae.config import TrainConfig
from dpvae.errors import ConfigError
from dpvae.privacy import plan as plans
from dpvae.privacy.plan import Plan, PublicFacts

ROUNDS = 3
SMALLEST_POSED = 16  # pixels a side: smaller images lose by being redrawn
POSE_SHARES = {"pose": 0.0135, "lean": 0.0015}  # of the moments: five numbers a class, and one for all
LABEL_SHARE = 0.01  # of the budget, for the counts of the classes
WEIGHTS = {"second-moment": 0.42, **{f"cluster-{i + 1}": 0.38 / ROUNDS for i in range(ROUNDS)}, "spread": 0.19,
           "stretch": 0.01}
SHAPED = {"second-moment": 0.36, **{f"cluster-{i + 1}": 0.34 / ROUNDS for i in range(ROUNDS)}, "spread": 0.12,
          "shape": 0.17, "stretch": 0.01}
MANY = 3.0  # of what the split was measured with: from there on clusters are large enough to have shapes of their own
MOMENTS = 0.70  # of the budget, of trainer=anchored; the rest is DP-SGD's
USUAL = 60_000  # rows at epsilon 1, for which the shares were measured
FEWEST = 0.04  # of these: with fewer rows DP-SGD is noise, and the moments take all
BATCH, STEPS = 512, 120
RELEASES = 2  # of the noisy ELBO, which looks at every image: before DP-SGD, and after it
LARGEST_RATE = 0.25
NATS_PER_PIXEL = 6.0  # an image's ELBO is clipped to that much for each pixel and channel; uniform bytes take 5.55


@dataclass(frozen=True)
class ImageRule:
    """See the module; ``trainer=joint`` has nothing but DP-SGD. ``side``: pixels along the shorter side."""

    side: int

    def draft(self, config: TrainConfig, facts: PublicFacts, delta: float) -> Plan:
        """The shares of squared signal."""
        trainer = config.trainer
        if trainer.name not in ("anchored", "joint"):
            raise ConfigError(f"trainer={trainer.name}: expected trainer=anchored or trainer=joint, those that learn "
                              "from images")
        if config.model.layers is not None:
            raise ConfigError(f"model.layers={config.model.layers}: the decoder of images is three convolutions over "
                              "noisy moments; leave it out, and give it width with model.hidden")
        labels = LABEL_SHARE if trainer.survey_share is None else trainer.survey_share
        left = 1.0 - labels - trainer.metric_share
        if not labels or left <= 0:
            raise ConfigError(f"trainer.survey_share={labels:g}, trainer.metric_share={trainer.metric_share:g}: "
                              "expected a share for the counts of the classes, and a sum below 1")
        anchor = trainer.anchor_share
        if anchor is None:
            few = strength(facts.rows, config.privacy.epsilon) < FEWEST
            anchor = (1.0 if few else MOMENTS) if trainer.name == "anchored" else 0.0
        elif trainer.name == "joint":
            raise ConfigError("trainer.anchor_share: trainer=joint measures nothing but the classes; leave it out")
        shares = {"survey/values" if facts.survey_steps else "anchor/labels": labels}
        if anchor:
            much = strength(facts.rows, config.privacy.epsilon)
            mean = min(max(0.13 * much**-0.35, 0.13), 0.5)
            moments = left * anchor
            if self.side >= SMALLEST_POSED:
                shares |= {f"anchor/{name}": moments * share for name, share in POSE_SHARES.items()}
                moments *= 1 - sum(POSE_SHARES.values())
            shares["anchor/mean-image"] = moments * mean
            shares |= {f"anchor/{name}": moments * (1 - mean) * weight
                       for name, weight in (SHAPED if much >= MANY else WEIGHTS).items()}
        shares |= {"metric/elbo": trainer.metric_share}
        if anchor < 1:
            shares["dpsgd"] = left * (1 - anchor)
        return replace(plans.blank(config, facts, delta), shares=shares)

    def at(self, draft: Plan, config: TrainConfig, signal: float) -> Plan:
        """See :class:`dpvae.privacy.plan.Rule`: a batch of :data:`BATCH` images, or a quarter of a small set."""
        trainer, rows = config.trainer, draft.rows
        rate = trainer.sampling_rate or min(LARGEST_RATE, BATCH / rows)
        settled = replace(trainer, sampling_rate=rate, steps=trainer.steps or STEPS,
                          latent_samples=trainer.latent_samples or 1,
                          metric_releases=trainer.metric_releases or RELEASES)
        return plans.scaled(draft, settled, signal)


def strength(rows: int | None, epsilon: float) -> float:
    """Rows times epsilon, as a share of what the split was measured with.

    >>> strength(60_000, 1.0), strength(6_000, 10.0)
    (1.0, 1.0)
    """
    return (rows or plans.ASSUMED_ROWS) * epsilon / USUAL


def frequencies(side: int, rows: float, epsilon: float) -> int:
    """Cosine frequencies along a side that are worth their noise: all of them with much signal, fewer with little.

    >>> [frequencies(28, rows, epsilon) for rows, epsilon in ((60_000, 1.0), (60_000, 10.0), (7_000, 1.0))]
    [20, 28, 15]
    """
    share: float = 0.7 * (rows * epsilon / USUAL) ** 0.15
    return min(max(math.ceil(share * side), 8), side)
