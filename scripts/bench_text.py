#!/usr/bin/env python3
"""Texts: how close, how useful, how private, how fast. Writes reports/bench/text.json and text.md.

    python scripts/bench_text.py data=../shared/data/text seeds=3    # resume=true: go on where it stopped

Names at epsilon 1 and 3, queries with ten domains at 3, 8 and without noise, messages at 3; each beside a baseline: a
bigram model without privacy, the majority, noisy words by label, a classifier trained on the real texts. Then secrets
are planted, and looked for.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dpvae import api
from dpvae.config import DataConfig, PrivacyConfig, ReportConfig, RunConfig, TrainConfig
from dpvae.evaluate import texts as judges
from dpvae.modalities.text import made_up
from dpvae.privacy.accountant import calibrate, price
from dpvae.privacy.events import Gaussian
from dpvae.privacy.plan import default_delta

Pairs = tuple[list[str], list[str]]
PARTS = ("names", "queries", "messages", "secrets")
SECRETS, COPIES, OUTSIDERS = 20, (1, 4, 16), 1000


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def tsv(path: Path, text: int, label: int) -> Pairs:
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [row[text] for row in rows], [row[label] for row in rows]


def trained(columns: dict[str, list[str]], data: dict[str, Any], epsilon: float | None, seed: int, folder: Path,
            ) -> tuple[Any, dict[str, Any]]:
    """A run on ``columns`` (epsilon ``None``: without noise), and what it cost."""
    rows = len(columns[data["text"]])
    start = cpu_seconds()
    config = TrainConfig(
        data=DataConfig(kind="text", **data), report=ReportConfig(progress="quiet"),
        privacy=PrivacyConfig(epsilon=epsilon or 1.0, noise=epsilon is not None),
        run=RunConfig(root=str(folder), name=f"{data['text']}-{epsilon}-{seed}-{rows}", seed=seed))
    run = api.train(config, columns)
    trained_in = cpu_seconds() - start
    start = cpu_seconds()
    drawn = made_up(run.path / "public", rows, seed=seed)
    speed = rows / (cpu_seconds() - start)
    metric = json.loads((run.path / "public" / "metrics.jsonl").read_text().splitlines()[0])
    latent = json.loads((run.path / "public" / "latent.json").read_text())
    size = (run.path / "public" / "model.safetensors").stat().st_size
    return (run, drawn), {"train_cpu_s": trained_in, "texts_per_cpu_s": speed, "model_bytes": size,
                          "delta": run.plan.delta, "noisy_elbo": metric["noisy_elbo"], "rate": latent["rate"],
                          "active_units": latent["active_units"],
                          "latent_gain": latent["reconstruction"] - latent["unconditional"]}


def characters(real: Sequence[str], drawn: Sequence[str]) -> dict[str, float]:
    js = {f"js_{n}": judges.jensen_shannon(judges.sequences(real, n), judges.sequences(drawn, n))
          for n in judges.ORDERS}
    return js | {"length_tvd": judges.total_variation(Counter(map(len, real)), Counter(map(len, drawn))),
                 "copies": judges.copies(real, drawn)}


def bigram_model(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Texts of a bigram model without any privacy."""
    after: dict[str, Counter[str]] = {}
    for text in texts:
        for a, b in zip("\x02" + text, text + "\x03", strict=True):
            after.setdefault(a, Counter())[b] += 1
    table = {a: (list(c), np.cumsum(list(c.values())) / sum(c.values())) for a, c in after.items()}
    found = []
    for _ in range(count):
        text, last = "", "\x02"
        while len(text) < 100:
            letters, edges = table[last]
            last = letters[int(np.searchsorted(edges, rng.random()))]
            if last == "\x03":
                break
            text += last
        found.append(text)
    return found


def noisy_words(real: Pairs, words: Sequence[str], epsilon: float, delta: float, count: int,
                rng: np.random.Generator) -> Pairs:
    """The baseline: noisy counts of public words by label with the whole budget, where they exceed three times their
    noise."""
    signal = calibrate(lambda s: (Gaussian("anchor", "words by label", 1 / s),), epsilon=epsilon, delta=delta)
    number, labels = {word: i for i, word in enumerate(words)}, sorted(set(real[1]))
    held = [Counter(number[w] for (w,) in judges.words([text]) if w in number) for text in real[0]]
    bound = math.sqrt(np.mean([sum(c.values()) for c in held]))
    table = np.zeros((len(labels), len(words)))
    for counts, label in zip(held, real[1], strict=True):
        values = np.array(list(counts.values()), dtype=float)
        scale = min(1.0, bound / max(float(np.linalg.norm(values)), 1e-9))
        table[labels.index(label), list(counts)] += values * scale
    sd = bound / signal
    table += sd * rng.normal(size=table.shape)
    table = np.where(table > 3 * sd, table, 0.0) + 1e-9
    lengths = [max(sum(c.values()), 1) for c in held]
    about = rng.choice(len(labels), count, p=np.bincount([labels.index(x) for x in real[1]]) / len(real[1]))
    texts = [" ".join(words[i] for i in rng.choice(len(words), rng.choice(lengths), p=table[k] / table[k].sum()))
             for k in about]
    return texts, [labels[k] for k in about]


def useful(real: Pairs, drawn: Pairs, test: Pairs, label: str) -> dict[str, Any]:
    found = judges.text_utility(real, drawn, test, label, seed=0)
    return {"accuracy": found.accuracy, "ceiling": found.ceiling, "majority": found.majority, "auc": found.auc,
            "auc_ceiling": found.auc_ceiling}


def accuracy(learnt: Pairs, test: Pairs, *, without: str) -> float:
    """On real test texts, of a classifier that learnt from ``learnt``; one label is left out of both."""
    (texts, labels), (asked, told) = (([t for t, k in zip(*part, strict=True) if k != without],
                                       [k for k in part[1] if k != without]) for part in (learnt, test))
    return float(np.mean(judges.classifier(texts, labels, seed=0).predict(asked) == np.array(told)))


def names(folder: Path, data: Path, seed: int) -> dict[str, Any]:
    real = [line for line in (data / "names.txt").read_text().splitlines() if line]
    bigrams = bigram_model(real, len(real), np.random.default_rng(seed))
    found: dict[str, Any] = {"bigram model, not private": characters(real, bigrams)}
    for epsilon in (1.0, 3.0):
        known = {"text": "name", "cap": 16, "rows": len(real)}
        (_, drawn), cost = trained({"name": real}, known, epsilon, seed, folder)
        found[f"epsilon {epsilon:g}"] = characters(real, drawn["name"]) | cost
    return found


def queries(folder: Path, data: Path, seed: int) -> dict[str, Any]:
    from dpvae.data.language import Language

    real, test = (tsv(data / f"clinc150_{part}.tsv", 2, 0) for part in ("train", "test"))
    real, test = tuple(part[1:] for part in real), tuple(part[1:] for part in test)  # type: ignore[assignment]
    columns, rows = {"query": real[0], "domain": real[1]}, len(real[0])
    known = {"text": "query", "label": "domain", "rows": rows, "labels": "|".join(sorted(set(real[1])))}
    found: dict[str, Any] = {"real texts": {"accuracy": accuracy(real, test, without="oos")}}
    for epsilon in (3.0, 8.0, None):
        (_, drawn), cost = trained(columns, known, epsilon, seed, folder)
        name = f"epsilon {epsilon:g}" if epsilon else "no noise"
        found[name] = {"accuracy": accuracy((drawn["query"], drawn["domain"]), test, without="oos"),
                       **characters(real[0], drawn["query"]), **cost}
        if epsilon:
            alone = noisy_words(real, Language.of(None).words, epsilon, default_delta(rows), rows,
                                np.random.default_rng(seed))
            found[name]["noisy_words_accuracy"] = accuracy(alone, test, without="oos")
    return found


def messages(folder: Path, data: Path, seed: int) -> dict[str, Any]:
    texts, kinds = tsv(data / "sms_spam.tsv", 1, 0)
    order = np.random.default_rng(0).permutation(len(texts))
    cut = len(texts) * 4 // 5
    real, test = (([texts[i] for i in part], [kinds[i] for i in part]) for part in (order[:cut], order[cut:]))
    known = {"text": "message", "label": "kind", "labels": "ham|spam", "rows": cut}
    (_, drawn), cost = trained({"message": real[0], "kind": real[1]}, known, 3.0, seed, folder)
    longest = max(len(text.encode()) for text in drawn["message"])
    return {"epsilon 3": characters(real[0], drawn["message"]) | {"longest_bytes": longest} | cost
            | useful(real, (drawn["message"], drawn["kind"]), test, "kind")}


def secrets(folder: Path, data: Path, seed: int) -> dict[str, Any]:
    """Codes that were planted 1, 4 and 16 times, against codes that were not: which does the model find likelier?"""
    from dpvae.release.texts import TextModel

    real = tuple(part[1:] for part in tsv(data / "clinc150_train.tsv", 2, 0))
    codes = np.random.default_rng(seed + 100).permutation(np.arange(1000, 10_000))
    planted = {k: codes[i * SECRETS:(i + 1) * SECRETS] for i, k in enumerate(COPIES)}
    outside = codes[-OUTSIDERS:]
    say = "my code is {}".format
    texts = [*real[0], *(say(code) for k in COPIES for code in planted[k] for _ in range(k))]
    labels = [*real[1], *["banking"] * (len(texts) - len(real[0]))]
    known = {"text": "query", "label": "domain", "rows": len(texts), "labels": "|".join(sorted(set(labels)))}
    (run, _), _ = trained({"query": texts, "domain": labels}, known, 3.0, seed, folder)
    model = TextModel.load(run.path / "public")

    def likelihood(these: Any) -> np.ndarray:
        return model.log_prob([say(code) for code in these], model.label_numbers(["banking"] * len(these)), samples=4,
                              seed=0)

    held, rng = likelihood(outside), np.random.default_rng(0)
    found: dict[str, Any] = {}
    for k in COPIES:
        rank = np.array([(held >= value).sum() + 1 for value in likelihood(planted[k])])
        exposure = math.log2(OUTSIDERS + 1) - np.log2(rank)
        means = [rng.choice(exposure, SECRETS).mean() for _ in range(2000)]
        found[f"{k} copies"] = {"exposure_bits": float(exposure.mean()),
                                "interval": [float(x) for x in np.quantile(means, [0.025, 0.975])]}
    chance = math.log2(OUTSIDERS + 1) - np.log2(np.arange(1, OUTSIDERS + 2))
    found["non-members"] = {"exposure_bits": float(chance.mean())}
    group = [replace(event, noise_multiplier=event.noise_multiplier / max(COPIES)) for event in run.plan.events()]
    found["epsilon of 16 copies"] = price(group, delta=run.plan.delta).upper
    return found


def median(results: list[Any]) -> Any:
    """Of numbers at the same place of several results."""
    if isinstance(results[0], dict):
        return {name: median([result[name] for result in results]) for name in results[0]}
    if isinstance(results[0], list):
        return [median(list(values)) for values in zip(*results, strict=True)]
    return None if results[0] is None else statistics.median(results)


def table(found: dict[str, Any], counted: dict[str, int]) -> str:
    lines = []
    for part, rows in found.items():
        lines += ["", f"## {part} ({counted[part]} seeds)", ""]
        for name, values in rows.items():
            shown = values.items() if isinstance(values, dict) else [("", values)]
            lines.append(f"- **{name}**: " + ", ".join(
                f"{key} {value:.4g}" if isinstance(value, (int, float)) else f"{key} {value}" for key, value in shown
                if value is not None))
    return "\n".join(lines)


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    data, seeds = Path(given.get("data", "../shared/data/text")), int(given.get("seeds", 1))
    wanted = given["parts"].split(",") if "parts" in given else list(PARTS)
    out = Path(given.get("to", "reports/bench/text.json"))
    command = f"python scripts/bench_text.py data={data} seeds={seeds}"
    held = json.loads(out.read_text()) if out.exists() and given.get("resume") == "true" else {}
    runs: dict[str, list[Any]] = held.get("runs", {})
    for part in wanted:
        for seed in range(len(runs.setdefault(part, [])), seeds):
            with tempfile.TemporaryDirectory() as folder:
                runs[part].append(globals()[part](Path(folder), data, seed))
            found = {name: median(runs[name]) for name in PARTS if runs.get(name)}
            counted = {name: len(runs[name]) for name in found}
            out.write_text(json.dumps({"command": command, "seeds": counted, **found, "runs": runs}, indent=1) + "\n")
            told = f"`{command}`: medians over the seeds of each part\n{table(found, counted)}\n"
            out.with_suffix(".md").write_text(told)


if __name__ == "__main__":
    main()
