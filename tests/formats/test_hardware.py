"""Hardware files: the presets and the user's own."""

from pathlib import Path

import pytest
import yaml

from eplb.errors import InputError
from eplb.formats.hardware import preset_names, read_hardware

from ..helpers import ROOT
from ..test_hardware import CONTENT


def test_there_are_four_presets() -> None:
    """The names that the documentation lists."""
    assert preset_names() == ("gb200-nvl72", "h100-ib400", "h200-ib400", "mi355x")


@pytest.mark.parametrize("name", preset_names())
def test_every_constant_of_a_preset_has_a_source(name: str) -> None:
    """Each figure is published, derived from a published one, or said to be assumed."""
    hardware = read_hardware(name)
    assert hardware.name == name
    for key, constant in hardware.constants.items():
        assert len(constant.source) >= len("assumed"), key
        if key.endswith("_efficiency") or constant.unit == "s":
            assert constant.source.startswith(("assumed", "derived")), key


def test_the_published_figures_of_an_h100() -> None:
    """The data sheet's numbers, in base units."""
    it = read_hardware("h100-ib400")
    assert it.peak_flops_fp8.value == pytest.approx(1978.9e12)
    assert it.hbm_bw.value == pytest.approx(3.35e12)
    assert it.intra_node_bw.value == pytest.approx(450e9)
    assert it.inter_node_bw.value == pytest.approx(50e9)
    assert it.gpus_per_node.value == 8


def test_hardware_of_the_users_own_is_read(tmp_path: Path) -> None:
    """YAML as it is documented; JSON is YAML too."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    it = read_hardware(str(path))
    assert it.name == str(path)
    assert it.hbm_rate == 3e12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no mapping; constants by name are expected"),
        ("a: [", "is neither YAML nor JSON: while parsing"),
        ("\x00", "is neither YAML nor JSON"),
        ("hbm_bw: 3", "lacks peak_flops_bf16, "),
        ("!!python/object/apply:os.getcwd []", "is neither YAML nor JSON: could not determine"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """The message begins with the name of the file."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{path} {message}"):
        read_hardware(str(path))


def test_unknown_hardware_is_refused(tmp_path: Path) -> None:
    """A name that is neither preset nor file is answered with the presets and the nearest."""
    with pytest.raises(
        InputError, match=r"h100 is no hardware .*mi355x.*; did you mean h100-ib400"
    ):
        read_hardware("h100")
    with pytest.raises(InputError, match=r"none\.yaml cannot be read: No such file"):
        read_hardware(str(tmp_path / "none.yaml"))


def test_the_documentation_has_the_constants() -> None:
    """The table in docs/timing.md is that of the presets' files, constant by constant."""
    rows = [
        [cell.strip(" `") for cell in line.strip("|\n").split("|")]
        for line in (ROOT / "docs" / "timing.md").read_text().splitlines()
        if line.startswith("| `") or line.startswith("| constant")
    ]
    folder = ROOT / "eplb" / "hardware_presets"
    for column, name in enumerate(rows[0][2:6], start=2):
        preset = yaml.safe_load((folder / f"{name}.yaml").read_bytes())
        table = {row[0]: (float(row[column]), row[1].split(", ")) for row in rows[1:]}
        assert list(table) == list(preset)
        for key, (value, units) in table.items():
            assert (preset[key]["value"], preset[key]["unit"] in units) == (value, True), key
