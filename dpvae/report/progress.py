"""What a person sees while a run works: phase, step, noisy ELBO with its noise, epsilon spent and left, time to go.

Only released numbers are shown: the bar never sees a private loss. On a terminal it is a bar; elsewhere plain lines;
``json`` prints one object per line; ``quiet`` prints nothing. All of it goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, Protocol

from dpvae.privacy.plan import Plan

LINES_EVERY = 5.0  # seconds between plain lines of one phase


class _Moment(Protocol):
    @property
    def phase(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def metric(self) -> dict[str, Any] | None: ...


class Progress:
    """A context in which :meth:`listen` shows moments of training; ``style`` is one of ``config.PROGRESS``."""

    def __init__(self, style: str, plan: Plan) -> None:
        self.style = ("rich" if sys.stderr.isatty() else "plain") if style == "auto" else style
        self.target = plan.target_epsilon
        self.metric: dict[str, Any] | None = None
        self.name, self.started, self.shown = "", time.monotonic(), 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.style == "rich":
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(TextColumn("{task.description:10}"), BarColumn(24), TextColumn("{task.completed}/{task.total}"),
                            TextColumn("{task.fields[said]}"), TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str, steps: int) -> None:
        """A phase without inner steps is done."""
        self._show(name, steps, steps, None)

    def listen(self, moment: _Moment) -> None:
        """Show one moment."""
        self._show(moment.phase, moment.step, moment.steps, moment.metric)

    def _show(self, name: str, step: int, steps: int, metric: dict[str, Any] | None) -> None:
        if metric is not None:
            self.metric = metric
        fresh = name != self.name
        if fresh:
            self.name, self.started, self.shown = name, time.monotonic(), 0.0
        if self.style == "rich":
            self._draw(fresh, step, steps)
        elif self.style == "json" and (metric is not None or self._due(step, steps)):
            self._print(json.dumps({"phase": name, "step": step, "steps": steps, "metric": metric}))
        elif self.style == "plain" and (metric is not None or self._due(step, steps)):
            self._print(f"{name:10}{step:>6}/{steps}  {self._said()}{self._to_go(step, steps)}")

    def _draw(self, fresh: bool, step: int, steps: int) -> None:
        if fresh:
            self._task = self._bar.add_task(self.name, total=steps, said="")
        self._bar.update(self._task, completed=step, total=steps, said=self._said())

    def _due(self, step: int, steps: int) -> bool:
        now = time.monotonic()
        if step < steps and now - max(self.shown, self.started) < LINES_EVERY:
            return False
        self.shown = now
        return True

    def _said(self) -> str:
        if self.metric is None:
            return f"epsilon {self.target:g} reserved"
        spent = self.metric["epsilon_spent"]
        return (f"noisy ELBO {self.metric['noisy_elbo']:.2f} +-{self.metric['sd']:.2f} nats per row, "
                f"epsilon {spent:.2f} spent, {max(self.target - spent, 0):.2f} left")

    def _to_go(self, step: int, steps: int) -> str:
        if not 0 < step < steps:
            return ""
        left = (time.monotonic() - self.started) / step * (steps - step)
        return f", {left:.0f} s to go"

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
