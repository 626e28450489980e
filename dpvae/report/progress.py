"""What a person sees while a run works: phase, step, noisy ELBO with its noise, epsilon spent and left, time to go.

Only released numbers are shown: no private loss ever comes here. On a terminal each phase is one line with a bar;
elsewhere a phase is one plain line when it ends, and one every five seconds while it lasts; ``json`` prints objects,
``quiet`` nothing. All of it goes to stderr. Epsilon is the price of what has been drawn so far; the whole plan is on
the ledger already.

>>> clock(7), clock(75), clock(3700)
('7 s', '1:15 min', '1:01 h')
"""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, Protocol

from dpvae.privacy.accountant import price
from dpvae.privacy.plan import Plan

EVERY = 5.0  # seconds between two plain lines, and between two prices
WIDE = 110  # columns of a terminal with room for every word
BEFORE = ("anchor", "fit", "interactions", "dream")  # phases that come before DP-SGD; those after it spend nothing


class _Moment(Protocol):
    @property
    def phase(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def metric(self) -> dict[str, Any] | None: ...


def clock(seconds: float) -> str:
    """A duration as short as it can be read."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"


def warn(style: str, text: str) -> None:
    """Say on stderr what a person should know before anything is spent; ``quiet`` says nothing."""
    if text and style != "quiet":
        print(json.dumps({"warning": text}) if style == "json" else text, file=sys.stderr, flush=True)


class Progress:
    """A context in which :meth:`listen` shows moments of training; ``style`` is one of ``config.PROGRESS``."""

    def __init__(self, style: str, plan: Plan) -> None:
        self.style = ("rich" if sys.stderr.isatty() else "plain") if style == "auto" else style
        self.plan = plan
        self.metric: dict[str, Any] | None = None
        self.metrics = 0
        self.spent: float | None = None
        self.name, self.step, self.steps = "", 0, 1
        self.started = self.shown = self.priced = time.monotonic()
        self._ended = False  # the phase has, and its last line is still to be written
        self._told: tuple[str, int, int] | None = None  # what the last line was about
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.style == "rich":
            self._bar = _bar()
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self._finish()
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str) -> None:
        """A phase without inner steps begins; :meth:`phase` ends it."""
        self._show(name, 0, 1, None)

    def phase(self, name: str, steps: int) -> None:
        """A phase without inner steps is done."""
        self._show(name, steps, steps, None)

    def listen(self, moment: _Moment) -> None:
        """Show one moment."""
        self._show(moment.phase, moment.step, moment.steps, moment.metric)

    def _show(self, name: str, step: int, steps: int, metric: dict[str, Any] | None) -> None:
        if self.style == "quiet":
            return
        if name != self.name:
            self._finish()
            self._start(name)
        news = metric is not None and metric is not self.metric
        if metric is not None and news:
            self.metric, self.metrics = metric, self.metrics + 1
        self.step, self.steps = step, max(steps, self.steps)
        if self.step >= self.steps or time.monotonic() - self.priced >= EVERY:
            self._price()
        self._ended = self.step >= self.steps
        if self.style == "rich":
            self._draw()
        elif (news and self.style == "json") or (not self._ended and time.monotonic() - self.shown >= EVERY):
            self._say()

    def _start(self, name: str) -> None:
        self.name, self.step, self.started = name, 0, time.monotonic()
        self.shown = max(self.shown, self.started)
        self.steps = self.plan.sgd.steps if name == "dpsgd" and self.plan.sgd is not None else 1
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=None, count="", said="", left="")

    def _finish(self) -> None:
        """The line of a phase that has ended, written once and with the last number that it released."""
        if self._ended and self.style == "rich":
            self._draw()
        elif self._ended:
            self._say()
        self._ended = False

    def _price(self) -> None:
        """What the releases so far cost together; never falls."""
        if self.name == "survey":
            drawn = tuple(event for event in self.plan.events() if event.phase == "survey" and self.step)
        elif self.name == "dpsgd" and self.plan.sgd is not None:
            resumed = self.plan.metric_releases  # a resumed run has heard of none; at most all have been drawn
            drawn = self.plan.events_until(min(self.step, self.plan.sgd.steps), self.metrics or resumed)
        elif self.name in BEFORE:
            drawn = self.plan.events_until(0, self.metrics) if self.name != "anchor" or self.step else ()
        else:
            drawn = self.plan.events()
        cost = price(drawn, delta=self.plan.delta, neighbouring=self.plan.neighbouring).upper if drawn else 0.0
        told = self.metric["epsilon_spent"] if self.metric is not None else 0.0
        self.spent = max(self.spent or 0.0, cost, told)
        self.priced = time.monotonic()

    # -- words -------------------------------------------------------------------------------------------------------

    def _said(self, *, wide: bool) -> str:
        """The noisy ELBO, where one was released, and epsilon."""
        left = max(self.plan.target_epsilon - (self.spent or 0.0), 0.0)
        said = f"epsilon {self.spent or 0.0:.3f} spent, {left:.3f} left" if wide else (
            f"eps {self.spent or 0.0:.3f}, {left:.3f} left")
        if self.metric is None:
            return said
        elbo = f"{self.metric['noisy_elbo']:.2f} +-{self.metric['sd']:.2f}"
        unit = self.metric.get("unit", "nats per row")
        return f"noisy ELBO {elbo} {unit}, {said}" if wide else f"ELBO {elbo}, {said}"

    def _time(self) -> str:
        """Time to go, or the time it took."""
        elapsed = time.monotonic() - self.started
        if self.step >= self.steps:
            return f"took {clock(elapsed)}"
        return f"{clock(elapsed / self.step * (self.steps - self.step))} to go" if self.step else ""

    def _say(self) -> None:
        """One line, unless it would repeat the last one."""
        about = self.name, self.step, self.metrics
        if about == self._told:
            return
        told = self._told[2] if self._told else 0
        text = self._object(news=self.metrics > told) if self.style == "json" else self._line()
        print(text, file=sys.stderr, flush=True)
        self.shown, self._told = time.monotonic(), about

    def _line(self) -> str:
        return f"{self.name:12}{self._count():>9}  {self._said(wide=True)}, {self._time()}"

    def _count(self) -> str:
        return f"{self.step}/{self.steps}" if self.steps > 1 else ""

    def _object(self, *, news: bool) -> str:
        return json.dumps({"phase": self.name, "step": self.step, "steps": self.steps,
                           "metric": self.metric if news else None,
                           "epsilon_spent": self.spent, "epsilon_target": self.plan.target_epsilon,
                           "seconds": round(time.monotonic() - self.started, 3)})

    def _draw(self) -> None:
        wide = self._bar.console.width >= WIDE
        self._bar.update(self._task, completed=self.step, total=self.steps if self.step else None,
                         count=self._count(), said=self._said(wide=wide), left=self._time().removeprefix("took "))


def _bar() -> Any:
    """A line per phase that fits the terminal: the bar gives way first."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    return Bar(TextColumn("{task.description:6}"), BarColumn(20 if console.width >= WIDE else 5),
               TextColumn("{task.fields[count]}", justify="right"), TextColumn("{task.fields[said]}"),
               TextColumn("{task.fields[left]}", justify="right"), console=console)
