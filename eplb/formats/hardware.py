"""Hardware by the name of a preset, or from a YAML file of the user's own."""

import difflib
from importlib.resources import files as resources
from pathlib import Path

import yaml

from ..errors import InputError
from ..hardware import Hardware, hardware_of
from . import files

_FOLDER = "hardware_presets"


def preset_names() -> tuple[str, ...]:
    """The presets that come with the library, sorted."""
    folder = resources("eplb") / _FOLDER
    return tuple(
        sorted(
            entry.name.removesuffix(".yaml")
            for entry in folder.iterdir()
            if entry.name.endswith(".yaml")
        )
    )


def read_hardware(name_or_path: str) -> Hardware:
    """The constants of a preset, or of a YAML file that gives each as value, unit and source.

    Raises
    ------
    InputError
        When there is no such preset or file, or it is not such a file.
    """
    presets = preset_names()
    if name_or_path in presets:
        data = (resources("eplb") / _FOLDER / f"{name_or_path}.yaml").read_bytes()
        return hardware_of(_parsed(data, name_or_path), name_or_path)
    is_path = name_or_path.endswith((".yaml", ".yml", ".json")) or "/" in name_or_path
    if name_or_path != "-" and not is_path and not Path(name_or_path).is_file():
        near = difflib.get_close_matches(name_or_path, presets, n=1, cutoff=0.4)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"{name_or_path} is no hardware that is known ({', '.join(presets)}), nor a YAML"
            f" file{meant}"
        )
    name = files.name_of(name_or_path)
    return hardware_of(_parsed(files.read_bytes(name_or_path), name), name)


def hardware_bytes(hardware: Hardware) -> bytes:
    """The YAML file of `hardware`, which `read_hardware` reads back."""
    content = {name: constant._asdict() for name, constant in hardware.constants.items()}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _parsed(data: bytes, name: str) -> object:
    try:
        content: object = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise InputError(f"{name} is neither YAML nor JSON: {str(error).splitlines()[0]}") from None
    return content
