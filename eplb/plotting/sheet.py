"""The style sheet of the page."""

from .palette import variables

_RULES = """
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 var(--font);
}
main { max-width: 75rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 0.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; border-bottom: 1px solid var(--grid); }
p { margin: 0.5rem 0; max-width: 48rem; overflow-wrap: anywhere; }
.note, figcaption, caption { color: var(--muted); font-size: 0.9rem; text-align: left; }
.tiles { display: flex; flex-wrap: wrap; gap: 0.75rem; padding: 0; margin: 1rem 0; }
.tiles li {
  flex: 1 1 12rem; list-style: none; padding: 0.6rem 0.9rem;
  border: 1px solid var(--grid); border-radius: 6px;
}
.tiles b { display: block; font-size: 1.5rem; font-weight: 600; }
.tiles span { color: var(--muted); }
.figures {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
}
figure { margin: 0.75rem 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; overflow-x: auto; }
figure.wide svg { min-width: 40rem; }
figcaption { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: var(--font); }
.table { overflow-x: auto; margin: 0.75rem 0; }
.table:focus-visible { outline: 2px solid var(--series-0); }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: 0.3rem; }
th, td { padding: 0.2rem 0.8rem 0.2rem 0; text-align: right; white-space: nowrap; }
th { font-weight: 600; }
thead th { border-bottom: 1px solid var(--muted); vertical-align: bottom; }
tbody tr { border-bottom: 1px solid var(--grid); }
.left { text-align: left; }
dt { font-weight: 600; margin-top: 0.6rem; }
dd { margin: 0 0 0 1.2rem; max-width: 48rem; }
@media print { h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def style_sheet() -> str:
    """The CSS of the page: what the reader's system asks for decides between light and dark."""
    light, dark = ("".join(f"--{k}: {v}; " for k, v in colours.items()) for colours in variables())
    font = "--font: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif;"
    return (
        f":root {{ color-scheme: light dark; {font} {light}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
        f"@media print {{ :root {{ {light}}} }}" + _RULES
    )
