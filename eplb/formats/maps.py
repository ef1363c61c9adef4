"""Plans to and from the placement maps of engines."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Ints
from ..errors import EplbError, InputError, RefusedError
from ..findings import listed
from ..model import Model
from ..placement import Placement
from ..plan import Plan, placement_digest
from .engines import ascend, deepseek, sglang, trtllm, vllm
from .engines.constraints import note, refused, twins
from .engines.exports import Export
from .engines.rows import Rows
from .source import Source

ENGINES: Mapping[str, ModuleType] = {
    engine.NAME: engine for engine in (sglang, vllm, trtllm, ascend, deepseek)
}


class Imported(NamedTuple):
    """A plan that holds a placement and nothing of its loads, and remarks on how it was read."""

    plan: Plan
    notes: tuple[str, ...]


def export_plan(plan: Plan, engine: str, name: str, model: Model | None = None) -> Export:
    """The file of that name with which `engine` starts with the placement of `plan`.

    With a model, the plan is checked to be of its experts and all of its layers.

    Raises
    ------
    InputError
        When the engine is unknown or takes no file of that name.
    RefusedError
        When the engine would not serve what was planned; the message begins with the rule's id.
    """
    export: Export = _engine(engine).write(plan, name, model)
    return export


def import_map(
    path: str,
    engine: str,
    num_ranks: int | None = None,
    num_nodes: int = 1,
    model: Model | None = None,
    layer_ids: Sequence[int] | None = None,
) -> Imported:
    """The plan that an engine's file holds; `-` is standard input.

    `num_ranks` is needed where the file does not say it. `layer_ids` picks layers by number where
    the file numbers them, and else says which its rows are of; without them a model says it.

    Raises
    ------
    InputError
        When the file is none of that engine, or does not fit what is said of it; the message
        begins with its name.
    InfeasibleError
        When its slots do not divide over the ranks.
    RefusedError
        When it is of another model, or of another number of ranks.
    """
    reader, source = _engine(engine), Source(path)
    try:
        # YAML may begin as JSON does, and is left to its own parser.
        if source.kind == "json" and reader is not trtllm and _is_plan(source.content):
            raise InputError("it is a plan; a map of an engine is expected here")
        rows = _read(source, engine)
        return _imported(rows, engine, num_ranks, num_nodes, model, layer_ids)
    except EplbError as error:
        if str(error).startswith(source.name):
            raise
        raise type(error)(f"{source.name}: {error}") from None


def _engine(name: str) -> ModuleType:
    if name not in ENGINES:
        raise InputError(f"no engine is called {name!r}; {', '.join(ENGINES)} are known")
    return ENGINES[name]


def _read(source: Source, engine: str) -> Rows:
    """The rows of a file; one that another engine would read is refused with that one's name."""
    try:
        rows: Rows = ENGINES[engine].read(source)
    except InputError as error:
        for name, other in ENGINES.items():
            try:
                other.read(source)
            except InputError:
                continue
            raise InputError(f"{error}; it is a file for {name}: --from {name}") from None
        raise
    return rows


def _is_plan(content: Any) -> bool:
    return isinstance(content, Mapping) and content.get("format") == "eplb-plan"


def _imported(
    rows: Rows,
    engine: str,
    num_ranks: int | None,
    num_nodes: int,
    model: Model | None,
    wanted: Sequence[int] | None,
) -> Imported:
    num_ranks = _ranks(rows, num_ranks)
    num_experts = _experts(rows, model)
    notes: list[str] = []
    if wanted is not None:
        table, layer_ids = _picked(rows, model, wanted)
    elif model is not None:
        table, layer_ids = _of_model(rows, model)
    else:
        table, layer_ids, notes = _as_they_are(rows, num_experts)
    _check_complete(table, layer_ids, num_experts)
    placement = Placement(table, num_experts, num_ranks, num_nodes)
    if (found := twins(table, layer_ids, num_ranks)) is not None:
        notes.append(note("EP201", f"{found}, a slot wasted"))
    provenance: dict[str, object] = {
        "imported_from": engine,
        "placement_digest": placement_digest(placement, np.asarray(layer_ids, np.int64)),
    }
    if model is not None:
        provenance |= {"model": model.name, "decoder_layers": model.num_layers}
    plan = Plan(placement, layer_ids, provenance=provenance)
    return Imported(plan, (*rows.notes, *notes))


def _ranks(rows: Rows, num_ranks: int | None) -> int:
    if num_ranks is None:
        num_ranks = rows.num_ranks
    if num_ranks is None:
        raise InputError("the file does not say how many GPUs it is for; --gpus does")
    if rows.num_ranks not in (None, num_ranks):
        raise RefusedError(
            f"the file is for {rows.num_ranks} GPUs and --gpus says {num_ranks}; it is of another"
            " topology"
        )
    return num_ranks


def _experts(rows: Rows, model: Model | None) -> int:
    num_experts = int(rows.table.max()) + 1
    if model is not None and num_experts != model.num_experts:
        raise refused(
            "EP204",
            f"the file has experts 0 to {num_experts - 1} and the model ({model.name})"
            f" {model.num_experts}; it is of another model",
        )
    return num_experts


def _picked(rows: Rows, model: Model | None, wanted: Sequence[int]) -> tuple[Ints, Ints]:
    """The rows of the layers asked for."""
    layer_ids = np.array(wanted, np.int64)
    if model is not None and (strange := sorted(set(wanted) - set(model.all_layer_ids))):
        raise refused(
            "EP203",
            f"layer {listed(np.array(strange))} has no experts in the model ({model.name})",
        )
    if rows.layer_ids is None:
        if len(layer_ids) != len(rows.table):
            raise InputError(
                f"the file has {len(rows.table)} rows and --layers names {len(layer_ids)}; one for"
                " each row is expected, as the file does not number them"
            )
        return rows.table, layer_ids
    if missing := sorted(set(wanted) - set(rows.layer_ids.tolist())):
        raise InputError(
            f"the file has no layer {listed(np.array(missing))}; it has"
            f" {listed(np.sort(rows.layer_ids))}"
        )
    place = {int(layer): row for row, layer in enumerate(rows.layer_ids)}
    return rows.table[[place[layer] for layer in wanted]], layer_ids


def _of_model(rows: Rows, model: Model) -> tuple[Ints, Ints]:
    """The rows of the model's layers with experts."""
    if rows.has_dense:
        if len(rows.table) != model.num_layers:
            raise refused(
                "EP203",
                f"the file has {len(rows.table)} layers and the model ({model.name})"
                f" {model.num_layers}, dense ones included",
            )
        layer_ids = np.array(model.moe_layer_ids)
        return rows.table[layer_ids], layer_ids
    for expected in (model.moe_layer_ids, model.all_layer_ids):
        if rows.layer_ids is None and len(rows.table) == len(expected):
            return rows.table, np.array(expected)
        if rows.layer_ids is not None and set(rows.layer_ids.tolist()) == set(expected):
            return rows.table, rows.layer_ids
    found = f"{len(rows.table)} rows"
    if rows.layer_ids is not None:
        found = f"layers {listed(np.sort(rows.layer_ids))}"
    raise refused(
        "EP203",
        f"the file has {found} and the model ({model.name}) {len(model.moe_layer_ids)} layers with"
        f" experts, {listed(np.array(model.moe_layer_ids))}; --layers says which rows these are",
    )


def _as_they_are(rows: Rows, num_experts: int) -> tuple[Ints, Ints, list[str]]:
    """All rows, by the file's numbers or from 0, and what is not known of them."""
    if rows.layer_ids is None:
        layer_ids = np.arange(len(rows.table))
        text = (
            f"the file does not say which layers its {len(rows.table)} rows are of; they are"
            " numbered from 0, and --model or --layers numbers them"
        )
        return rows.table, layer_ids, [note("EP206", text)]
    if not rows.has_dense:
        return rows.table, rows.layer_ids, []
    dense = sglang.looks_dense(rows, num_experts)
    text = "rows of dense layers are kept, as the file does not mark them"
    if dense is not None:
        text += f" (layer {dense} holds the row that unplaced layers have)"
    text += "; --model or --layers leaves them out"
    return rows.table, rows.layer_ids, [note("EP206", text)]


def _check_complete(table: Ints, layer_ids: Ints, num_experts: int) -> None:
    """Every expert in every layer, with the layer's own number in the message."""
    present = np.zeros((len(table), num_experts), bool)
    present[np.arange(len(table))[:, None], table] = True
    missing = np.argwhere(~present)
    if len(missing):
        row, expert = missing[0]
        more = f" (and {len(missing) - 1} more such)" if len(missing) > 1 else ""
        raise InputError(
            f"layer {layer_ids[row]} has no slot for expert {expert}{more}; every layer holds each"
            f" of experts 0 to {num_experts - 1}"
        )
