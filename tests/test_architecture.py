"""The layers of the project: who may import whom, and where heavy packages may be loaded."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each module or package may import those of its own line and below; siblings of a line that
# are marked apart never import each other.
LAYERS = [
    {"cli"},
    {"study", "plugins"},
    {"formats", "solver", "simulator", "checkpoint", "runtime", "plotting"},
    {
        "plan",
        "problem",
        "metrics",
        "traffic",
        "visits",
        "migration",
        "manifest",
        "control",
        "findings",
        "report",
        "walk",
    },
    {"topology", "trace", "routes", "timeline", "placement", "synthetic", "model", "hardware"},
    {"errors", "_arrays"},
]
APART = LAYERS[2]
HEAVY = {
    "ortools": {"solver"},
    "scipy": {"solver", "simulator"},
    "numba": {"solver"},
    "torch": {"runtime", "formats", "plugins"},
    "transformers": {"runtime"},
    "safetensors": {"formats"},
    "pyarrow": {"formats"},
    "gguf": {"formats"},
    "matplotlib": {"plotting"},
    "click": {"cli"},
    "rich": {"cli"},
    "orjson": {"formats"},
}


def _sources() -> list[Path]:
    return sorted([*ROOT.glob("eplb/**/*.py"), *ROOT.glob("cli/**/*.py")])


def _unit(path: Path) -> str:
    """The module or package of the tree that a file belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "eplb" else "cli"


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """What a file imports, as absolute dotted names, and whether only for types."""
    tree = ast.parse(path.read_text())
    package = list(path.relative_to(ROOT).parent.parts)
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", id(node) in typing_only


def _level(unit: str) -> int:
    return next(number for number, units in enumerate(LAYERS) if unit in units)


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    """A file imports its own layer or below, and siblings that stand apart never each other."""
    unit = _unit(path)
    if unit == "__init__":
        return  # the lazy front door names everything
    for name, _ in _imports(path):
        parts = name.split(".")
        if parts[0] != "eplb" or len(parts) < 2:
            continue
        other = parts[1]
        assert _level(unit) <= _level(other), f"{unit} imports {other}"
        if unit in APART and other in APART:
            assert unit == other, f"{unit} and {other} stand apart"


@pytest.mark.parametrize("path", _sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_stay_where_they_belong(path: Path) -> None:
    """Solvers, tensors, figures and terminals are each loaded by one part of the tree."""
    for name, typing_only in _imports(path):
        allowed = HEAVY.get(name.split(".")[0])
        if allowed is not None and not typing_only:
            assert _unit(path) in allowed, f"{path} imports {name}"


def test_no_import_cycles() -> None:
    """Following run-time imports between files never leads back."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in _sources()}
    edges = {
        module: {
            target
            for name, typing_only in _imports(path)
            if not typing_only
            for target in (name, name.rpartition(".")[0])
            if target in files and target != module
        }
        for module, path in files.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"cycle: {' → '.join([*trail, module])}"
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in sorted(files):
        visit(module, ())


def test_help_loads_nothing_heavy() -> None:
    """`eplb --help` needs click alone: no numpy, no numba, no rich."""
    code = (
        "import sys\nfrom eplb_cli.main import run\nrun(['--help'])\n"
        "heavy = {'numpy', 'numba', 'scipy', 'ortools', 'torch', 'rich', 'orjson', 'pandas'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_library_never_prints_or_exits() -> None:
    """No print and no sys.exit under eplb/: the library raises and returns."""
    for path in ROOT.glob("eplb/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"print", "sys.exit", "exit"}, path
