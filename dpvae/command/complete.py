"""Tab completion: what may follow on the command line, for one verb and the knobs that it has.

Hydra offers every group of ``conf/`` to every verb; this offers what the verb would take. Pure look-up: no Hydra, no
torch, and a folder is listed only where a file or a run is asked for.

>>> candidates("dpvae ver", Path("conf"))[:2]
['plan', 'train']
>>> candidates("dpvae train performance.device=c", Path("conf"))
['performance.device=auto', 'performance.device=cpu', 'performance.device=cuda']
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from dpvae.command.arguments import keys_of
from dpvae.command.verbs import VERBS, Verb, groups_of
from dpvae.config import ImputeConfig, ScoreConfig
from dpvae.errors import ConfigError

MOST = 200  # files or runs that are offered
_IMPOSSIBLE = "\0"  # what no knob takes: a refusal lists what it does take


def candidates(line: str, conf: Path) -> list[str]:
    """What the last word of ``line`` may become, unfiltered: the shell keeps what begins as it does."""
    before, _, word = line.rpartition(" ")
    typed = before.split()
    if len(typed) < 2:
        return [*VERBS, "--help", "--version"] if typed else []
    verb = VERBS.get(typed[1])
    if verb is None:
        return []
    if word.startswith("-"):
        return ["--help", "--cfg", "-m", "--config-dir", *verb.flags]
    key, equals, value = word.partition("=")
    if equals:
        return [f"{key}={each}" for each in _values(verb, key, value, conf)]
    actions = _words(verb.config, "action") if len(typed) == 2 else ()
    return [*actions, *sorted(_keys(verb, word, conf))]


def _keys(verb: Verb, word: str, conf: Path) -> Iterator[str]:
    """Keys that begin with ``word``; a group of knobs opens with its dot."""
    known, prefix = keys_of(verb.config), word.rpartition(".")[0]
    for key, kind in known.items():
        if key.rpartition(".")[0] == prefix:
            yield f"{key}." if dataclasses.is_dataclass(kind) else f"{_typed(verb, key)}="
    if not prefix:
        yield from (f"{group}=" for group in groups_of(verb, conf))
        yield "output="


def _typed(verb: Verb, key: str) -> str:
    """The key as it is typed: ``score`` and ``impute`` take a table as ``data=``."""
    return "data" if key == "table" and verb.config in (ScoreConfig, ImputeConfig) else key


def _values(verb: Verb, key: str, value: str, conf: Path) -> Iterator[str]:
    """What ``key`` takes: names of a group, yes and no, the words of a closed list, runs, or files."""
    if key == "output":
        yield from ("text", "json", "quiet")
        return
    if key in groups_of(verb, conf):
        yield from sorted(path.stem for path in (conf / key).glob("*.yaml"))
    kind = keys_of(verb.config).get("table" if key == "data" and key != _typed(verb, key) else key)
    kind = str if key == "data" else kind
    if kind is bool:
        yield from ("false", "true")
    elif key == "run":
        yield from ("latest", *sorted(path.parent.name for path in Path("runs").glob("*/run.json"))[:MOST])
    elif kind is str:
        yield from _words(verb.config, key) or _files(value)


def _words(cls: type, key: str) -> tuple[str, ...]:
    """The closed list of words that a knob takes, told by its refusal of any other; none where it takes any text."""
    first, _, rest = key.partition(".")
    try:
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if rest:
            return _words(keys_of(cls)[first], rest)
        cls(**{fields[key].name: _IMPOSSIBLE})
    except ConfigError as error:
        listed = re.search(r"expected one of ([^;]*)", str(error))
        return tuple(listed[1].split(", ")) if listed else ()
    except (KeyError, TypeError, ValueError):
        return ()
    return ()


def _files(value: str) -> Iterator[str]:
    """Files and folders here that begin with ``value``; a folder ends with a stroke."""
    folder, _, name = value.rpartition("/")
    place = Path(folder or ("/" if value.startswith("/") else "."))
    found = sorted(path for path in place.glob(f"{name}*") if not path.name.startswith(".")) if place.is_dir() else []
    for path in found[:MOST]:
        yield f"{folder}/{path.name}"[0 if "/" in value else 1:] + ("/" if path.is_dir() else "")
