"""``dpvae VERB --help``: the groups to choose from, and every knob with its default and what it means.

It is read off ``conf/`` as it stands, comments and all, so it needs no Hydra and cannot differ from what runs.

>>> aligned("rows: null # about how many")
'rows: null                        about how many'
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from dpvae.command.verbs import Verb

WIDE = 34  # letters of a knob and its default, before the words
_TYPED = re.compile(r"^\w+: (\S+) # typed (\w+)=: ")
_TOP = re.compile(r"^([A-Za-z_]+):")
_HIDDEN = ("defaults", "hydra")


def page(word: str, verb: Verb, conf: Path, groups: Iterable[str]) -> str:
    """The help of one verb; ``conf`` is the folder of configurations, ``groups`` those that it composes."""
    words = [f"[{key}=]{key.upper()}" for key in verb.positional]
    words += ["ACTION [NAME]"] if hasattr(verb.config, "action") else []
    typed = " ".join([f"dpvae {word}", *words, "[key=value ...]"])
    flags = [f"  {flag}" for flag in verb.flags]
    examples = [f"  dpvae {word} {example}".rstrip() for example in verb.examples]
    lines = [f"dpvae {word}: {verb.says}", "", f"usage: {typed}", *flags, "", "For example", *examples, ""]
    chosen = _defaults(conf / f"{word}.yaml")
    known = [group for group in chosen if group in set(groups)] + sorted(set(groups) - set(chosen))
    if known:
        choices = [_choices(conf, group, chosen) for group in known]
        lines += ["Choices (group=name; the first is the default)", *choices, ""]
    lines += ["Knobs and their defaults (key=value)" if not known else "Knobs and their defaults (group.key=value)"]
    for group in known:
        if chosen.get(group):
            lines += [f"{group}:", *(aligned(f"  {line}") for line in _body(conf / group / f"{chosen[group]}.yaml"))]
            lines += _more(conf, group, str(chosen[group]))
    lines += [aligned(line) for line in _body(conf / f"{'train' if word == 'plan' else word}.yaml")]
    return "\n".join([*lines, "", "-m one run per value of key=a,b,c | --cfg job print the configuration | "
                      "--config-dir DIR your own conf files",
                      "output=json the answer on one line, for a program | output=quiet the exit code alone",
                      "Values of text knobs are taken literally."])


def aligned(line: str) -> str:
    """A line of YAML, its comment in a column of its own; what is typed by another name stands under that."""
    knob, mark, words = _TYPED.sub(r"\2: \1 # ", line).partition(" # ")
    return f"{knob:{WIDE}}{words}".rstrip() if mark else line


def _more(conf: Path, group: str, first: str) -> list[str]:
    """The knobs that only other choices of a group have, under the name of the choice."""
    shown = {_key(line) for line in _body(conf / group / f"{first}.yaml")}
    lines: list[str] = []
    for path in sorted((conf / group).glob("*.yaml")):
        own = [line for line in _body(path) if _key(line) not in shown]
        lines += [f"  with {group}={path.stem}:", *(aligned(f"    {line}") for line in own)] if own else []
    return lines


def _key(line: str) -> str:
    return line.partition(":")[0]


def _choices(conf: Path, group: str, chosen: dict[str, str | None]) -> str:
    names = sorted(path.stem for path in (conf / group).glob("*.yaml"))
    first = chosen.get(group)
    if first:
        names = [first, *(name for name in names if name != first)]
    return f"  {group}: {', '.join(names)}"


def _defaults(path: Path) -> dict[str, str | None]:
    """Group -> the choice that is taken where nothing is said."""
    found: dict[str, str | None] = {}
    for item in yaml.safe_load(path.read_text()).get("defaults", ()):
        if isinstance(item, str) and item != "_self_":
            found |= _defaults(path.with_name(f"{item}.yaml"))
        elif isinstance(item, dict):
            found |= {group: name for group, name in item.items() if not group.startswith("override ")}
    return found


def _body(path: Path) -> list[str]:
    """The lines of a file of ``conf/`` that hold knobs."""
    kept, hidden = [], False
    for line in path.read_text().splitlines():
        if top := _TOP.match(line):
            hidden = top[1] in _HIDDEN
        if not hidden and line.strip() and not line.startswith("#"):
            kept.append(line)
    return kept
