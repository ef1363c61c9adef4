"""Cut a DeepSeek-V3 checkpoint down to its first layers: `make_tiny.py SOURCE TARGET`."""

import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

LAYERS = 3  # the dense layer and two with experts
SHARD_BYTES = 2_500_000  # so that the experts of a layer lie in two shards


def main(source: Path, target: Path) -> None:
    """Write the kept tensors in shards, their index and the changed configuration."""
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    shards, size, total = [{}], 0, 0
    for name, file in index.items():
        if name.startswith("model.layers.") and int(name.split(".")[2]) >= LAYERS:
            continue
        with safe_open(source / file, "pt") as shard:
            tensor = shard.get_tensor(name)
        if size + tensor.nbytes > SHARD_BYTES:
            shards, size = [*shards, {}], 0
        shards[-1][name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    target.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, target / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    _write(
        target / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )
    config = json.loads((source / "config.json").read_text())
    _write(target / "config.json", {**config, "num_hidden_layers": LAYERS})
    (target / "generation_config.json").write_bytes(
        (source / "generation_config.json").read_bytes()
    )


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
