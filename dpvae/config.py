"""Every knob, as frozen dataclasses that check themselves.

Two kinds are kept apart so that a reviewer sees at once which one a change touches: :class:`PrivacyConfig`
changes the guarantee, :class:`PerformanceConfig` only speed and memory. Hydra composes YAML into a mapping;
:func:`build` turns it into these objects once, and nothing below the command line knows Hydra exists.

>>> build(PrivacyConfig, {"epsilon": 1.0}).epsilon
1.0
>>> build(PrivacyConfig, {"epsilom": 1.0})
Traceback (most recent call last):
    ...
dpvae.errors.ConfigError: privacy.epsilom: no such key; did you mean 'epsilon'?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dpvae import checks, typed
from dpvae.errors import ConfigError

T = TypeVar("T")

DATA_KINDS = ("table", "images", "text")
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


def _at_most(maximum: float, **values: float) -> None:
    for name, value in values.items():
        if value > maximum:
            raise ConfigError(f"{name}={value:g}: expected at most {maximum:,g}")


def _check_engine(engine: str, workers: int | None) -> None:
    checks.one_of(ENGINES, engine=engine)
    if workers is not None:
        checks.whole(1, workers=workers)
        _at_most(10_000, workers=workers)


def _check_name(name: str) -> None:
    """A run's name is a folder's name, a line of the ledger, and a word of the command line."""
    if not name.strip() or name == "latest" or "/" in name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"run.name={name!r}: expected a plain folder name, such as run.name=first")
    if len(name.encode()) > LONGEST_NAME:
        raise ConfigError(f"run.name={name[:20] + '...'!r}: expected at most {LONGEST_NAME} bytes, got "
                          f"{len(name.encode())}; choose a shorter one")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and what is publicly known about it."""

    kind: str = "table"  # of record: a module of dpvae/modalities
    path: str | None = None  # a CSV or Parquet file; None: rows are handed over in Python
    builtin: str | None = None  # name of a table that ships inside the package
    columns: str | None = None  # of the table, such as age,city: no other is read; None: all
    where: str | None = None  # rows that take part, such as "age >= 18": public, and on the certificate; None: all
    target: str | None = None  # a column to be predicted from the others; its tables weigh more
    rows: int | None = None  # public row count; None: measured with noise and charged
    schema: str | None = None  # YAML of public columns, bounds, categories; None: surveyed and charged
    outside: str = "error"  # a value outside its *declared* domain: error | clip | missing
    text: str | None = None  # texts: their column; None: the one called text, or the only one
    label: str | None = None  # the column that says what an image shows (None: label) or what a text is about
    labels: str | None = None  # its public values, a|b|c; None: measured above a threshold and charged
    unit: str | None = None  # a column that names a person: the guarantee is then a person's
    per_unit: int = 8  # texts of one person that take part
    cap: int | None = None  # bytes of the longest text; None: 256 (16 for the built-in names)
    overlong: str = "cut"  # a text above the cap: cut | refuse
    tokens: str = "auto"  # bytes | words of a public list; auto: words where the cap leaves room for some
    public: str | None = None  # a file of public text, a line each: what is known of the language beforehand

    def __post_init__(self) -> None:
        checks.one_of(DATA_KINDS, **{"data.kind": self.kind})
        if self.kind == "images" and self.path:
            object.__setattr__(self, "builtin", None)  # conf/data/images.yaml names one for want of a path
        checks.one_of(OUTSIDE, **{"data.outside": self.outside})
        checks.one_of(TOKENS, **{"data.tokens": self.tokens})
        checks.one_of(OVERLONG, **{"data.overlong": self.overlong})
        checks.whole(1, **{"data.per_unit": self.per_unit})
        if self.cap is not None:
            checks.whole(1, **{"data.cap": self.cap})
            _at_most(LONGEST_TEXT, **{"data.cap": self.cap})
        if self.kind == "text" and self.path:
            object.__setattr__(self, "builtin", None)  # conf/data/text.yaml names one for want of a path
        if self.rows is not None:
            checks.whole(2, **{"data.rows": self.rows})
            _at_most(MAX_ROWS, **{"data.rows": self.rows})
        if self.kind != "table" and (self.columns is not None or self.where is not None):
            raise ConfigError(f"data.{'where' if self.columns is None else 'columns'}: expected data.kind=table; "
                              f"{self.kind} are read whole")
        if self.path and self.builtin:
            raise ConfigError(f"data.path={self.path!r} and data.builtin={self.builtin!r}: expected one of the two")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the VAE; public, and no part of the guarantee."""

    latent_dim: int | None = None  # None: 64 with a codebook (trainer=anchored), 16 otherwise
    hidden: int = 128  # width of a hidden layer, in encoder and decoder
    layers: int | None = None  # hidden layers of the decoder; None: 0 with a codebook, 1 otherwise
    components: int | None = None  # points of the codebook prior (trainer=anchored); None: the plan's public rule

    def __post_init__(self) -> None:
        checks.whole(1, **{"model.hidden": self.hidden})
        for name in ("latent_dim", "components"):
            if getattr(self, name) is not None:
                checks.whole(1, **{f"model.{name}": getattr(self, name)})
        if self.layers is not None:
            checks.whole(0, **{"model.layers": self.layers})


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How the budget is split and how the decoder learns; ``None`` leaves a choice to the plan's public rule."""

    name: str = "anchored"
    anchor_share: float | None = None  # of what the survey leaves (in squared signal, see privacy/plan.py)
    survey_share: float | None = None
    metric_share: float = 0.01  # for the noisy ELBO
    metric_releases: int | None = None  # of the noisy ELBO; None: the plan's public rule
    fit_steps: int | None = None  # free: post-processing of the anchors
    sampling_rate: float | None = None  # DP-SGD: chance that a record is in a batch
    steps: int | None = None
    clip_norm: float = 1.0
    latent_samples: int | None = None  # averaged inside a record before the clip; None: the plan's public rule
    learning_rate: float = 1e-2
    sleep_steps: int = 400  # free: the encoder learns from the decoder's own rows

    def __post_init__(self) -> None:
        checks.one_of(TRAINERS, **{"trainer": self.name})
        if self.anchor_share is not None:
            checks.share(**{"trainer.anchor_share": self.anchor_share})
            if not self.anchor_share:
                raise ConfigError("trainer.anchor_share=0: expected more than 0, since every decoder starts from noisy "
                                  "one-way tables; try trainer.anchor_share=0.05")
        if self.survey_share is not None:
            checks.share(**{"trainer.survey_share": self.survey_share})
        if self.sampling_rate is not None:
            checks.fraction(**{"trainer.sampling_rate": self.sampling_rate})
        for name in ("steps", "fit_steps", "latent_samples", "metric_releases"):
            if getattr(self, name) is not None:
                checks.whole(1, **{f"trainer.{name}": getattr(self, name)})
        checks.fraction(**{"trainer.metric_share": self.metric_share})
        checks.positive(**{"trainer.clip_norm": self.clip_norm, "trainer.learning_rate": self.learning_rate})
        _at_most(1e3, **{"trainer.clip_norm": self.clip_norm})
        _at_most(1.0, **{"trainer.learning_rate": self.learning_rate})
        checks.whole(1, **{"trainer.sleep_steps": self.sleep_steps})


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """The guarantee: everything that may spend, and nothing else."""

    epsilon: float = 1.0
    delta: float | None = None  # None: see privacy/plan.py, default_delta
    neighbouring: str = "add_remove"
    max_epsilon: float = MAX_EPSILON  # a larger epsilon is refused as a mistake
    secret_seed: int | None = None  # fixes the secret randomness: the run is stamped NOT PRIVATE
    noise: bool = True  # False (privacy=off): the run is stamped NOT PRIVATE, books nothing and cannot be released

    def __post_init__(self) -> None:
        checks.positive(**{"privacy.epsilon": self.epsilon, "privacy.max_epsilon": self.max_epsilon})
        checks.one_of(NEIGHBOURS, **{"privacy.neighbouring": self.neighbouring})
        checks.at_least(PRICEABLE[0], **{"privacy.epsilon": self.epsilon})
        _at_most(PRICEABLE[1], **{"privacy.max_epsilon": self.max_epsilon})
        if self.epsilon > self.max_epsilon:
            raise ConfigError(
                f"privacy.epsilon={self.epsilon:g}: expected at most privacy.max_epsilon={self.max_epsilon:g}; "
                "a larger epsilon protects nobody. Raise privacy.max_epsilon if you mean it"
            )
        if self.delta is not None:
            checks.fraction(**{"privacy.delta": self.delta})
        if self.secret_seed is not None:
            checks.whole(0, **{"privacy.secret_seed": self.secret_seed})


@dataclass(frozen=True, kw_only=True)
class PerformanceConfig:
    """Speed and memory; never the guarantee, never the mathematics."""

    device: str = "auto"
    clipping: str = "auto"  # fast: book-keeping; ghost, hooks: Opacus'; auto: fast
    compile: bool = False  # the static part of a DP-SGD step as one compiled program (clipping=fast or auto)
    precision: str = "float32"  # of forward and backward pass; norms, sums and weights stay single
    microbatch: int | None = None  # records per forward pass inside one DP-SGD step; None: what memory holds
    threads: int | None = None
    sharding: str = "none"  # fsdp: processes under torchrun divide gradients and optimiser state among them
    stored: str = "auto"  # rows on disk, not in memory: auto (above 4 GB or a third of what is free), always, never
    keep_stored: bool = False  # leave them there when the run is done

    def __post_init__(self) -> None:
        checks.one_of(("auto", "always", "never"), **{"performance.stored": self.stored})
        checks.one_of(("auto", "cpu", "cuda"), **{"performance.device": self.device})
        checks.one_of(("auto", "fast", "ghost", "hooks"), **{"performance.clipping": self.clipping})
        checks.one_of(("float32", "bfloat16"), **{"performance.precision": self.precision})
        checks.one_of(("none", "fsdp"), **{"performance.sharding": self.sharding})
        if self.sharding == "fsdp" and (self.compile or self.clipping not in ("auto", "ghost")):
            raise ConfigError("performance.sharding=fsdp: shards Opacus' ghost clipping, not compiled; expected "
                              "performance.clipping=ghost performance.compile=false")
        if self.compile and self.clipping in ("hooks", "ghost"):
            raise ConfigError(f"performance.compile=true: Opacus' {self.clipping} mode cannot be compiled; "
                              "expected performance.clipping=fast")
        if self.microbatch is not None:
            checks.whole(1, **{"performance.microbatch": self.microbatch})
        if self.threads is not None:
            checks.whole(1, **{"performance.threads": self.threads})


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Where spends are booked, and under which name the data set is known there."""

    url: str | None = None  # None: sqlite in the runs folder
    dataset: str | None = None  # None: the file's or the built-in's name
    cap_epsilon: float | None = None  # sets the data set's cap when it has none yet
    cap_delta: float | None = None

    def __post_init__(self) -> None:
        if self.dataset is not None and (not self.dataset.strip() or not self.dataset.isprintable()):
            raise ConfigError(f"ledger.dataset={self.dataset!r}: expected one line of text")
        if self.cap_epsilon is not None:
            checks.positive(**{"ledger.cap_epsilon": self.cap_epsilon})
        if self.cap_delta is not None:
            checks.fraction(**{"ledger.cap_delta": self.cap_delta})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives, and its public seed."""

    name: str | None = None
    root: str = "runs"
    seed: int = 0  # initialisation, fitting and decoding only; never noise or masks

    def __post_init__(self) -> None:
        checks.whole(0, **{"run.seed": self.seed})
        if self.name is not None:
            _check_name(self.name)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What is shown while a verb runs, and who else hears of the released numbers."""

    progress: str = "auto"  # auto: rich on a terminal, plain lines elsewhere
    tracker: str | None = None  # tensorboard | mlflow: released numbers, when the run has ended
    place: str | None = None  # of the tracker: a folder, or MLflow's URI; None: beside the runs

    def __post_init__(self) -> None:
        checks.one_of(PROGRESS, **{"report.progress": self.progress})
        if self.tracker is not None:
            checks.one_of(TRACKERS, **{"report.tracker": self.tracker})
        elif self.place is not None:
            raise ConfigError(f"report.place={self.place}: expected a tracker that writes there; say "
                              "report=tensorboard or report=mlflow")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """``dpvae train -m``: every job is released and paid for, or only the best of a secret number of them."""

    private: bool = False  # release the best job alone, priced as a private selection (dpvae/selection.py)
    runs: float | None = None  # mean of the secret number of runs; None: as many as there are settings
    shape: float = 0.0  # of its law: 0 the logarithmic (the cheapest), 1 the geometric
    public: str | None = None  # plan --sweep: a public table to try budgets on, in the place of made-up rows

    def __post_init__(self) -> None:
        if self.runs is not None:
            checks.at_least(1, **{"sweep.runs": self.runs})
            _at_most(1e4, **{"sweep.runs": self.runs})
        checks.at_least(0, **{"sweep.shape": self.shape})
        _at_most(10.0, **{"sweep.shape": self.shape})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """``dpvae train`` and ``dpvae plan``."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


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
        _check_engine(self.engine, self.workers)
        if not self.to:
            raise ConfigError("to='': expected a new folder, such as to=release/first")
        if self.rows is not None:
            checks.whole(1, rows=self.rows)
            _at_most(MAX_ROWS, rows=self.rows)


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
    seed: int = 0
    root: str = "runs"
    engine: str = "local"
    workers: int | None = None  # that score at once; None: one for each processor

    def __post_init__(self) -> None:
        _check_engine(self.engine, self.workers)
        checks.one_of(("iwae", "elbo", "reconstruction", "regret"), score=self.score)
        checks.fraction(false_alarm=self.false_alarm)
        checks.whole(0, contributions=self.contributions, seed=self.seed)
        if self.threshold is not None:
            checks.one_of(("synthetic", "private"), threshold=self.threshold)
        if self.epsilon is not None:
            checks.at_least(PRICEABLE[0], epsilon=self.epsilon)
            _at_most(MAX_EPSILON, epsilon=self.epsilon)
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


def build(cls: type[T], mapping: Mapping[str, Any], *, where: str | None = None) -> T:
    """A frozen ``cls`` from nested mappings; unknown keys and wrong types raise :class:`ConfigError`."""
    if where is None:
        where = cls.__name__.removesuffix("Config").lower() if cls not in _TOP else ""
    return typed.build(cls, mapping, where)


_TOP: tuple[type, ...] = (TrainConfig, ReleaseConfig, VerifyConfig, AuditConfig, LedgerVerbConfig, EvaluateConfig,
                          ScoreConfig, SampleConfig, ImputeConfig, PageConfig, CompareConfig, DoctorConfig, InitConfig,
                          LakeConfig)
