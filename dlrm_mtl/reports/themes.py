"""Light and dark appearance of a page and of the plots in it, by CSS variables."""

from __future__ import annotations

import re

SERIES = {
    "#0072b2": "#4a9fdc",
    "#d55e00": "#f0803c",
    "#009e73": "#2fbf95",
    "#cc79a7": "#dd9cc0",
    "#56b4e9": "#9bd6f7",
    "#e69f00": "#f2b53a",
    "#6b4fa0": "#a98fe3",
    "#8c6d31": "#c2a05a",
    "#5f6b76": "#9aa7b3",
    "#a3123f": "#ec6a8f",
}
"""Colours of series on a light background, each with its form on a dark one. Colour-blind readers can distinguish them: Okabe
and Ito's (2008) without the yellow, and four more."""

INKS = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9da7b1"),
    "edge": ("#8c959f", "#6e7781"),
    "line": ("#d8dee4", "#3d444d"),
    "grid": ("#e6eaef", "#262c36"),
    "fill": ("#f6f8fa", "#161b22"),
    "mark": ("#dbe9f6", "#1f3a5f"),
    "warn": ("#fff8c5", "#3b2e0a"),
}
"""Other colours of a page and its plots by name: light and dark."""

_VARIABLES = {light: f"--{name}" for name, (light, _) in INKS.items()} | {
    light: f"--c{number}" for number, light in enumerate(SERIES)
}
_COLOUR = re.compile("|".join(_VARIABLES), re.IGNORECASE)
_METADATA = re.compile(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", re.DOTALL)
_IDENTIFIER = re.compile(r'(\bid="|url\(#|href="#)')


def theme_colour(colour: str) -> str:
    """CSS value of a colour: the variable that holds it in a light theme, or the colour itself."""
    return _COLOUR.sub(lambda found: f"var({_VARIABLES[found[0].lower()]})", colour)


def inline_svg(svg: str, prefix: str) -> str:
    """SVG of matplotlib for use inside a page: it has the page's colours, and no identifiers of another plot.

    Args:
        svg: text that begins with the ``svg`` element.
        prefix: beginning of all identifiers, different for every plot of a page.
    """
    text = _IDENTIFIER.sub(lambda found: found[1] + prefix, _METADATA.sub("", svg))
    return theme_colour(text)


def light_colours(text: str) -> str:
    """SVG of a page with the colours of a light theme in place of the page's variables, to stand alone."""
    colours = {variable: colour for colour, variable in _VARIABLES.items()}
    return re.sub(r"var\((--\w+)\)", lambda found: colours[found[1]], text)


def _variables(dark: bool) -> str:
    values = {f"--{name}": pair[dark] for name, pair in INKS.items()}
    values |= {f"--c{number}": pair[dark] for number, pair in enumerate(SERIES.items())}
    return " ".join(f"{name}: {value};" for name, value in values.items())


STYLE = (
    f"""\
:root {{ color-scheme: light dark; {_variables(dark=False)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(dark=True)} }} }}
"""
    + """\
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 24px clamp(12px, 3vw, 28px) 64px; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 27px; line-height: 1.25; margin: 0; } h2 { font-size: 19px; margin: 0; display: inline; }
section, details { margin-top: 34px; } section > h2 { display: block; margin-bottom: 6px; }
summary { cursor: pointer; margin-bottom: 6px; }
p { margin: 4px 0 10px; max-width: 90ch; color: var(--soft); }
nav { margin: 12px 0 0; font-size: 13.5px; display: flex; flex-wrap: wrap; gap: 2px 14px; }
nav a { color: var(--c0); text-decoration: none; } nav a:hover { text-decoration: underline; }
.notes { margin: 14px 0 0; padding: 8px 12px 8px 28px; background: var(--warn); border: 1px solid var(--line);
  border-radius: 6px; } .notes li { margin: 2px 0; }
.legend { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--line); padding: 8px 0;
  margin-top: 14px; display: flex; flex-wrap: wrap; gap: 4px 20px; z-index: 1; max-height: 30vh; overflow-y: auto; }
.target { scroll-margin-top: 80px; }
.swatch { display: inline-block; width: 14px; height: 10px; border-radius: 2px; margin-right: 6px; }
.tables { display: flex; flex-wrap: wrap; gap: 0 40px; align-items: flex-start; }
.scroll { max-width: 100%; overflow-x: auto; margin-bottom: 14px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: 6px 0; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
th { background: var(--fill); font-weight: 600; white-space: normal; vertical-align: bottom; }
td.text, th.text { text-align: left; white-space: normal; min-width: 9ch; }
td.bar { background-image: linear-gradient(var(--mark), var(--mark)); background-repeat: no-repeat;
  background-position: 0 50%; }
td small { display: block; color: var(--soft); font-size: 11.5px; line-height: 1.2; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(360px, 100%), 1fr)); gap: 12px; }
.plot { border: 1px solid var(--line); border-radius: 6px; padding: 4px; min-width: 0; overflow-x: auto; }
.plot svg { display: block; width: 100%; height: auto; stroke-linejoin: round; } .plot text { fill: var(--ink); }
.wide { grid-column: 1 / -1; } .wide svg { min-width: 640px; }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
@media print { .legend { position: static; } nav { display: none; } .plot { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""
)
