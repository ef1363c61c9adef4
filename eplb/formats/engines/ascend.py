"""vllm-ascend's `expert_map.json`: for each layer and device the experts of its slots.

Its reader goes by the positions in the lists: the numbers that the entries carry are decoration.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from ...model import Model
from ...plan import Plan
from ..source import Source
from .constraints import note
from .exports import Chosen, Export, check_ending, choose
from .rows import Rows, expect, table_of

NAME = "vllm-ascend"
DESCRIPTION = "vllm-ascend expert map, up to its version 0.23: .json, by layer and device"
ENDINGS = (".json",)


def write(plan: Plan, name: str, model: Model | None = None) -> Export:
    """The file of this name, and the flags that go with it.

    Raises
    ------
    InputError
        When the name has another ending.
    RefusedError
        When vllm-ascend would not serve what was planned.
    """
    check_ending(name, ENDINGS, "vllm-ascend takes no other")
    chosen = choose(plan, model, unchecked="vllm-ascend takes rows by position")
    version = note(
        "EP208",
        "up to vllm-ascend 0.23 weights are loaded by this file; from 0.24 on they are not, and"
        " slots would serve the wrong experts: use --to vllm there",
    )
    config = {"expert_map_path": name, "num_redundant_experts": chosen.num_redundant}
    flags = (
        "--enable-expert-parallel",
        f"--additional-config {shlex.quote(json.dumps({'eplb_config': config}))}",
    )
    return Export(_json(chosen), flags, (*chosen.notes, version))


def read(source: Source) -> Rows:
    """The rows of the layers with experts, in their order, and the number of devices.

    Raises
    ------
    InputError
        When the file is none that vllm-ascend would start with.
    """
    expect(source, ("json",), 'JSON with "moe_layer_count" and "layer_list"')
    content: Any = source.content
    layers = content.get("layer_list") if isinstance(content, Mapping) else None
    if not isinstance(layers, list) or not layers:
        raise InputError("it has no 'layer_list' with an entry for each layer")
    if content.get("moe_layer_count") != len(layers):
        raise InputError(
            f"'moe_layer_count' is {content.get('moe_layer_count')!r} and 'layer_list' has"
            f" {len(layers)} entries"
        )
    rows, widths = [], []
    for number, layer in enumerate(layers):
        devices = _devices(layer, f"layer_list[{number}]")
        rows.append([expert for device in devices for expert in device])
        widths.append(len(devices))
    if len(set(widths)) > 1:
        wrong = next(number for number, width in enumerate(widths) if width != widths[0])
        raise InputError(
            f"layer_list[{wrong}] has {widths[wrong]} devices and layer_list[0] {widths[0]}"
        )
    table = table_of(rows, lambda row: f"layer_list[{row}]")
    return Rows(table, num_ranks=widths[0], notes=tuple(_misnumbered(layers)))


def _devices(layer: Any, where: str) -> list[list[Any]]:
    """The slots of each device of a layer."""
    devices = layer.get("device_list") if isinstance(layer, Mapping) else None
    if not isinstance(devices, list) or not devices:
        raise InputError(f"{where} has no 'device_list' with an entry for each device")
    if layer.get("device_count", len(devices)) != len(devices):
        raise InputError(
            f"{where}: 'device_count' is {layer['device_count']!r} and 'device_list' has"
            f" {len(devices)} entries"
        )
    slots: list[list[Any]] = []
    for number, device in enumerate(devices):
        own = device.get("device_expert") if isinstance(device, Mapping) else None
        if not isinstance(own, list):
            raise InputError(f"{where}.device_list[{number}] has no list 'device_expert'")
        if slots and len(own) != len(slots[0]):
            raise InputError(
                f"{where}.device_list[{number}] has {len(own)} experts and device_list[0]"
                f" {len(slots[0])}; every device has the same number of slots"
            )
        slots.append(own)
    return slots


def _misnumbered(layers: list[Any]) -> list[str]:
    """Remarks on entries whose number is not their position, by which vllm-ascend goes."""
    notes = []
    for number, layer in enumerate(layers):
        if layer.get("layer_id", number) != number:
            notes.append(
                f"layer_list[{number}] has layer_id {layer['layer_id']!r}; vllm-ascend goes by"
                " position, and so it was read"
            )
        for position, device in enumerate(layer["device_list"]):
            if device.get("device_id", position) != position:
                notes.append(
                    f"layer_list[{number}].device_list[{position}] has device_id"
                    f" {device['device_id']!r}; vllm-ascend goes by position, and so it was read"
                )
    return notes[:1] + ([f"and {len(notes) - 1} more such numbers"] if len(notes) > 1 else [])


def _json(chosen: Chosen) -> bytes:
    """One device a line."""
    layers = []
    by_rank = chosen.table.reshape(len(chosen.table), chosen.num_ranks, -1).tolist()
    for number, ranks in enumerate(by_rank):
        devices = ",\n".join(
            f"    {json.dumps({'device_id': rank, 'device_expert': own})}"
            for rank, own in enumerate(ranks)
        )
        layers.append(
            f'  {{"layer_id": {number}, "device_count": {chosen.num_ranks}, "device_list": [\n'
            f"{devices}]}}"
        )
    text = f'{{"moe_layer_count": {len(layers)},\n "layer_list": [\n' + ",\n".join(layers) + "]}\n"
    return text.encode()
