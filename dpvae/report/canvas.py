"""A sheet of SVG to draw on: enough for small charts, and nothing that needs a script or a font.

Colours are CSS classes, so one drawing serves light, dark and paper. Every drawing has a title and a description
that a screen reader speaks; the numbers stand in a table behind it (:mod:`dpvae.report.html`).

>>> Canvas(20, 10).rect(0, 0, 5, 5, "c0").svg("demo", "Demo", "A square.")[:24]
'<svg class="chart" viewB'
"""

from __future__ import annotations

import math
from html import escape

STYLE = """
:root{--bg:#fff;--panel:#f6f8fa;--ink:#1a2027;--muted:#52606d;--grid:#d8dee4;--bar:#7fb2d9;--mark:#12344f;
--c0:#0969a8;--c1:#b35900;--c2:#2a7d4f;--c3:#8a4fa3;--c4:#7a6a00;--c5:#a33b4b}
@media (prefers-color-scheme:dark){:root{--bg:#0f1419;--panel:#182029;--ink:#e6edf3;--muted:#a3b1bf;--grid:#303b47;
--bar:#2f6f9f;--mark:#f2d9a6;--c0:#58b0ea;--c1:#f0a35e;--c2:#66c78f;--c3:#c79bdb;--c4:#d2c04d;--c5:#ea8a97}}
svg.chart{font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;font-size:11px}
.t{fill:var(--ink)}.m{fill:var(--muted)}.h{fill:var(--ink);font-weight:600;font-size:12px}
.grid{stroke:var(--grid);stroke-width:1}.axis{stroke:var(--muted);stroke-width:1}
.dash{stroke:var(--muted);stroke-width:1.5;stroke-dasharray:4 3;fill:none}
.bar{fill:var(--bar)}.soft{fill:var(--bar);opacity:.35}
.whisker{stroke:var(--mark);stroke-width:1.3;fill:none}.dot{fill:var(--mark);stroke:var(--bg);stroke-width:.8}
.line{fill:none;stroke:var(--c0);stroke-width:2}.bg{fill:var(--bg)}
.c0{fill:var(--c0)}.c1{fill:var(--c1)}.c2{fill:var(--c2)}.c3{fill:var(--c3)}.c4{fill:var(--c4)}.c5{fill:var(--c5)}
.rest{fill:var(--grid)}
""".strip()


class Canvas:
    """Collects SVG elements in a coordinate system whose origin is the top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._items: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "t", anchor: str = "start", full: str = "") -> Canvas:
        """``full``: what was shortened, shown on hovering and spoken."""
        title = f"<title>{escape(full)}</title>" if full and full != words else ""
        end = "" if anchor == "start" else f' text-anchor="{anchor}"'
        return self._add(f'<text class="{style}" x="{n(x)}" y="{n(y)}"{end}>{escape(words)}{title}</text>')

    def rect(self, x: float, y: float, width: float, height: float, style: str) -> Canvas:
        """A filled rectangle."""
        return self._add(f'<rect class="{style}" x="{n(x)}" y="{n(y)}" width="{n(width)}" height="{n(height)}"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> Canvas:
        """A straight line."""
        return self._add(f'<path class="{style}" d="M{n(x1)} {n(y1)}L{n(x2)} {n(y2)}"/>')

    def path(self, points: list[tuple[float, float]], style: str, closed: bool = False) -> Canvas:
        """A line through ``points``, or the area within them."""
        steps = "L".join(f"{n(x)} {n(y)}" for x, y in points)
        return self._add(f'<path class="{style}" d="M{steps}{"Z" if closed else ""}"/>')

    def dot(self, x: float, y: float, radius: float = 3, style: str = "dot") -> Canvas:
        """A filled circle."""
        return self._add(f'<circle class="{style}" cx="{n(x)}" cy="{n(y)}" r="{n(radius)}"/>')

    def whisker(self, x1: float, y1: float, x2: float, y2: float, cap: float = 2.5) -> Canvas:
        """An error bar: a line with a cap across each end."""
        dx, dy = (0.0, cap) if y1 == y2 else (cap, 0.0)
        parts = [(x1, y1, x2, y2), (x1 - dx, y1 - dy, x1 + dx, y1 + dy), (x2 - dx, y2 - dy, x2 + dx, y2 + dy)]
        return self._add('<path class="whisker" d="' + "".join(
            f"M{n(a)} {n(b)}L{n(c)} {n(d)}" for a, b, c, d in parts) + '"/>')

    def place(self, other: Canvas, x: float, y: float) -> Canvas:
        """Another canvas, moved to (x, y)."""
        return self._add(f'<g transform="translate({n(x)} {n(y)})">{"".join(other._items)}</g>')

    def svg(self, ident: str, title: str, description: str, standalone: bool = False) -> str:
        """The finished drawing; ``standalone`` makes it a file of its own, with the colours inside."""
        size = f' width="{n(self.width)}" height="{n(self.height)}" xmlns="http://www.w3.org/2000/svg"'
        body = (f"<style>{STYLE}</style>" + f'<rect class="bg" width="{n(self.width)}" height="{n(self.height)}"/>'
                if standalone else "") + "".join(self._items)
        return (f'<svg class="chart" viewBox="0 0 {n(self.width)} {n(self.height)}" role="img" '
                f'aria-labelledby="{ident}-t {ident}-d"{size if standalone else ""}>'
                f'<title id="{ident}-t">{escape(title)}</title><desc id="{ident}-d">{escape(description)}</desc>'
                f"{body}</svg>")

    def _add(self, item: str) -> Canvas:
        self._items.append(item)
        return self


def n(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def shorten(words: str, letters: int) -> str:
    """At most ``letters`` letters, the last an ellipsis where something was cut."""
    return words if len(words) <= letters else words[: letters - 1] + "…"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers in [low, high], about that many.

    >>> ticks(0, 1)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    raw = max(high - low, 1e-12) / about
    unit = 10 ** math.floor(math.log10(raw))
    step = min((m * unit for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """For an axis: no more digits than needed."""
    return f"{value:.6g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.3g}"
