"""The command line: ``dpvae VERB key=value ...``. The only module that knows Hydra exists.

The verb is taken off, what was typed is rewritten by :mod:`dpvae.command.arguments`, Hydra composes ``conf/VERB.yaml``
(with its flags: ``-m``, ``--help``, ``--cfg``), and a frozen dataclass reaches the verb. Nothing heavy is imported
before a verb needs it. One line on stderr says what went wrong; the exit codes are

    0 done | 1 a release or an audit that does not hold | 2 a mistake in the input, the budget or the machine
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
from pathlib import Path
from typing import Any, ClassVar

import dpvae
from dpvae import memory
from dpvae.checks import did_you_mean
from dpvae.command import arguments as typed
from dpvae.command import verbs
from dpvae.command.explain import MISTAKE, explain
from dpvae.command.verbs import VERBS, Answer, Verb, usage
from dpvae.config import ImputeConfig, LakeConfig, LedgerVerbConfig, SampleConfig, ScoreConfig, TrainConfig, build
from dpvae.errors import ConfigError

INTERRUPTED, NO_READER = 130, 141
Run = Callable[[Any], Answer]


def conf_dir() -> Path:
    """The configuration files: inside the package when installed, beside it in a source tree."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"{package / 'conf'}: the configuration files are missing; install dpvae again")


def groups_of(verb: Verb) -> set[str]:
    """The groups of ``conf/`` a verb composes."""
    return verbs.groups_of(verb, conf_dir())


class _Carried(BaseException):
    """An error on its way through Hydra, which would print it in its own manner."""


class _Done(BaseException):
    """A sweep that is finished before Hydra starts its first job."""


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


def _begin_job(word: str, plain: dict[str, Any], overrides: Sequence[str]) -> Any:
    """Say which job of a sweep begins, and name it; a job that the sweeper chose as it went takes its booked run."""
    from hydra.core.hydra_config import HydraConfig

    number, swept = HydraConfig.get().job.num, _swept(overrides, HydraConfig.get().overrides.task)
    print(f"dpvae: job {number}: {' '.join(swept)}", file=sys.stderr)
    names = _names_file(HydraConfig.get().sweep.dir)
    if not names.is_file() or word != "train":
        return build(VERBS[word].config, _named(plain, swept))
    plain["run"]["name"] = json.loads(names.read_text())[number]
    config = build(TrainConfig, plain)
    importlib.import_module("dpvae.sweep").take(config)
    return config


def _names_file(folder: str) -> Path:
    """Where the runs booked for a sweeper that chooses as it goes are named, for jobs in whatever process."""
    return Path(folder) / "dpvae-runs.json"


def _chooses(config: Any) -> bool:
    """Whether the sweeper chooses its jobs as it goes."""
    return not str(config.hydra.sweeper._target_).endswith(".BasicSweeper")


class SweepStart:
    """Hydra's callback (conf/train.yaml): says what a sweep costs as a whole, and books it before its first job.

    Hydra only warns of an exception in a callback; :class:`_Carried` is none in its eyes, and stops the sweep.
    """

    booked: ClassVar[list[Any]] = []  # what :func:`_hand_over` gives back where jobs never began

    def on_multirun_start(self, config: Any, config_name: str, **_: Any) -> None:
        """Plan (and for ``train``: book) every job that the sweeper will start."""
        try:
            if config.sweep.private:
                self._select(config, config_name)
            elif _chooses(config):
                self._book_trials(config, config_name)
            else:
                sweep, jobs = importlib.import_module("dpvae.sweep"), self._jobs(config, config_name)
                self._say(sweep.book(jobs) if config_name == "train" else sweep.preview(jobs))
        except Exception as error:
            raise _Carried from error

    def _say(self, done: Any) -> None:
        print(f"dpvae: {done}", file=sys.stderr)
        if not isinstance(done, str):
            self.booked.append(done)

    def _select(self, config: Any, word: str) -> None:
        """A private selection makes its runs itself: how many, and which, must be drawn in secret."""
        launcher = str(config.hydra.launcher._target_)
        if _chooses(config) or not launcher.endswith(".BasicLauncher"):
            raise ConfigError("sweep.private=true: expected no hydra/sweeper and no hydra/launcher; which settings are "
                              "tried, and how often, is drawn in secret")
        selection, jobs = importlib.import_module("dpvae.selection"), self._jobs(config, word, named=False)
        self._say(str(selection.plan(jobs)))
        if word == "train":
            print(selection.select(jobs))
        raise _Done

    def _book_trials(self, config: Any, word: str) -> None:
        """Book as many equal jobs as a sweeper that chooses as it goes may start."""
        from hydra import compose
        from hydra.core.override_parser.overrides_parser import OverridesParser

        sweep, sweeper = importlib.import_module("dpvae.sweep"), config.hydra.sweeper
        count, direction = sweeper.get("n_trials"), sweeper.get("direction")
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"hydra/sweeper: {sweeper._target_} does not say how many jobs it starts at most "
                              "(n_trials), so it cannot be booked as a whole; try hydra/sweeper=optuna")
        way = getattr(direction, "name", direction)
        if way != "maximize":
            raise ConfigError(f"hydra.sweeper.direction={way}: expected maximize; a job's result is its noisy ELBO")
        parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
        sweep.check_free(swept | set(sweeper.get("params") or {}) | set(sweeper.get("search_space") or {}))
        fixed = [override.input_line for override in parsed if override.key_or_group not in swept]
        base = build(TrainConfig, _plain(compose(word, fixed)))
        if word != "train":
            self._say(sweep.preview_trials(base, count))
            return
        booking, names = sweep.book_trials(base, count)
        self._say(booking)
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        _names_file(config.hydra.sweep.dir).write_text(json.dumps(names))

    def _jobs(self, config: Any, config_name: str, *, named: bool = True) -> list[TrainConfig]:
        """The configuration of every job of Hydra's own sweeper."""
        from hydra import compose
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.override_parser.overrides_parser import OverridesParser

        given = [*(f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()),
                 *config.hydra.overrides.task]
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        found = []
        for job in BasicSweeper.split_arguments(parser.parse_overrides(given), None)[0]:
            plain = _plain(compose(config_name, list(job)))
            found.append(build(TrainConfig, _named(plain, _swept(given, job)) if named else plain))
        return found

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Hydra's other moments pass unheard."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda **_: None


def _plain(composed: Any) -> dict[str, Any]:
    """What Hydra composed, as plain objects."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


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


def _hand_over(word: str, overrides: list[str], flags: list[str], run: Run, output: str = "text") -> int:
    """Let Hydra compose ``conf/WORD.yaml`` and ``run`` it, once or once per job of a sweep."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    verb, codes = VERBS[word], [0]

    def task(composed: DictConfig) -> float | None:
        try:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                codes.append(_tell(run(build(verb.config, _plain(composed))), output))
                return None
            config = _begin_job(word, _plain(composed), overrides)
            codes.append(_tell(run(config), output))
            chosen = _names_file(HydraConfig.get().sweep.dir).is_file()
            return float(importlib.import_module("dpvae.sweep").score(config)) if chosen else 0.0
        except Exception as error:
            raise _Carried from error

    with _seen_by_hydra(["dpvae", *flags, *overrides]):
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=word)(task)()
        except _Done:
            pass
        finally:
            while SweepStart.booked:
                SweepStart.booked.pop().give_back()
    return max(codes)


def _tell(answer: Answer, output: str) -> int:
    """Print what a verb found, and give its exit code."""
    if output != "quiet":
        print(answer.line() if output == "json" else answer.text())
    return answer.code


def _compose(word: str, arguments: Sequence[str]) -> int:
    """One verb with what was typed after it."""
    verb, run = VERBS[word], VERBS[word].run
    for flag in [flag for flag in verb.flags if flag in arguments]:
        arguments, run = [argument for argument in arguments if argument != flag], verb.flags[flag]
    flags, words = typed.split_flags(arguments, also=verb.flags)
    if {"-sc", "--shell-completion"} & set(flags):
        return _hand_over(word, words, flags, run)
    if {"--help", "-h"} & set(flags) and not words:
        from dpvae.command.manual import page

        print(page(word, verb, conf_dir(), groups_of(verb)))
        return 0
    words, output = typed.output_of(words, verb.config)
    sweep = bool({"-m", "--multirun"} & set(flags)) or "hydra.mode=MULTIRUN" in words
    words = typed.unnamed(words, verb.config, verb.positional, word)
    words = typed.table_named(words) if verb.config in (ScoreConfig, ImputeConfig) else words
    words = typed.given_gathered(words) if verb.config is SampleConfig else words
    words = typed.action_first(words) if verb.config is LedgerVerbConfig else words
    words = typed.lake_first(words) if verb.config is LakeConfig else words
    plain = None if flags or sweep else typed.literal(words, verb.config)
    if plain is not None:
        return _tell(run(build(verb.config, plain)), output)
    overrides = typed.rewrite(words, verb.config, groups=groups_of(verb), sweep=sweep)
    if not sweep or any(text.lstrip("+").startswith("hydra.sweep.dir=") for text in overrides):
        return _hand_over(word, overrides, flags, run, output)
    with tempfile.TemporaryDirectory() as scratch:  # Hydra's sweeper insists on writing a file of its own
        return _hand_over(word, [*overrides, f"hydra.sweep.dir={typed.quote(scratch)}"], flags, run, output)


def _complete(arguments: Sequence[str]) -> int:
    """Tab completion: the script that a shell reads is Hydra's; what it then asks for is answered here."""
    if "query=bash" not in arguments:
        return _compose("train", arguments)
    from dpvae.command.complete import candidates

    print(" ".join(candidates(os.environ.get("COMP_LINE", ""), conf_dir())))
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
    memory.spare()
    with _listening() as heard:
        try:
            code = _dispatch(arguments)
            sys.stdout.flush()
            return code
        except BaseException as error:  # every way out ends in one line and one code
            return _report(error, arguments, interrupted=bool(heard))
