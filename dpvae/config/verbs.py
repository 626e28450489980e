"""The knobs of every other verb: what is done with a run, a release or a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpvae import checks
from dpvae.config.limits import CURATORS, MAX_EPSILON, MAX_ROWS, OUTSIDE, PRICEABLE, SECTORS, at_most, check_engine
from dpvae.config.train import LedgerConfig, TrainConfig
from dpvae.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """What the OpenDP deployments registry asks about a release; with a curator, TO.registry.json is written."""

    curator: str | None = None  # who publishes the table
    kind: str = "Industry"
    use: str | None = None  # what the table is meant for
    region: str | None = None  # where its people live, or whose law applies
    sector: str | None = None

    def __post_init__(self) -> None:
        checks.one_of(CURATORS, **{"registry.kind": self.kind})
        if self.sector is not None:
            checks.one_of(SECTORS, **{"registry.sector": self.sector})
        for name in ("use", "region"):
            if self.curator is not None and not getattr(self, name):
                raise ConfigError(f"registry.{name}=null: expected a text, since the registry requires it; try "
                                  f"registry.{name}=...")


@dataclass(frozen=True, kw_only=True)
class ReleaseConfig:
    """``dpvae release``: which run, how many rows, to which folder."""

    run: str = "latest"
    rows: int | None = None  # None: the plan's public row count
    to: str = "release"  # a folder, a lake table (iceberg:, delta:) or a database (duckdb:, sqlite:, postgresql:)
    seed: int = 0  # public: decoding only
    root: str = "runs"
    engine: str = "local"
    workers: int | None = None  # that draw at once; never what is drawn. None: one for each processor
    with_model: bool = False  # also model/: the model in the Hugging Face layout, with its card
    unlike: str | None = None  # texts: a file of public text, a line each; what comes near one is drawn again
    registry: RegistryConfig = field(default_factory=RegistryConfig)

    def __post_init__(self) -> None:
        checks.whole(0, seed=self.seed)
        check_engine(self.engine, self.workers)
        if not self.to:
            raise ConfigError("to='': expected a new folder, such as to=release/first")
        if self.rows is not None:
            checks.whole(1, rows=self.rows)
            at_most(MAX_ROWS, rows=self.rows)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """``dpvae verify``: which folder, and how to print."""

    folder: str = "release"
    key: str | None = None  # a public key in PEM that it must be signed with; None: the one inside the release
    format: str = "text"

    def __post_init__(self) -> None:
        checks.one_of(("text", "json"), format=self.format)
        if not self.folder:
            raise ConfigError("folder='': expected the folder that dpvae release wrote")


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """``dpvae audit``: is the claim of a run true, or does the audit itself have power (``self_test``)?"""

    run: str = "latest"
    quick: bool = False  # in half a minute, and says what it leaves out
    self_test: bool = False  # break the program in every known way instead, and see that each is noticed
    root: str = "runs"


@dataclass(frozen=True, kw_only=True)
class LedgerVerbConfig:
    """``dpvae ledger show | check | cap DATASET | export FILE``: the book of spends, looked at and limited."""

    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    action: str = "show"
    file: str | None = None  # export: where to; check: an exported copy
    epsilon: float | None = None  # cap: the most that the data set may ever spend
    delta: float | None = None
    unit: str = "row"
    reason: str | None = None  # cap: why it is raised; part of the chain
    head: str | None = None  # check: a hash that must be in the book, such as a certificate's ledger_head
    format: str = "text"
    root: str = "runs"  # where the ledger is that no URL names

    def __post_init__(self) -> None:
        checks.one_of(("show", "check", "cap", "export"), action=self.action)
        checks.one_of(("text", "json"), format=self.format)
        if self.epsilon is not None:
            checks.positive(epsilon=self.epsilon)
        if self.delta is not None:
            checks.fraction(delta=self.delta)


@dataclass(frozen=True, kw_only=True)
class LakeConfig:
    """``dpvae lake init WAREHOUSE | copy TABLE to=TABLE | show TABLE``."""

    action: str = "show"
    table: str | None = None  # init: the warehouse's folder; copy: what is copied; show: whose releases and lineage
    to: str | None = None  # copy: where to
    catalog: str = "default"  # init: its name in pyiceberg's configuration
    demo: bool = True  # init: put the built-in table into it, as demo.census

    def __post_init__(self) -> None:
        checks.one_of(("init", "copy", "show"), action=self.action)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """``dpvae evaluate``: which real rows, which synthetic ones, and where the sealed result may go."""

    real: str = ""  # the table that was trained on; the part that took part is taken
    synth: str = ""  # a release folder, or one table
    test: str | None = None  # real rows that no training saw: for the floors, and for the classifiers
    target: str | None = None  # a column with two values to predict; None: marginals only
    bins: int = 20  # of a numeric column, at the quantiles of the real one
    public_bins: bool = False  # cut by the release's own schema instead
    seed: int = 0  # public: of the classifiers
    to: str | None = None  # a file for the sealed result; None: it is printed and kept nowhere
    format: str = "text"

    def __post_init__(self) -> None:
        checks.one_of(("text", "json"), format=self.format)
        checks.whole(2, bins=self.bins)
        checks.whole(0, seed=self.seed)
        for name in ("to", "test", "target"):
            if getattr(self, name) == "":
                raise ConfigError(f"{name}='': expected a name, or nothing at all")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """``dpvae score``: how strange each row of a table is, and which cells make it so."""

    run: str = "latest"  # several, separated by commas, are one ensemble
    table: str | None = None  # typed data=: a file or the name of a built-in table
    to: str | None = None  # None: scores.parquet in the run's private/ folder
    score: str = "iwae"
    contributions: int = 3  # cells named per row
    id: str | None = None  # a column of the table that is copied beside its row's number
    threshold: str | None = None  # synthetic: free | private: charged
    false_alarm: float = 0.01
    epsilon: float | None = None  # what threshold=private may spend
    delta: float | None = None  # of that; None: the rule of privacy/plan.py
    ledger_url: str | None = None  # where it is booked; None: sqlite in the runs folder
    ledger_dataset: str | None = None  # under which name; None: the one the rows are known by, or else the file's
    seed: int = 0
    root: str = "runs"
    engine: str = "local"
    workers: int | None = None  # that score at once; None: one for each processor

    def __post_init__(self) -> None:
        check_engine(self.engine, self.workers)
        checks.one_of(("iwae", "elbo", "reconstruction", "regret"), score=self.score)
        checks.fraction(false_alarm=self.false_alarm)
        checks.whole(0, contributions=self.contributions, seed=self.seed)
        if self.threshold is not None:
            checks.one_of(("synthetic", "private"), threshold=self.threshold)
        if self.epsilon is not None:
            checks.at_least(PRICEABLE[0], epsilon=self.epsilon)
            at_most(MAX_EPSILON, epsilon=self.epsilon)
        if self.delta is not None:
            checks.fraction(delta=self.delta)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """``dpvae sample``: synthetic rows of any number, under a condition, with another balance, as a test database."""

    run: str = "latest"
    rows: int | None = None  # None: 1000, or one for each partial row
    to: str = "rows.csv"
    format: str | None = None  # parquet | csv | sql; None: the file's ending
    given: str | None = None  # typed given.COLUMN=VALUE, or the file of a table of partial rows
    between: str | None = None  # texts: first|second; drawn along the line between their latents
    balance: str | None = None  # even, or JSON: shares of the values of the label
    label: str | None = None  # the column that is balanced; None: the schema's target
    id: str | None = None  # name of a column that numbers the rows
    seed: int = 0
    root: str = "runs"

    def __post_init__(self) -> None:
        checks.whole(0, seed=self.seed)
        if self.rows is not None:
            checks.whole(1, rows=self.rows)
        if self.format is not None:
            checks.one_of(("parquet", "csv", "sql"), format=self.format)
        if not self.to:
            raise ConfigError("to='': expected a file, such as to=rows.csv")


@dataclass(frozen=True, kw_only=True)
class ImputeConfig:
    """``dpvae impute``: missing cells drawn from what the model says of them."""

    run: str = "latest"
    table: str | None = None  # typed data=: a file with holes
    draws: int = 5
    to: str | None = None  # a new folder; None: imputed/ in the run's private/ folder
    outside: str = "error"
    seed: int = 0
    root: str = "runs"

    def __post_init__(self) -> None:
        checks.whole(1, draws=self.draws)
        checks.whole(0, seed=self.seed)
        checks.one_of(OUTSIDE, outside=self.outside)


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """``dpvae report``: a run's page, made anew from what the run released."""

    run: str = "latest"
    to: str | None = None  # a new folder for a copy to pass on; None: only the run's own public/ folder
    root: str = "runs"

    def __post_init__(self) -> None:
        if self.to == "":
            raise ConfigError("to='': expected a new folder, such as to=report/first, or nothing at all")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """``dpvae compare A B``: two runs, two releases, or one of each."""

    a: str = ""
    b: str = ""
    to: str | None = None  # an HTML page; None: it is only printed
    format: str = "text"
    root: str = "runs"

    def __post_init__(self) -> None:
        checks.one_of(("text", "json"), format=self.format)
        if self.to is not None and not self.to.endswith(".html"):
            raise ConfigError(f"to={self.to}: expected the name of a page, such as to=compare.html")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """``dpvae doctor``: what is installed, and what this machine can do."""

    root: str = "runs"  # where run folders and the ledger are, or would be
    ledger_url: str | None = None  # a ledger elsewhere
    format: str = "text"

    def __post_init__(self) -> None:
        checks.one_of(("text", "json"), format=self.format)


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """``dpvae init TABLE``: the draft of a schema, from the header and the types that the file declares."""

    table: str = ""
    to: str | None = None  # None: the table's name with .yaml
    target: str | None = None  # a column to be predicted
    rows: int | None = None  # a public number of rows, for the next command
    survey: bool = False  # refused, with the reason: what is measured is charged, and train does it

    def __post_init__(self) -> None:
        if self.rows is not None:
            checks.whole(2, rows=self.rows)


VerbConfig = (TrainConfig | ReleaseConfig | VerifyConfig | AuditConfig | LedgerVerbConfig | LakeConfig | EvaluateConfig
              | ScoreConfig | SampleConfig | ImputeConfig | PageConfig | CompareConfig | DoctorConfig | InitConfig)
