"""A version's weights as a file for other programs: safetensors, a PyTorch state dict, or ONNX."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from client.channels.compact import Spread
from client.errors import BadSetting
from client.files import write_atomic
from server.requests import weights
from server.storage.home import Home
from server.storage.ledger import Ledger, VersionRow
from server.storage.registry import NOTE_KEY

KINDS: Final = (".safetensors", ".pt", ".onnx")
ONNX_PACKAGES: Final = ("onnx", "onnxscript")
BATCH: Final = 2  # of the example that ONNX is traced with: 1 would be taken for a constant


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: Where it is.
        num_bytes: Its size.
        sha256: Of the file, hexadecimal.
        facts: What the weights need elsewhere (`weights.facts`).
        noted: Whether the ledger knows of it; not where the home cannot be written.
    """

    path: Path
    num_bytes: int
    sha256: str
    facts: dict[str, Any]
    noted: bool = True


def export(
    home: Home, ledger: Ledger, row: VersionRow, output: Path, *, force: bool = False
) -> Exported:
    """Write a version's weights to a file, mode 0600, of the kind that its name ends in.

    `.safetensors` and `.pt` hold parameters and buffers by name, the latter saved by `torch.save`
    and loadable with `weights_only=True`; `.onnx` holds the network, from `inputs` `(B, C, H, W)`
    to `logits` `(B, K)`. Facts are in the metadata of the first and the last. The ledger notes the
    file first, so that it can be asked back when something that the version knows is forgotten.

    Args:
        home: Where the version is.
        ledger: The home's.
        row: The version.
        output: The file; its folder exists.
        force: Whether to write over a file that is there.

    Raises:
        BadSetting: If the name ends otherwise, the folder is missing, a file is there, or ONNX
            lacks its packages.
        RegistryError: If the weights cannot be read.
    """
    path = output.expanduser().absolute()
    if path.suffix not in KINDS:
        raise BadSetting(f"output must end in {', '.join(KINDS)}, got {path.name}")
    check_output(path, force=force)
    if path.suffix == ".onnx":
        _check_onnx()
    network, told = weights.network(home, ledger, row), weights.facts(row)
    made = {".safetensors": _safetensors, ".pt": _state_dict, ".onnx": _onnx}
    data = made[path.suffix](network, told)
    sha256 = hashlib.sha256(data).hexdigest()
    if home.writable:
        # An older home may lack the folder of keys: opened to be written to, it has one.
        with Ledger.of(Home(home.path)) as writing:
            writing.note_exported(row.id, path=str(path), sha256=sha256)
    write_atomic(path, data)
    return Exported(path, len(data), sha256, told, home.writable)


def check_output(path: Path, *, force: bool, name: str = "output") -> None:
    """Refuse a file that cannot be written, or that is there already.

    Args:
        path: The file, absolute.
        force: Whether it may be written over.
        name: Of the option that names it.

    Raises:
        BadSetting: Saying which.
    """
    if not path.parent.is_dir():
        raise BadSetting(f"{name} must lie in a folder that exists, got {path}")
    if path.is_dir() or (path.exists() and not force):
        raise BadSetting(f"{name} must not be there yet, got {path}; --force writes over a file")


def _safetensors(network: nn.Module, told: dict[str, Any]) -> bytes:
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # One metadata key: safetensors writes several in random order.
    return safetensors.torch.save(state, {NOTE_KEY: json.dumps(told)})


def _state_dict(network: nn.Module, told: dict[str, Any]) -> bytes:
    file = BytesIO()
    # Copies: a tensor that shares memory with others would take theirs along.
    torch.save({name: tensor.clone() for name, tensor in network.state_dict().items()}, file)
    return file.getvalue()


class _Places(nn.Module):
    """What `Spread` does, by operations that come through the export to ONNX as they are.

    `index_copy` along channels writes to the wrong ones there.
    """

    def __init__(self, spread: Spread) -> None:
        super().__init__()
        # A channel that was removed is read from one of zeros, put behind those that were kept.
        places = [len(spread.kept)] * spread.num_channels
        for place, channel in enumerate(spread.kept):
            places[channel] = place
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        return pad(maps, (0, 0, 0, 0, 0, 1)).index_select(1, self.get_buffer("places"))


def _onnx(network: nn.Module, told: dict[str, Any]) -> bytes:
    for name, module in list(network.named_modules()):
        if isinstance(module, Spread):
            network.set_submodule(name, _Places(module))
    example = torch.zeros(BATCH, *told["input_shape"], dtype=getattr(torch, told["input_dtype"]))
    program = torch.onnx.export(
        network,
        (example,),
        input_names=["inputs"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    proto: Any = None if program is None else program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = NOTE_KEY, json.dumps(told)
    return bytes(proto.SerializeToString())


def _check_onnx() -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BadSetting(
            f"output as .onnx must have the packages {' and '.join(ONNX_PACKAGES)}, got no "
            f"{' and no '.join(missing)}; pip install 'efface[onnx]', or write .safetensors or .pt"
        )
