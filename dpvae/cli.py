"""The command line: ``dpvae VERB key=value ...``. The only module that knows Hydra exists.

The verb is taken off, what was typed is rewritten by :mod:`dpvae.arguments`, Hydra composes ``conf/VERB.yaml`` (with
its flags: ``-m``, ``--help``, ``--cfg``), and a frozen dataclass reaches the verb. Nothing heavy is imported before a
verb needs it. One line on stderr says what went wrong; the exit codes are

    0 done | 1 a release that does not hold | 2 a mistake in the input, the budget or the machine
    70 a mistake in dpvae (DPVAE_DEBUG=1 shows where) | 130 stopped by Ctrl-C | 141 nobody reads the output any more

>>> main(["--version"])
dpvae 0.1.0
0
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import dpvae
from dpvae import arguments as typed
from dpvae.checks import did_you_mean
from dpvae.config import LedgerVerbConfig, ReleaseConfig, TrainConfig, VerifyConfig, build
from dpvae.errors import ConfigError, ReleaseError
from dpvae.explain import MISTAKE, explain

DOES_NOT_HOLD, INTERRUPTED, NO_READER = 1, 130, 141


def _plan(config: TrainConfig) -> int:
    print(importlib.import_module("dpvae.api").plan(config))
    return 0


def _train(config: TrainConfig) -> int:
    print(importlib.import_module("dpvae.api").train(config))
    return 0


def _release(config: ReleaseConfig) -> int:
    folder = importlib.import_module("dpvae.api").release(config)
    print(f"released {folder}; check it with: dpvae verify {folder}")
    return 0


def _verify(config: VerifyConfig) -> int:
    if not Path(config.folder).is_dir():  # a slip of the fingers is no verdict on a release
        raise ReleaseError(f"folder={config.folder}: no such folder; expected one that dpvae release wrote")
    key = {} if config.key is None else {"key": Path(config.key)}
    if config.key is not None and not Path(config.key).is_file():
        raise ReleaseError(f"key={config.key}: no such file; expected the issuer's public key in PEM")
    verdict = importlib.import_module("dpvae.audit.verify").verify(config.folder, **key)
    print(json.dumps(verdict.to_dict(), indent=2) if config.format == "json" else verdict)
    return 0 if verdict.ok else DOES_NOT_HOLD


def _ledger(config: LedgerVerbConfig) -> int:
    print(importlib.import_module("dpvae.privacy.ledger_view").act(config))
    return 0


@dataclass(frozen=True)
class Verb:
    """One word of the command line; its knobs are ``conf/<word>.yaml``."""

    says: str
    config: type[TrainConfig] | type[ReleaseConfig] | type[VerifyConfig] | type[LedgerVerbConfig]
    run: Callable[[Any], int]
    stopped: str = "nothing was finished; run the same command again"
    memory: str = "close other programs, or take a larger machine"


VERBS = {
    "plan": Verb("what a budget buys; opens no data, spends nothing", TrainConfig, _plan),
    "train": Verb("train a private model on a table", TrainConfig, _train,
                  "run the same command again and it goes on from its last checkpoint; nothing is counted twice",
                  "try a smaller performance.microbatch"),
    "release": Verb("write a synthetic table with its certificate", ReleaseConfig, _release,
                    memory="release fewer rows at a time"),
    "verify": Verb("check a release folder: digests, events, epsilon", VerifyConfig, _verify),
    "ledger": Verb("show | check | cap DATASET | export FILE: the book of what was spent", LedgerVerbConfig, _ledger),
}


def usage() -> str:
    """The text of ``dpvae --help``."""
    lines = [f"  {word:9}{verb.says}" for word, verb in VERBS.items()]
    return "\n".join([
        "dpvae: variational autoencoders under differential privacy, with a proof of what they spent", "",
        "usage: dpvae VERB [key=value ...]", "", *lines, "",
        "dpvae VERB --help      every knob of a verb, with its default",
        "dpvae VERB --cfg job   the configuration a command would run with",
        "dpvae train -m privacy.epsilon=1,3,10   one run for each value, all booked on one ledger",
        'eval "$(dpvae -sc install=bash)"        completion of verbs and knobs', "",
        "first steps: dpvae plan; dpvae train; dpvae release run=latest to=release/first; dpvae verify release/first",
    ])


def conf_dir() -> Path:
    """The configuration files: inside the package when installed, beside it in a source tree."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"{package / 'conf'}: the configuration files are missing; install dpvae again")


def groups_of(verb: Verb) -> set[str]:
    """The groups of ``conf/`` a verb composes."""
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()} & set(typed.keys_of(verb.config))
    return groups | {"experiment"} if "data" in groups else groups


class _Carried(BaseException):
    """An error on its way through Hydra, which would print it in its own manner."""


def _swept(overrides: Sequence[str], job: Sequence[str]) -> list[str]:
    """What sets a job of a sweep apart from its siblings, as ``key=value``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = OverridesParser.create().parse_overrides(list(overrides))
    fixed = {o.key_or_group for o in given if not o.is_sweep_override()}
    return [text for text in job if text.partition("=")[0].lstrip("+") not in fixed]


def _named(config: dict[str, Any], swept: Sequence[str]) -> dict[str, Any]:
    """A named sweep gives each job a name of its own, so that it can be resumed."""
    run = config.get("run")
    others = [text for text in swept if not text.startswith("run.name=")]
    if isinstance(run, dict) and run.get("name") is not None and others:
        run["name"] = typed.job_name(str(run["name"]), others)
    return config


def _name_job(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """Say which job of a sweep begins, and name it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    number, swept = HydraConfig.get().job.num, _swept(overrides, HydraConfig.get().overrides.task)
    print(f"dpvae: job {number}: {' '.join(swept)}", file=sys.stderr)
    _named(config, swept)


class SweepStart:
    """Hydra's callback (conf/train.yaml): says what a sweep costs as a whole, and books it before its first job.

    Hydra only warns of an exception in a callback; :class:`_Carried` is none in its eyes, and stops the sweep.
    """

    booked: ClassVar[list[Any]] = []  # what :func:`_hand_over` gives back where jobs never began

    def on_multirun_start(self, config: Any, config_name: str, **_: Any) -> None:
        """Plan (and for ``train``: book) every job that the sweeper will start."""
        try:
            jobs = self._jobs(config, config_name)
            if jobs is None:
                print("dpvae: this sweeper chooses its jobs as it goes: each is booked when it begins", file=sys.stderr)
                return
            sweep = importlib.import_module("dpvae.sweep")
            done = sweep.book(jobs) if config_name == "train" else sweep.preview(jobs)
            print(f"dpvae: {done}", file=sys.stderr)
            if config_name == "train":
                self.booked.append(done)
        except Exception as error:
            raise _Carried from error

    def _jobs(self, config: Any, config_name: str) -> list[TrainConfig] | None:
        """The configuration of every job, or ``None`` where only the sweeper knows."""
        from hydra import compose
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from omegaconf import OmegaConf

        if not str(config.hydra.sweeper._target_).endswith(".BasicSweeper"):
            return None
        given = [*(f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()),
                 *config.hydra.overrides.task]
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        found = []
        for job in BasicSweeper.split_arguments(parser.parse_overrides(given), None)[0]:
            plain = OmegaConf.to_container(compose(config_name, list(job)), resolve=True, throw_on_missing=True)
            assert isinstance(plain, dict)
            found.append(build(TrainConfig, _named({str(k): v for k, v in plain.items()}, _swept(given, job))))
        return found

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Hydra's other moments pass unheard."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda **_: None


@contextlib.contextmanager
def _seen_by_hydra(command: list[str]) -> Iterator[None]:
    """The process as ``hydra.main`` reads it, with Hydra's errors raised to us instead of printed."""
    argv, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = command, "1"
    try:
        yield
    finally:
        sys.argv = argv
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _hand_over(word: str, overrides: list[str], flags: list[str]) -> int:
    """Let Hydra compose ``conf/WORD.yaml`` and run the verb, once or once per job of a sweep."""
    import hydra
    from omegaconf import DictConfig, OmegaConf

    verb, codes = VERBS[word], [0]

    def task(composed: DictConfig) -> None:
        try:
            config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            assert isinstance(config, dict)
            plain = {str(key): value for key, value in config.items()}
            _name_job(plain, overrides)
            codes.append(verb.run(build(verb.config, plain)))
        except Exception as error:
            raise _Carried from error

    with _seen_by_hydra(["dpvae", *flags, *overrides]):
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=word)(task)()
        finally:
            while SweepStart.booked:
                SweepStart.booked.pop().give_back()
    return max(codes)


def _compose(word: str, arguments: Sequence[str]) -> int:
    """One verb with what was typed after it."""
    verb = VERBS[word]
    flags, words = typed.split_flags(arguments)
    if {"-sc", "--shell-completion"} & set(flags):
        return _hand_over(word, words, flags)
    sweep = bool({"-m", "--multirun"} & set(flags)) or "hydra.mode=MULTIRUN" in words
    words = typed.folder_first(words) if verb.config is VerifyConfig else words
    words = typed.action_first(words) if verb.config is LedgerVerbConfig else words
    overrides = typed.rewrite(words, verb.config, groups=groups_of(verb), sweep=sweep)
    if not sweep or any(text.lstrip("+").startswith("hydra.sweep.dir=") for text in overrides):
        return _hand_over(word, overrides, flags)
    with tempfile.TemporaryDirectory() as scratch:  # Hydra's sweeper insists on writing a file of its own
        return _hand_over(word, [*overrides, f"hydra.sweep.dir={typed.quote(scratch)}"], flags)


def _complete(arguments: Sequence[str]) -> int:
    """Tab completion: Hydra knows one application, so the verb is taken out of the line it is asked about."""
    line = os.environ.get("COMP_LINE", "").split(" ", 2)
    if "query=bash" not in arguments:
        return _compose("train", arguments)
    if len(line) < 3:
        print(" ".join(VERBS))
    elif line[1] in VERBS:
        os.environ["COMP_LINE"] = f"{line[0]} {line[2]}"
        return _compose(line[1], arguments)
    return 0


def _dispatch(arguments: Sequence[str]) -> int:
    word = arguments[0] if arguments else "--help"
    if word in ("--help", "-h", "help"):
        print(usage())
    elif word in ("--version", "-V"):
        print(f"dpvae {dpvae.__version__}")
    elif word in ("-sc", "--shell-completion"):
        return _complete(arguments)
    elif word in VERBS:
        return _compose(word, arguments[1:])
    else:
        raise ConfigError(f"{word}: expected one of {', '.join(VERBS)}{did_you_mean(word, VERBS)}")
    return 0


def _release_output() -> None:
    """Flush what was printed; where that fails (closed pipe, full disk) drop it, or Python complains at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stopped(verb: Verb | None, arguments: Sequence[str]) -> str:
    """What Ctrl-C left behind, and how to go on."""
    if verb is None:
        return "nothing was done"
    unnamed = not any(argument.startswith("run.name=") for argument in arguments)
    if verb.config is TrainConfig and {"-m", "--multirun"} & set(arguments) and unnamed:
        return "the same command goes on with the job that was stopped, but starts the jobs before it anew"
    return verb.stopped


def _report(error: BaseException, arguments: Sequence[str], *, interrupted: bool = False) -> int:
    """Say in one line on stderr what ended the command, and give its exit code."""
    if isinstance(error, _Carried) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else MISTAKE
    _release_output()
    if isinstance(error, BrokenPipeError):
        return NO_READER
    if os.environ.get("DPVAE_DEBUG") == "1":
        traceback.print_exception(error)
    verb = VERBS.get(arguments[0]) if arguments else None
    if interrupted or isinstance(error, KeyboardInterrupt):
        code, line = INTERRUPTED, f"stopped: {_stopped(verb, arguments)}"
    else:
        code, line = explain(error, verb.memory if verb else Verb.memory)
    print("dpvae: " + " ".join(line.split()), file=sys.stderr)
    return code


@contextlib.contextmanager
def _listening() -> Iterator[list[int]]:
    """Notes Ctrl-C itself: inside an import or a C library its KeyboardInterrupt may come out as another error."""
    heard: list[int] = []

    def note(number: int, frame: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield heard
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the entry point of the ``dpvae`` script."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # torch's threads wait for one another asleep: on a busy machine, spinning more than doubled the CPU time of a run
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _listening() as heard:
        try:
            code = _dispatch(arguments)
            sys.stdout.flush()
            return code
        except BaseException as error:  # every way out ends in one line and one code
            return _report(error, arguments, interrupted=bool(heard))
