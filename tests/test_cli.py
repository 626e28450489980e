"""The command line as a person meets it: one line for a mistake, the right exit code, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpvae import cli
from dpvae.command import arguments
from dpvae.command.complete import candidates
from dpvae.config import ReleaseConfig, TrainConfig, VerifyConfig
from dpvae.errors import BudgetError

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Verdict:
    """What a verification answers, as far as the command line looks."""

    ok: bool

    def __str__(self) -> str:
        return "holds" if self.ok else "does not hold"

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok}


@dataclass
class Verbs:
    """Stands in for the layers below: remembers the configs that arrived, and does what it is told."""

    seen: list[Any] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)  # sizes of the sweeps that were booked and given back
    act: Callable[[Any], Any] = lambda config: "done"

    def __call__(self, config: Any) -> Any:
        self.seen.append(config)
        return self.act(config)


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Verbs:
    """The api replaced; the working directory is an empty folder."""
    fake = Verbs()
    for name, members in {"dpvae.api": ("plan", "train", "release"), "dpvae.audit.verify": ("verify",)}.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member, fake)
        monkeypatch.setitem(sys.modules, name, module)
    sweep = ModuleType("dpvae.sweep")
    for member in ("book", "preview"):
        setattr(sweep, member, lambda configs: SimpleNamespace(give_back=lambda: fake.returned.append(len(configs))))
    monkeypatch.setitem(sys.modules, "dpvae.sweep", sweep)
    monkeypatch.chdir(tmp_path)
    return fake


MISTAKES = [  # what is typed, and what its one line must say
    ("trian", "did you mean 'train'?"),
    ("frobnicate", "expected one of plan, train, release, verify"),
    ("train privacy.epsilom=3", "privacy.epsilom=3: no such key; did you mean 'privacy.epsilon'?"),
    ("train epsilon=3", "did you mean 'privacy.epsilon'?"),
    ("train ++privacy.epsilom=3", "did you mean 'privacy.epsilon'?"),
    ("train model.zzz=3", "model.zzz=3: no such key; model has"),
    ("train +zzz=3", "zzz: no such key"),
    ("train privacy=strct", "privacy=strct: expected one of default, off, strict; did you mean 'strict'?"),
    ("train experiment=smok", "did you mean 'smoke'?"),
    ("train trainer=ankored", "did you mean 'anchored'?"),
    ("train data=adlut", "data=adlut: expected one of adult, file, images, text; did you mean 'adult'?"),
    ("train data=null", "data=null: expected"),
    ("train data=file", "data.path: expected a value"),
    ("train table.csv", "did you mean data=table.csv?"),
    ("train privacy.epsilon", "privacy.epsilon: expected key=value"),
    ("train run=adult1", "run=adult1: expected one of run.name"),
    ("train --hepl", "--hepl: no such flag; did you mean '--help'?"),
    ("train --cfg", "expected job | hydra | all after --cfg"),
    ("train --cfg jb", "expected job | hydra | all after --cfg"),
    ("train -m=3", "expected no value after -m"),
    ("train privacy.epsilon=1,3", "privacy.epsilon=1,3: expected one value; add -m"),
    ("train privacy.epsilon=[1", "privacy.epsilon=[1: a value that cannot be read"),
    ("train privacy.epsilon=-1", "privacy.epsilon=-1.0: expected a finite number > 0"),
    ("train privacy.epsilon=0", "privacy.epsilon=0.0: expected a finite number > 0"),
    ("train privacy.epsilon=nan", "privacy.epsilon=nan: expected a finite number > 0"),
    ("train privacy.epsilon=99", "expected at most privacy.max_epsilon=20"),
    ("train privacy.epsilon=much", "privacy.epsilon='much': expected a number"),
    ("train privacy.delta=1", "privacy.delta=1.0: expected a number between 0 and 1"),
    ("train data.rows=0", "data.rows=0: expected a whole number >= 2"),
    ("train data.rows=2.5", "data.rows=2.5: expected a whole number"),
    ("train data.outside=clp", "did you mean 'clip'?"),
    ("train data.path=a.csv", "expected one of the two"),
    ("train run.name=a/b", "run.name='a/b': expected a plain folder name"),
    ("train run.name=${nothing}", "nothing"),
    ("train -m data=adult,table.csv", "expected files or names of configs in one sweep, not both"),
    ("plan privacy.epsilom=3", "did you mean 'privacy.epsilon'?"),
    ("release rows=0", "rows=0: expected a whole number >= 1"),
    ("release row=5", "did you mean 'rows'?"),
    ("release data.rows=5", "did you mean 'rows'?"),
    ("verify one two", "two: expected one folder, after one"),
    ("verify nowhere", "folder=nowhere: no such folder"),
    ("verify format=jsn", "did you mean 'json'?"),
]


@pytest.mark.parametrize(("line", "says"), MISTAKES)
def test_a_mistake_is_told_in_one_line_and_reaches_no_verb(
    verbs: Verbs, capsys: pytest.CaptureFixture[str], line: str, says: str
) -> None:
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("dpvae: error: ")
    assert err.count("\n") == 1 == len(err.splitlines())
    assert says in err
    assert "Traceback" not in out + err
    assert verbs.seen == []
    assert list(Path.cwd().iterdir()) == []


def test_a_mistake_seen_from_the_shell_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "dpvae", "train", "privacy.epsilom=1"], capture_output=True, text=True,
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dpvae: error: privacy.epsilom=1: no such key; did you mean 'privacy.epsilon'?\n"


def raising(error: BaseException) -> Callable[[Any], Any]:
    def act(config: Any) -> Any:
        raise error

    return act


@pytest.mark.parametrize(("error", "code", "says"), [
    (BudgetError("privacy.epsilon=3:\nexpected at most 1"), 2, "dpvae: error: privacy.epsilon=3: expected at most 1\n"),
    (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 2,
     "dpvae: error: No space left on device: runs/a; free some space and run the same command again\n"),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 2,
     "dpvae: error: Permission denied: x; choose a place you may use\n"),
    (MemoryError(), 2, "dpvae: error: out of memory; try a smaller performance.microbatch\n"),
    (KeyboardInterrupt(), 130, "dpvae: stopped: run the same command again and it goes on from its last checkpoint; "
                               "nothing is counted twice\n"),
    (BrokenPipeError(), 141, ""),
])
def test_whatever_ends_a_run_is_told_in_one_line_with_its_code(
    verbs: Verbs, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, says: str
) -> None:
    verbs.act = raising(error)
    assert cli.main(["train"]) == code
    assert capsys.readouterr() == ("", says)


def test_a_bug_is_called_a_bug_and_its_traceback_shown_only_on_request(
    verbs: Verbs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verbs.act = raising(ZeroDivisionError("oh"))
    monkeypatch.delenv("DPVAE_DEBUG", raising=False)
    assert cli.main(["train"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("dpvae: bug: ZeroDivisionError: oh;")
    assert err.count("\n") == 1
    monkeypatch.setenv("DPVAE_DEBUG", "1")
    assert cli.main(["train"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m dpvae train --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode in (0, 141)  # 0: all was written before the reader left
    assert done.stderr == ""


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "dpvae", "--help"], stdout=full, stderr=subprocess.PIPE, text=True,
                              cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert done.stderr == ("dpvae: error: No space left on device; free some space and run the same command again\n")


def test_ctrl_c_in_the_middle_of_a_run_is_one_line(tmp_path: Path) -> None:
    code = ("import os, signal, sys, types; from dpvae import cli; api = types.ModuleType('dpvae.api'); "
            "api.train = lambda config: os.kill(os.getpid(), signal.SIGINT); sys.modules['dpvae.api'] = api; "
            "raise SystemExit(cli.main(['train']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("dpvae: stopped: run the same command again")
    assert done.stderr.count("\n") == 1


def test_train_without_an_argument_is_the_built_in_table(verbs: Verbs) -> None:
    assert cli.main(["train"]) == 0
    (config,) = verbs.seen
    assert isinstance(config, TrainConfig)
    assert (config.data.builtin, config.data.rows, config.data.target) == ("adult", 48842, "income")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("path", [
    "t.csv", "a folder/my table.csv", "eps=1,delta=2.parquet", "it's.csv", 'a"b.csv', "{x}[1](2).csv",
    "back\\slash.csv", "~me.csv", "s3://bucket/key", "lake:orders", "50%.csv", "ünï.csv", "a\nb.csv", "end\\.csv'",
])
def test_a_file_name_means_itself_whatever_it_holds(verbs: Verbs, path: str) -> None:
    assert cli.main(["train", f"data={path}"]) == 0
    assert (verbs.seen[0].data.path, verbs.seen[0].data.builtin) == (path, None)
    assert cli.main(["release", f"to={path}", f"run={path}"]) == 0
    assert (verbs.seen[1].to, verbs.seen[1].run) == (path, path)


def test_a_bare_word_that_is_a_file_here_is_that_file(verbs: Verbs) -> None:
    Path("orders").write_text("a\n1\n")
    assert cli.main(["train", "data=orders"]) == 0
    assert verbs.seen[0].data.path == "orders"


def test_text_stays_text_and_null_stays_nothing(verbs: Verbs) -> None:
    assert cli.main(["train", "run.name=007", "data.target=1e5", "data.schema=null", "ledger.dataset=true"]) == 0
    config = verbs.seen[0]
    assert (config.run.name, config.data.target, config.data.schema) == ("007", "1e5", None)
    assert config.ledger.dataset == "true"


def test_a_home_folder_is_found(verbs: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert cli.main(["train", "data=~/t.csv"]) == 0
    assert verbs.seen[0].data.path == "/somewhere/t.csv"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@example("\\'")
@example("'\\")
@example("a\\\\")
@settings(max_examples=60, deadline=None)
def test_a_quoted_text_is_read_back_by_hydra_as_it_was(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"to={arguments.quote(text)}").value() == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@example("null")
@example("'quoted'")
@example("a=b, c")
@example("~/release")
@example("x${oc.env:HOME}")
@settings(max_examples=60, deadline=None)
def test_what_is_read_without_hydra_is_what_hydra_reads(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    read = arguments.literal([f"folder={text}"], VerifyConfig)
    if read is not None:
        override, = arguments.rewrite([f"folder={text}"], VerifyConfig, groups=())
        assert read == {"folder": OverridesParser.create().parse_override(override).value()}
    assert (read is None) == ("${" in text or (text[0] == text[-1] and text[0] in "'\"" and len(text) > 1))


def test_flags_may_stand_anywhere(verbs: Verbs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "privacy.epsilon=3", "--cfg", "job", "model=small"]) == 0
    out = capsys.readouterr().out
    assert "epsilon: 3" in out
    assert "latent_dim: 16" in out
    assert verbs.seen == []


def test_a_sweep_gives_every_job_a_run_of_its_own_and_leaves_nothing_behind(verbs: Verbs) -> None:
    line = ["train", "-m", "data=a b.csv", "privacy.epsilon=1,3", "trainer=anchored,joint", "run.name=adult1"]
    assert cli.main(line) == 0
    names = [config.run.name for config in verbs.seen]
    assert names[1] == "adult1-privacy.epsilon=1,trainer=joint"
    assert len(set(names)) == 4
    assert {config.data.path for config in verbs.seen} == {"a b.csv"}
    assert [config.privacy.epsilon for config in verbs.seen] == [1, 1, 3, 3]
    assert list(Path.cwd().iterdir()) == []
    assert cli.main(line) == 0
    assert [config.run.name for config in verbs.seen[4:]] == names  # the same command resumes the same runs


def test_an_unnamed_sweep_leaves_naming_to_the_runs(verbs: Verbs) -> None:
    assert cli.main(["train", "-m", "privacy.epsilon=1,3"]) == 0
    assert [(config.run.name, config.privacy.epsilon) for config in verbs.seen] == [(None, 1), (None, 3)]


def test_ctrl_c_in_an_unnamed_sweep_says_that_finished_jobs_would_start_anew(
    verbs: Verbs, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs.act = raising(KeyboardInterrupt())
    assert cli.main(["train", "-m", "privacy.epsilon=1,3"]) == 130
    assert "starts the jobs before it anew" in capsys.readouterr().err
    assert cli.main(["train", "-m", "privacy.epsilon=1,3", "run.name=sweep"]) == 130
    assert "nothing is counted twice" in capsys.readouterr().err


def test_a_sweep_over_files_takes_each_file(verbs: Verbs) -> None:
    assert cli.main(["train", "-m", "data=one.csv,two.csv", "run.name=x"]) == 0
    assert [config.data.path for config in verbs.seen] == ["one.csv", "two.csv"]
    assert [config.run.name for config in verbs.seen] == ["x-data.path=one.csv", "x-data.path=two.csv"]


def test_a_sweep_stops_at_the_first_job_that_fails(verbs: Verbs, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.act = raising(BudgetError("over the cap"))
    assert cli.main(["train", "-m", "privacy.epsilon=1,3"]) == 2
    assert len(verbs.seen) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "dpvae: error: over the cap"


def test_two_jobs_never_share_a_name_however_odd_their_values() -> None:
    swept = ["data.path='a/b'", "data.path='a_b'", "data.path='a b'", "x=" + "y" * 300, "x=" + "y" * 301]
    names = [arguments.job_name("base", [text]) for text in swept]
    assert len(set(names)) == len(names)
    assert all(len(name) <= arguments.LONGEST_NAME and "/" not in name and " " not in name for name in names)


@pytest.mark.parametrize("folder", ["release/adult", "eps=1", "out/eps=1,delta=2", "it's"])
def test_verify_takes_its_folder_without_a_key(verbs: Verbs, folder: str) -> None:
    verbs.act = lambda name: Verdict(ok=True)
    Path(folder).mkdir(parents=True)
    assert cli.main(["verify", folder]) == 0
    assert cli.main(["verify", f"folder={folder}"]) == 0
    assert verbs.seen == [folder, folder]


def test_verify_exits_with_one_where_a_release_does_not_hold(verbs: Verbs, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.act = lambda name: Verdict(ok=False)
    Path("x").mkdir()
    assert cli.main(["verify", "x"]) == 1
    assert capsys.readouterr() == ("does not hold\n", "")
    assert cli.main(["verify", "x", "format=json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"ok": False}


def test_release_says_what_to_type_next(verbs: Verbs, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.act = lambda config: Path(config.to)
    assert cli.main(["release", "run=adult1", "rows=7", "to=out"]) == 0
    assert verbs.seen == [ReleaseConfig(run="adult1", rows=7, to="out")]
    assert capsys.readouterr().out == "released out; check it with: dpvae verify out\n"


@pytest.mark.parametrize("word", cli.VERBS)
def test_every_verb_has_a_help_that_names_its_knobs(
    verbs: Verbs, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert cli.main([word, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"dpvae {word}")
    of_tables = set(yaml.safe_load((cli.conf_dir() / "data" / "adult.yaml").read_text()))
    shown = {"table": "data"} if word in ("score", "impute") else {}
    assert all(shown.get(key, key.rpartition(".")[2]) + ":" in out for key in arguments.keys_of(cli.VERBS[word].config)
               if not key.startswith("data.") or key.rpartition(".")[2] in of_tables)
    assert verbs.seen == []


def test_help_names_every_verb_and_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    import dpvae

    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == cli.usage() + "\n"
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {word} " in out for word in cli.VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dpvae {dpvae.__version__}\n"


def test_completion_offers_verbs_then_configs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", "dpvae tr")
    assert cli.main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == [*cli.VERBS, "--help", "--version"]
    monkeypatch.setenv("COMP_LINE", "dpvae train privacy=")
    assert cli.main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["privacy=default", "privacy=off", "privacy=strict"]


@pytest.mark.parametrize(("line", "offered"), [
    ("train privacy.", ["privacy.delta=", "privacy.epsilon=", "privacy.max_epsilon=", "privacy.neighbouring=",
                        "privacy.noise=", "privacy.secret_seed="]),
    ("train privacy.neighbouring=", ["privacy.neighbouring=add_remove", "privacy.neighbouring=replace_one"]),
    ("audit quick=", ["quick=false", "quick=true"]),
    ("release engine=r", ["engine=local", "engine=ray", "engine=spark"]),
    ("verify ", ["folder=", "format=", "key=", "output="]), ("score data=or", ["data=orders.csv"]),
    ("release run=", ["run=latest", "run=first"]), ("score --", ["--help", "--cfg", "-m", "--config-dir"]),
    ("ledger action=", ["action=show", "action=check", "action=cap", "action=export"]),
    ("train data.schema=sub/", ["data.schema=sub/a b.yaml", "data.schema=sub/deep/"]), ("nothing x", []),
])
def test_completion_offers_what_the_verb_would_take(line: str, offered: list[str], tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("orders.csv", "runs/first/run.json", "runs/unfinished/x", "sub/a b.yaml", "sub/deep/.hidden"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()

    assert candidates(f"dpvae {line}", cli.conf_dir()) == offered


@pytest.mark.parametrize("word", cli.VERBS)
def test_every_key_that_completion_offers_is_a_key_of_the_verb(word: str) -> None:

    known = {*arguments.keys_of(cli.VERBS[word].config), *cli.groups_of(cli.VERBS[word]), "output", "data"}
    keys = [each for each in candidates(f"dpvae {word} ", cli.conf_dir()) if each.endswith(("=", "."))]
    assert keys
    assert {key.rstrip("=.") for key in keys} <= known


@pytest.mark.parametrize("line", [f"{word} {example}" for word, verb in cli.VERBS.items()
                                  for example in verb.examples])
def test_what_help_shows_as_an_example_is_a_command_that_composes(line: str, verbs: Verbs) -> None:
    words = [word.replace("=1,3", "=1") for word in line.split() if word != "-m"]
    assert cli.main([*words, "--cfg", "job"]) == 0
    assert verbs.seen == []


def test_the_process_is_as_it_was_afterwards(verbs: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = list(sys.argv)
    cli.main(["train"])
    cli.main(["train", "privacy=nothing"])
    assert sys.argv == before
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_an_extra_conf_folder_adds_configs(verbs: Verbs) -> None:
    Path("mine/privacy").mkdir(parents=True)
    Path("mine/privacy/ours.yaml").write_text("defaults: [default]\nepsilon: 2.0\n")
    assert cli.main(["train", "--config-dir", "mine", "privacy=ours"]) == 0
    assert verbs.seen[0].privacy.epsilon == 2.0
