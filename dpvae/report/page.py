"""What every page is made of: one file, no script, no network, light or dark, telephone, screen or paper.

A page is a title, sections with links to them, figures with the table of their numbers behind them, and traffic lights
whose meaning is also written out. Everything that comes from outside is escaped here.

>>> light(True, "holds")
'<span class="light good" role="img" aria-label="holds"></span>'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from dpvae.errors import ReleaseError
from dpvae.report.canvas import STYLE

CSS = STYLE + """
*{box-sizing:border-box}html{color-scheme:light dark}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.15rem;color:var(--muted);font-weight:600;margin:0 0 12px;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:44px 0 6px;padding-top:14px;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:18px 0 8px}p{max-width:70ch;margin:6px 0 14px}a{color:var(--c0)}
.claim{font-size:1.25rem;line-height:1.5;max-width:none;border-left:4px solid var(--c0);
padding:2px 0 2px 16px;margin:0 0 18px}
.claim.bad{border-color:var(--c5);color:var(--c5);font-weight:600}.claim.ok{border-color:var(--c2)}
nav{font-size:.9rem;margin:0 0 8px}nav a{display:inline-block;margin:0 14px 4px 0}
.facts{display:flex;flex-wrap:wrap;gap:10px;margin:10px 0 24px;padding:0}
.facts div{background:var(--panel);border-radius:8px;padding:10px 14px;min-width:128px;flex:1}
.facts dt{font-size:.8rem;color:var(--muted)}.facts dd{margin:0;font-size:1.05rem;font-variant-numeric:tabular-nums}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:20px 28px;align-items:start}
.two>*{min-width:0}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:16px}
figure{margin:0;min-width:0}.cards h3{margin-top:0}.cards figure{background:var(--panel);border-radius:8px;padding:12px}
svg.chart{display:block;width:100%;height:auto;max-width:520px}
figcaption{font-size:.85rem;color:var(--muted);margin-top:6px;max-width:70ch}
img{display:block;max-width:100%;height:auto;image-rendering:pixelated}.cards img{width:100%}
details{font-size:.85rem;margin-top:6px}summary{cursor:pointer;color:var(--muted)}
summary:focus-visible,a:focus-visible,.wide:focus-visible{outline:2px solid var(--c0);outline-offset:2px}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;margin:6px 0}
th,td{text-align:left;padding:4px 12px 4px 0;border-bottom:1px solid var(--grid);vertical-align:top}
th{font-weight:600;color:var(--muted)}td.r,th.r{text-align:right}.cells td,.cells th{white-space:nowrap}
.side td:first-child{white-space:nowrap;color:var(--muted);position:sticky;left:0;background:var(--bg)}
ul,ol{padding-left:20px;max-width:75ch}li{margin:5px 0}
blockquote{margin:10px 0;padding:8px 14px;background:var(--panel);border-radius:8px;overflow-wrap:anywhere}
pre{background:var(--panel);border-radius:8px;padding:12px;overflow-x:auto;font-size:.85rem}
.light{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.55em;vertical-align:-.04em}
.good{background:var(--c2)}.poor{background:var(--c5)}.open{background:var(--c4)}
.lights{list-style:none;padding:0;max-width:none}.lights li{margin:3px 0;padding-left:1.4em;text-indent:-1.4em}
.asked{color:var(--muted);font-size:.85rem}.bad{color:var(--c5)}
.tests{list-style:none;padding:0;max-width:none}.tests>li{border-top:1px solid var(--grid);padding:10px 0;margin:0}
.skip{position:absolute;left:-999px}.skip:focus{left:8px;top:8px;background:var(--bg);padding:6px}
@media(max-width:480px){main{padding:16px 14px 48px}.claim{font-size:1.08rem;padding-left:12px}
.two{gap:16px}.facts div{min-width:44%}}
@media print{body{font-size:10pt;background:#fff}main{padding:0;max-width:none}nav,.skip{display:none}
h2{margin-top:22px}h2,h3{break-after:avoid}figure,tr,li,.facts,blockquote{break-inside:avoid}
.two{grid-template-columns:1fr 1fr}.cards{grid-template-columns:1fr 1fr 1fr;gap:8px}
.cells,.side{font-size:6.5pt}.cells td,.cells th,.side td{white-space:normal;padding-right:5px;overflow-wrap:break-word}
.wide{overflow:visible}pre{white-space:pre-wrap}details:not([open]){display:none}@page{size:A4;margin:14mm}}
"""
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def document(title: str, claim: str, sections: Sequence[tuple[str, str, str]], *, mood: str = "") -> str:
    """The whole page: ``claim`` is its first sentence, ``sections`` are (id, name in the navigation, HTML)."""
    present = [(ident, name, body) for ident, name, body in sections if body]
    links = "".join(f'<a href="#{ident}">{escape(name)}</a>' for ident, name, _ in present)
    body = "".join(f'<section id="{ident}">{body}</section>' for ident, _, body in present)
    style = f"claim {mood}".strip()
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f'<style>{CSS}</style></head><body><a class="skip" href="#{present[0][0]}">Skip to the report</a><main>'
            f'<h1>{escape(title)}</h1><p class="{style}">{unbroken(escape(claim))}</p>'
            f'<nav aria-label="Sections">{links}</nav>{body}</main></body></html>\n')


def heading(title: str) -> str:
    """Of a section."""
    return f"<h2>{escape(title)}</h2>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A row of named figures."""
    return '<dl class="facts">' + "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs) + "</dl>"


def figure(svg: str, caption: str, numbers: str = "") -> str:
    """A chart, what it says, and the table behind it."""
    return (f"<figure>{svg}<figcaption>{escape(caption)}</figcaption>"
            + (details("Numbers", numbers) if numbers else "") + "</figure>")


def picture(source: str, alt: str, title: str = "", caption: str = "") -> str:
    """A PNG that came as a data URI; anything else is a :class:`ReleaseError`, since a page loads nothing."""
    if not _PICTURE.fullmatch(source):
        raise ReleaseError("gallery: expected pictures as data:image/png;base64,...; a page loads nothing from outside")
    head = f"<h3>{escape(title)}</h3>" if title else ""
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure>{head}<img src="{source}" alt="{escape(alt)}">{note}</figure>'


def light(good: bool | None, meaning: str) -> str:
    """Green, red, or (``None``) open; ``meaning`` is spoken."""
    mark = "open" if good is None else "good" if good else "poor"
    return f'<span class="light {mark}" role="img" aria-label="{escape(meaning)}"></span>'


def details(title: str, body: str) -> str:
    """Folded away until somebody asks."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], style: str = "", right: bool = True,
          label: str = "Numbers") -> str:
    """All but the first column on the right, where they are numbers; wide tables scroll by keyboard too."""
    def tag(name: str, i: int, value: Any) -> str:
        return f'<{name}{" class=r" if right and i else ""}>{escape(str(value))}</{name.split()[0]}>'

    lines = "".join("<tr>" + "".join(tag("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    top = "".join(tag('th scope="col"', i, v) for i, v in enumerate(head))
    return (f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}"><table class="{style}">'
            f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>")


def unbroken(text: str) -> str:
    """Keeps ``1e-05`` and ``50 %`` on one line."""
    return re.sub(r"(?<=\de)-(?=\d)", "\u2011", text).replace(" %", "\u00a0%")
