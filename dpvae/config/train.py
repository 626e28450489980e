"""The knobs of training and planning: what is learned from, how, under which guarantee, and at what speed."""

from __future__ import annotations

from dataclasses import dataclass, field

from dpvae import checks
from dpvae.config.limits import (
    DATA_KINDS,
    LONGEST_TEXT,
    MAX_EPSILON,
    MAX_ROWS,
    NEIGHBOURS,
    OUTSIDE,
    OVERLONG,
    PRICEABLE,
    PROGRESS,
    RECORDS,
    TOKENS,
    TRACKERS,
    TRAINERS,
    at_most,
    check_name,
)
from dpvae.errors import ConfigError


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
            at_most(LONGEST_TEXT, **{"data.cap": self.cap})
        if self.kind == "text" and self.path:
            object.__setattr__(self, "builtin", None)  # conf/data/text.yaml names one for want of a path
        if self.rows is not None:
            checks.whole(2, **{"data.rows": self.rows})
            at_most(MAX_ROWS, **{"data.rows": self.rows})
        if self.kind != "table" and (self.columns is not None or self.where is not None):
            raise ConfigError(f"data.{'where' if self.columns is None else 'columns'}: expected data.kind=table; "
                              f"{self.kind} are read whole")
        if self.unit is not None and (self.kind != "text" or self.unit in RECORDS.values()):
            raise ConfigError(f"data.unit={self.unit!r}: expected a column of texts (data=text) that names a person; "
                              "of tables and images one record is the unit: make one row or image per person first")
        if self.path and self.builtin:
            raise ConfigError(f"data.path={self.path!r} and data.builtin={self.builtin!r}: expected one of the two")

    @property
    def protects(self) -> str:
        """The unit of privacy: what is added or removed where two data sets are neighbours."""
        return self.unit or RECORDS[self.kind]


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
        at_most(1e3, **{"trainer.clip_norm": self.clip_norm})
        at_most(1.0, **{"trainer.learning_rate": self.learning_rate})
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
        at_most(PRICEABLE[1], **{"privacy.max_epsilon": self.max_epsilon})
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
    compile: bool = False  # a DP-SGD step up to its clipped sum as one compiled program (clipping=fast or auto)
    precision: str = "float32"  # of forward and backward pass; norms, sums and weights stay single: clipping=fast only
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
        if self.precision != "float32" and (self.sharding != "none" or self.clipping in ("hooks", "ghost")):
            raise ConfigError("performance.precision=bfloat16: Opacus' modes round a batch's sum as coarsely, and one "
                              "record moves it by more than the clip norm; expected performance.clipping=fast "
                              "performance.sharding=none")
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
            check_name(self.name)


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
            at_most(1e4, **{"sweep.runs": self.runs})
        checks.at_least(0, **{"sweep.shape": self.shape})
        at_most(10.0, **{"sweep.shape": self.shape})


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

    def __post_init__(self) -> None:
        rows = (self.trainer.latent_samples or 1) * (1 if self.data.unit is None else self.data.per_unit)
        if self.performance.clipping == "ghost" and self.data.kind != "table" and rows > 1:
            raise ConfigError(f"performance.clipping=ghost: a record of data.kind={self.data.kind} takes {rows} rows "
                              "here, and Opacus' mode clips each alone; expected performance.clipping=fast")
