"""The colours of figures and page, for light ground and dark."""

# Of one curve each: (on light ground, on dark ground).
SERIES = (
    ("#0b62c4", "#6cb2ff"),
    ("#b34700", "#ff9f5a"),
    ("#1a7f37", "#56d364"),
    ("#7a3fc4", "#c297ff"),
    ("#0b7285", "#3bc9db"),
    ("#b0256f", "#ff8ac4"),
)
INK = ("#1b1f24", "#e6edf3")
MUTED = ("#57606a", "#9ea7b3")
GRID = ("#cdd3da", "#363d46")
GROUND = ("#ffffff", "#12161c")

# A rank busier or idler than the mean of its layer. A rank at the mean takes the ground's colour,
# so that the same pixels read on light ground and dark.
BUSY, IDLE = "#e8590c", "#1c7ed6"

MARKERS = ("o", "s", "^", "D", "v", "P")


def variables() -> tuple[dict[str, str], dict[str, str]]:
    """The custom properties of the style sheet by name: on light ground, on dark ground."""
    pairs = {"ink": INK, "muted": MUTED, "grid": GRID, "ground": GROUND}
    pairs |= {f"series-{number}": pair for number, pair in enumerate(SERIES)}
    light, dark = ({name: pair[at] for name, pair in pairs.items()} for at in (0, 1))
    return light, dark
