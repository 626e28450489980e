"""Where a score becomes an alarm, with a stated rate of false ones, learnt from private rows: charged, and booked.

The rows' scores are counted on a grid that the model's own rows gave (public), noise is added to the counts, and the
threshold is the grid point below which the wanted share of them lies. One record is in one cell: sensitivity 1.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dpvae.config import ScoreConfig
from dpvae.data import builtin, place
from dpvae.errors import ConfigError
from dpvae.privacy.accountant import calibrate
from dpvae.privacy.events import Event, Gaussian
from dpvae.privacy.ledger import Ledger, content_tag
from dpvae.privacy.mechanisms import noisy_counts
from dpvae.privacy.noise import SecretKey, SecretStream
from dpvae.privacy.plan import default_delta
from dpvae.report.source import read_run

PHASE, WHAT = "threshold", "noisy histogram of scores, for an alarm's threshold"
CELLS = 64


def grid(synthetic: np.ndarray) -> np.ndarray:
    """Rising edges, (CELLS - 1,), dense where alarms begin: from the scores of synthetic rows, so public."""
    shares = np.concatenate([np.geomspace(1e-4, 0.2, CELLS // 2), np.linspace(0.2, 0.98, CELLS)[1:]])
    return np.unique(np.quantile(synthetic, shares))


def events(epsilon: float, delta: float, neighbouring: str) -> tuple[Event, ...]:
    """The one access that costs ``epsilon``: to be booked before :func:`noisy_threshold` draws."""
    signal = calibrate(lambda s: (Gaussian(PHASE, WHAT, 1 / s),), epsilon=epsilon, delta=delta,
                       neighbouring=neighbouring)
    return (Gaussian(PHASE, WHAT, 1 / signal),)


def noisy_threshold(scores: np.ndarray, edges: np.ndarray, false_alarm: float, *, booked: Sequence[Event],
                    stream: SecretStream) -> float:
    """The edge below which a share ``false_alarm`` of the private ``scores`` lies, up to the noise."""
    (event,) = booked
    assert isinstance(event, Gaussian)
    counts = np.bincount(np.searchsorted(edges, scores, side="right"), minlength=len(edges) + 1)
    (noisy,), _ = noisy_counts([counts], noise_multiplier=event.noise_multiplier, stream=stream, phase=PHASE, what=WHAT)
    below = np.maximum.accumulate(np.cumsum(noisy)[:-1])  # counts below each edge; they cannot fall
    total = max(float(noisy.sum()), 1.0)
    return float(edges[max(int(np.searchsorted(below, false_alarm * total, side="right")) - 1, 0)])


def booked_threshold(config: ScoreConfig, run: Path, synthetic: np.ndarray, fingerprint: bytes,
                     private: Callable[[], np.ndarray]) -> tuple[float, str]:
    """The threshold for ``private()`` scores, on the grid of the model's own, and what was booked for it; the rows'
    ``fingerprint`` is that of training.

    The rows pay, and not those that the run was trained on: booked on the data set that they are known as, or whose
    name they have. :class:`ConfigError` where nobody said how much it may cost, or, of others than the run's, delta.
    """
    if config.epsilon is None:
        raise ConfigError("threshold=private: costs budget; say how much, such as epsilon=0.1")
    claim, where = read_run(run).claim, config.ledger_url or str(Path(config.root) / "ledger.db")
    ledger, content = Ledger.open(where), content_tag(where, fingerprint, config.root)
    name = config.ledger_dataset or ledger.known_as(content) or _dataset(str(config.table))
    if config.delta is None and name != claim.dataset:
        raise ConfigError(f"delta=null: these rows are booked as {name!r}, and the run was trained on "
                          f"{claim.dataset!r}; say delta, far below one in their number, such as delta=1e-6")
    delta = config.delta if config.delta is not None else default_delta(int(claim.n_ref))
    key, asked, scores = SecretKey.generate(), events(config.epsilon, delta, claim.neighbouring), private()
    booked = ledger.reserve(name, f"{run.name}-threshold-{uuid.uuid4().hex[:12]}", asked, delta=delta,
                            neighbouring=claim.neighbouring, noise=key.tag(b"noise"), content=content, unit=claim.unit)
    limit = noisy_threshold(scores, grid(synthetic), config.false_alarm, booked=booked.events,
                            stream=key.stream("threshold"))
    ledger.commit(booked)
    return limit, f"measured with noise; epsilon {config.epsilon:g} booked on {name}"


def _dataset(table: str) -> str:
    """The name that ``dpvae train`` books a table under."""
    return table if table in builtin.names() else place.dataset(table)
