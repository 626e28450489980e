"""What values a knob may take, where several knobs or their users ask."""

from __future__ import annotations

from dpvae import checks
from dpvae.errors import ConfigError

RECORDS = {"table": "row", "images": "image", "text": "text"}  # what one record of each kind of data is called
DATA_KINDS = tuple(RECORDS)
TOKENS = ("auto", "bytes", "words")
OVERLONG = ("cut", "refuse")
OUTSIDE = ("error", "clip", "missing")
TRAINERS = ("anchored", "decoder_only", "joint", "density")
NEIGHBOURS = ("add_remove", "replace_one")
PROGRESS = ("auto", "rich", "plain", "quiet", "json")
TRACKERS = ("tensorboard", "mlflow")
CURATORS = ("Government", "Industry", "Nonprofit")  # these two as the registry spells them
SECTORS = ("Technology", "Healthcare", "Education", "Government", "Energy", "Finance")
ENGINES = ("local", "ray", "spark")
MAX_EPSILON = 20.0
PRICEABLE = (1e-3, 100.0)  # epsilons that the accountants resolve to half a percent
MAX_ROWS = 10**10  # a delta below 1/rows must stay above the accountants' resolution
LONGEST_TEXT = 4096  # bytes: a model of short texts
LONGEST_NAME = 120  # of a run folder


def at_most(maximum: float, **values: float) -> None:
    """Raises :class:`ConfigError` for the first of ``values`` above ``maximum``."""
    for name, value in values.items():
        if value > maximum:
            raise ConfigError(f"{name}={value:g}: expected at most {maximum:,g}")


def check_engine(engine: str, workers: int | None) -> None:
    """An engine that there is, and a number of workers that it can have."""
    checks.one_of(ENGINES, engine=engine)
    if workers is not None:
        checks.whole(1, workers=workers)
        at_most(10_000, workers=workers)


def check_name(name: str) -> None:
    """A run's name is a folder's name, a line of the ledger, and a word of the command line."""
    if not name.strip() or name == "latest" or "/" in name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"run.name={name!r}: expected a plain folder name, such as run.name=first")
    if len(name.encode()) > LONGEST_NAME:
        raise ConfigError(f"run.name={name[:20] + '...'!r}: expected at most {LONGEST_NAME} bytes, got "
                          f"{len(name.encode())}; choose a shorter one")
