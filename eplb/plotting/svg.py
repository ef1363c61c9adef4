"""A matplotlib figure as SVG that takes its colours and letters from the page around it."""

import html
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

from .palette import variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Dots an inch of what is drawn as pixels; heat maps have a pixel a cell whatever this says.
_DPI = 120


def style() -> dict[str, Any]:
    """Settings to draw under, so that `inline_svg` finds the colours that it replaces."""
    light, _ = variables()
    return {
        "text.color": light["ink"],
        "axes.labelcolor": light["ink"],
        "xtick.color": light["muted"],
        "ytick.color": light["muted"],
        "xtick.labelcolor": light["muted"],
        "ytick.labelcolor": light["muted"],
        "axes.edgecolor": light["muted"],
        "grid.color": light["grid"],
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same layout everywhere
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "eplb",
        "svg.image_inline": True,
    }


def inline_svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an `svg` element with the accessible name `label`; its ids begin with `name`,
    which no other figure of the page may have."""
    out = io.StringIO()
    with warnings.catch_warnings():
        # The browser has letters that the font for measuring lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            out,
            format="svg",
            dpi=_DPI,
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # Its style sheet would hold for the whole page, whose own has the same rule.
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.S)
    text = _coloured(_own_ids(text, name))
    # Letters are the page's: "font-size: 9px; font-family: …", or "font: 9px …" of older releases.
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg role="img" aria-label="{html.escape(label)}" {box[0]}>'
    body = re.sub(r"\n\s*\n+", "\n", text[text.index(">") + 1 :])
    return head + body.strip() + "\n"


def _own_ids(text: str, name: str) -> str:
    """Without the ids that nothing refers to, and a prefix to the others."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r'\sid="([^"]*)"', rename, text)
    return re.sub(r'(href="#|url\(#)([^")]+)', rf"\g<1>{name}-\2", text)


def _coloured(text: str) -> str:
    """With the page's variables in place of the colours that they have on light ground."""
    light, _ = variables()
    by_colour = {colour: variable for variable, colour in light.items() if variable != "ground"}

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}: var(--{by_colour[match[2]]})" if match[2] in by_colour else match[0]

    return re.sub(r"(fill|stroke): (#[0-9a-f]{6})", replace, text)
