"""What a person types, turned into overrides Hydra reads the way they were meant.

Hydra's grammar gives commas, equal signs and braces a meaning; a file name or a column name has no grammar. So every
value of a *text* knob is quoted here, ``data=VALUE`` is read as a file or as the name of a config, and a key that does
not exist is refused before anything is composed. Pure text: nothing here imports Hydra.

>>> rewrite(["data=my table=2, final.csv", "privacy.epsilon=3"], TrainConfig, groups={"data"})
['data=file', "data.path='my table=2, final.csv'", 'privacy.epsilon=3']
>>> rewrite(["data=adult"], TrainConfig, groups={"data"})
['data=adult']
>>> rewrite(["privacy.epsilom=3"], TrainConfig, groups=set())
Traceback (most recent call last):
    ...
dpvae.errors.ConfigError: privacy.epsilom=3: no such key; did you mean 'privacy.epsilon'?
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import typing
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from dpvae.checks import did_you_mean, one_of
from dpvae.config import LONGEST_NAME, LakeConfig, LedgerVerbConfig, TrainConfig, VerbConfig
from dpvae.errors import ConfigError

_OVERRIDE = re.compile(r"(?P<sign>\+{0,2})(?P<key>[A-Za-z_][^=\s]*)=(?P<value>.*)", re.DOTALL)
_TABLES = (".csv", ".parquet", ".pq")
_FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag)\s*\(.*\)\s*", re.DOTALL)
_PLAIN = re.compile(r"[^A-Za-z0-9._=+,-]")

_COUNTS = ("no", "one", "two")

Choices = tuple[str, ...]
_ANY: Choices = ("...",)
FLAGS: dict[str, Choices] = {  # Hydra's own flags, and the values one takes
    **dict.fromkeys(("--help", "-h", "--hydra-help", "--resolve", "--run", "-r", "--multirun", "-m"), ()),
    **dict.fromkeys(("--shell-completion", "-sc"), ()),
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    **dict.fromkeys(("--package", "-p", "--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"), _ANY),
}


def split_flags(arguments: Sequence[str], *, also: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """Hydra's flags (as ``--flag=value``) and the rest, in any order; an unknown flag is refused.

    ``also`` are flags of the verb, taken off before and named in hints.

    >>> split_flags(["a=1", "--cfg", "job", "b=2", "-m"])
    (['--cfg=job', '-m'], ['a=1', 'b=2'])
    """
    flags: list[str] = []
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("-") or argument == "-":
            rest.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in FLAGS:
            raise ConfigError(f"{argument}: no such flag{did_you_mean(name, [*FLAGS, *also]) or '; try --help'}")
        if FLAGS[name] and not equals:
            value = queue.pop(0) if queue else ""
        if value not in FLAGS[name] and (FLAGS[name] is not _ANY or not value) and (FLAGS[name] or equals):
            raise ConfigError(f"{name} {value}: expected {' | '.join(FLAGS[name]) or 'no value'} after {name}")
        flags.append(f"{name}={value}" if FLAGS[name] else name)
    return flags, rest


def keys_of(cls: type, prefix: str = "") -> dict[str, type]:
    """Every dotted key of a config class with its type; groups of keys are keys too.

    >>> keys_of(TrainConfig)["privacy.epsilon"], keys_of(TrainConfig)["data.path"]
    (<class 'float'>, <class 'str'>)
    """
    hints = typing.get_type_hints(cls)
    keys: dict[str, type] = {}
    for field in dataclasses.fields(cls):
        options = [k for k in typing.get_args(hints[field.name]) if k is not type(None)]
        kind = options[0] if options else hints[field.name]
        keys[prefix + field.name] = kind
        if dataclasses.is_dataclass(kind):
            keys |= keys_of(typing.cast(type, kind), f"{prefix}{field.name}.")
    return keys


def nearest_key(key: str, known: Collection[str]) -> str:
    """The hint for a key that does not exist: a near spelling in its group, or the same word in another.

    >>> nearest_key("epsilon", ["data", "privacy.epsilon", "ledger.cap_epsilon"])
    "; did you mean 'privacy.epsilon'?"
    """
    group, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if group and name.rpartition(".")[0] == group}
    elsewhere = {name.rpartition(".")[2]: name for name in known}
    for names in (siblings, elsewhere):
        if near := difflib.get_close_matches(last, names, n=1):
            return f"; did you mean {names[near[0]]!r}?"
    return f"; {group} has {', '.join(siblings)}" if siblings else "; --help lists them all"


def quote(text: str) -> str:
    r"""``text`` as a quoted string of Hydra's grammar, in which it means itself.

    >>> print(quote("a=b, c"), quote("it's"), quote("C:\\"))
    'a=b, c' 'it\'s' 'C:\\'
    """
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"


def is_location(value: str) -> bool:
    """Whether a value of ``data=`` names a file or a URI; a bare word names a config.

    >>> [is_location(v) for v in ("adult", "orders.csv", "./orders", "lake:orders", "s3://b/k")]
    [False, True, True, True, True]
    """
    return any(mark in value for mark in "/\\.:") or Path(value).is_file()


def _text(value: str, *, sweep: bool) -> str:
    """The value of a text knob, quoted; in a sweep, each of its comma-separated values is."""
    if value in ("", "null") or value.startswith("${") or (value[0] == value[-1] and value[0] in "'\"" and value[1:]):
        return value
    if sweep and _FUNCTION.fullmatch(value):
        return value
    parts = value.split(",") if sweep and not os.path.exists(value) else [value]
    return ",".join(quote(os.path.expanduser(part) if part.startswith("~/") else part) for part in parts)


def _data(value: str, *, sweep: bool) -> list[str]:
    """``data=VALUE``: a config of that name, or ``data=file data.path=VALUE``."""
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    if not bare or (sweep and _FUNCTION.fullmatch(value)):
        return [f"data={value}"]
    parts = bare.split(",") if sweep and not Path(bare).is_file() else [bare]
    located = [is_location(part) for part in parts]
    if not any(located):
        return [f"data={value}"]
    if not all(located):
        raise ConfigError(f"data={value}: expected files or names of configs in one sweep, not both")
    return ["data=file", "data.path=" + (_text(bare, sweep=sweep) if bare is value else value)]


def rewrite(arguments: Iterable[str], cls: type[VerbConfig], *, groups: Collection[str],
            sweep: bool = False) -> list[str]:
    """The overrides Hydra gets for what was typed; refuses what is no override or names no key of ``cls``."""
    known = keys_of(cls)
    names = dict.fromkeys([*known, *sorted(groups)])
    overrides: list[str] = []
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if argument.startswith("~") and not argument.startswith("~/"):
            overrides.append(argument)  # Hydra's deletion of a key
            continue
        if match is None:
            table = "data" in groups and (argument.endswith(_TABLES) or os.path.exists(argument))
            hint = f"; did you mean data={argument}?" if table else ", such as privacy.epsilon=1"
            raise ConfigError(f"{argument}: expected key=value{hint}")
        sign, key, value = match["sign"], match["key"], match["value"]
        if key.startswith(("hydra.", "hydra/")) or (sign and "." not in key and key not in names):
            overrides.append(argument)
        elif key not in names:
            raise ConfigError(f"{argument}: no such key{nearest_key(key, names)}")
        elif dataclasses.is_dataclass(known.get(key)) and (key not in groups or value in ("", "null")):
            inside = [name for name in known if name.startswith(f"{key}.")]
            raise ConfigError(f"{argument}: expected one of {', '.join(inside)}, or the name of a config for a group")
        elif key == "data" and "data" in groups:
            overrides += _data(value, sweep=sweep)
        else:
            text = known.get(key) is str and key not in groups
            overrides.append(f"{sign}{key}={_text(value, sweep=sweep) if text else value}")
    return overrides


def literal(arguments: Iterable[str], cls: type[VerbConfig]) -> dict[str, str | None] | None:
    """What was typed, where it needs no grammar to be read: every knob is text, and every word names one and means
    itself. ``None`` where Hydra has to read it; loading Hydra costs more than verifying a release.

    >>> from dpvae.config import SampleConfig, VerifyConfig
    >>> literal(["folder=out/eps=1", "key=null"], VerifyConfig)
    {'folder': 'out/eps=1', 'key': None}
    >>> literal(["folder=${oc.env:HOME}"], VerifyConfig), literal(["rows=9"], SampleConfig)
    (None, None)
    """
    known, found = keys_of(cls), dict[str, str | None]()
    if set(known.values()) != {str}:
        return None
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in known or "${" in value or (value != "null" and value == _text(value, sweep=False)):
            return None
        found[key] = None if value == "null" else os.path.expanduser(value) if value.startswith("~/") else value
    return found


def unnamed(arguments: Sequence[str], cls: type[VerbConfig], keys: Sequence[str], verb: str) -> list[str]:
    """Values that stand without their key: ``verify FOLDER`` as ``verify folder=FOLDER``, ``compare A B``.

    A folder's name may hold an equal sign.

    >>> from dpvae.config import VerifyConfig
    >>> unnamed(["out/eps=1", "format=json"], VerifyConfig, ("folder",), "verify")
    ['folder=out/eps=1', 'format=json']
    """
    known, waiting = keys_of(cls), list(keys)

    def bare(argument: str) -> bool:
        key, equals, _ = argument.partition("=")
        typed_key = argument.startswith(("+", "hydra.", "hydra/")) or (bool(equals) and key in known)
        return not typed_key and (not equals or "/" in key or os.path.exists(argument))

    if not keys:
        return list(arguments)
    found, before = [], ""
    for argument in arguments:
        if not bare(argument):
            found.append(argument)
        elif waiting:
            found.append(f"{waiting.pop(0)}={argument}")
            before = argument
        else:
            each = f"; {verb} them one by one" if len(keys) == 1 else ""
            raise ConfigError(f"{argument}: expected {_COUNTS[len(keys)]} {keys[0] if len(keys) == 1 else 'names'}, "
                              f"after {before}{each}")
    return found


def output_of(arguments: Sequence[str], cls: type[VerbConfig]) -> tuple[list[str], str]:
    """``output=text|json|quiet`` taken off: it says how an answer is printed, and is no knob of a verb.

    >>> from dpvae.config import ReleaseConfig
    >>> output_of(["run=first", "output=json"], ReleaseConfig)
    (['run=first'], 'json')
    >>> output_of(["output=quiet"], TrainConfig)
    (['report.progress=quiet'], 'quiet')
    """
    if "output" in keys_of(cls):
        return list(arguments), "text"
    rest = [word for word in arguments if not word.startswith("output=")]
    styles = [word.removeprefix("output=") for word in arguments if word.startswith("output=")]
    style = styles[-1] if styles else "text"
    one_of(("text", "json", "quiet"), output=style)
    if style != "text" and cls is TrainConfig and not any(word.startswith("report") for word in rest):
        rest.append(f"report.progress={style}")
    if style == "json" and _prints_json(cls) and not any(word.startswith("format=") for word in rest):
        return [*rest, "format=json"], "text"
    return rest, style


def _prints_json(cls: type[VerbConfig]) -> bool:
    """Whether a verb's own ``format`` knob is about its answer, text or JSON."""
    return any(field.name == "format" and field.default == "text" for field in dataclasses.fields(cls))


def action_first(arguments: Sequence[str]) -> list[str]:
    """``ledger cap census`` as ``ledger action=cap ledger.dataset=census``; what follows depends on the action.

    >>> action_first(["cap", "census", "epsilon=3"])
    ['action=cap', 'ledger.dataset=census', 'epsilon=3']
    >>> action_first(["export", "book.jsonl"])
    ['action=export', 'file=book.jsonl']
    """
    known = keys_of(LedgerVerbConfig)
    words = [word for word in arguments if word.partition("=")[0].lstrip("+") not in known
             and not word.startswith(("hydra.", "hydra/"))]
    plain = [word for word in words if "=" not in word or words.index(word) > 0]
    if len(plain) > 2:
        raise ConfigError(f"{plain[2]}: expected one action and one name, after {' '.join(plain[:2])}")
    action = plain[0] if plain else "show"
    second = "file" if action in ("check", "export") else "ledger.dataset"
    keys = dict(zip(plain, ("action", second), strict=False))
    return [f"{keys.pop(word)}={word}" if word in keys else word for word in arguments]


def lake_first(arguments: Sequence[str]) -> list[str]:
    """``lake copy a.csv to=iceberg:shop.orders`` as ``lake action=copy table=a.csv to=...``.

    >>> lake_first(["init", "warehouse"])
    ['action=init', 'table=warehouse']
    """
    known = keys_of(LakeConfig)
    words = [word for word in arguments if word.partition("=")[0].lstrip("+") not in known
             and not word.startswith(("hydra.", "hydra/"))]
    if len(words) > 2:
        raise ConfigError(f"{words[2]}: expected an action and one place, after {' '.join(words[:2])}")
    keys = dict(zip(words, ("action", "table"), strict=False))
    return [f"{keys.pop(word)}={word}" if word in keys else word for word in arguments]


def table_named(arguments: Sequence[str]) -> list[str]:
    """``data=TABLE`` as ``table=TABLE``, where a table is a plain file and no group of knobs.

    >>> table_named(["data=orders.csv", "run=first"])
    ['table=orders.csv', 'run=first']
    """
    return [f"table={word.removeprefix('data=')}" if word.startswith("data=") else word for word in arguments]


def given_gathered(arguments: Sequence[str]) -> list[str]:
    """Every ``given.COLUMN=VALUE`` in one JSON value, since a column may be called anything.

    >>> given_gathered(["rows=9", "given.sex=Female", "given.age=30..40"])
    ['rows=9', 'given={"sex": "Female", "age": "30..40"}']
    """
    held = {key: None if value == "null" else value for key, _, value in
            (word.removeprefix("given.").partition("=") for word in arguments if word.startswith("given."))}
    rest = [word for word in arguments if not word.startswith("given.")]
    if held and any(word.startswith("given=") for word in rest):
        raise ConfigError("given=: expected a table of partial rows, or given.COLUMN=VALUE, not both")
    return [*rest, f"given={json.dumps(held, ensure_ascii=False)}"] if held else rest


def job_name(base: str, swept: Iterable[str]) -> str:
    """The run name of one job of a sweep: the same command gives the same names, so that it can be resumed.

    >>> job_name("adult1", ["privacy.epsilon=3"])
    'adult1-privacy.epsilon=3'
    """
    label = ",".join(swept)
    plain = _PLAIN.sub("_", label.replace("'", "").replace('"', ""))
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    room = LONGEST_NAME - len(base) - len(digest) - 2
    unclear = plain != label.replace("'", "").replace('"', "") or len(plain) > room
    return f"{base}-{plain[:max(room, 0)]}-{digest}" if unclear else f"{base}-{plain}"
