"""Published weights: `weights.safetensors` beside a record, and the trained net that they make.

The file holds the net's tensors in float32 under `net.<name>`, the mean image as `mean`, and what else a
checkpoint says of its run as JSON in the file's metadata, sealed together with the tensors.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from resrepro.data.augment import Normalisation, laid_out
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.state_dict import read_safetensors
from resrepro.nets import Net
from resrepro.nets.layers import folded
from resrepro.records import Run
from resrepro.records.durable import SEAL, write_out
from resrepro.records.reading import CHECKPOINT, SPEC, WEIGHTS
from resrepro.training.checkpoint import load_checkpoint
from resrepro.training.engine import arithmetic

HEADER = "resrepro"  # the one key of the metadata, so that equal weights give equal files
FACTS = ("digest", "spec", "num_classes", "classes", "seed", "data", "iteration")


class TrainedNet(nn.Module):
    """A trained net in evaluation mode, on images as they are stored, that answers as `eval` measures it.

    That is in the arithmetic of its training, with BN folded into the convolutions. `net` is the net alone,
    in float32 and on normalised images: `trained.net(trained.normalise(pixels))`.
    """

    mean: Tensor
    divisor: Tensor

    def __init__(self, net: Net, normalisation: Normalisation, precision: str = "float32") -> None:
        super().__init__()
        self.net = net
        self.precision = precision
        self.register_buffer("mean", normalisation.mean)
        self.register_buffer("divisor", normalisation.divisor)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels 0..255 (N, 3, H, W), of any type -> what the net sees, float32 of the same shape."""
        return laid_out((pixels.float() - self.mean) / self.divisor)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels 0..255 (N, 3, H, W) -> logits (N, classes), float32."""
        with arithmetic(self.precision, pixels.device):
            logits: Tensor = folded(self.net)(self.normalise(pixels)).float()
        return logits


def load_net(run: str | Path, seed: int = 0) -> TrainedNet:
    """The trained net of a run, from its published weights or its checkpoint, on the CPU.

    Args:
        run: a run's folder, or the folder of all seeds of it.
        seed: which one, in a folder of several.

    Raises:
        UsageError: if there is no such folder, or neither weights nor a checkpoint in it.
        RecordError: if the file is damaged.
    """
    from resrepro.evaluation.sources import read_net

    folder = Path(run)
    folder = folder if (folder / SPEC).exists() or folder.is_file() else folder / f"seed{seed}"
    if not folder.exists():
        raise UsageError(f"there is no run in {folder}: name a run's folder, such as results/NAME/seed0.")
    loaded = read_net(folder)
    return TrainedNet(loaded.net, loaded.normalisation, loaded.precision_on(torch.device("cpu"))).eval()


def file_of(folder: Path) -> Path:
    """The file of a run's folder that holds its net: the checkpoint, else the published weights.

    Raises:
        UsageError: if there is neither.
    """
    for name in (CHECKPOINT, WEIGHTS):
        if (folder / name).exists():
            return folder / name
    if seeds := sorted(folder.glob("seed*")):
        raise UsageError(f"{folder} holds the seeds of a run: name one of them, such as {seeds[0]}.")
    raise UsageError(f"{folder} holds neither {CHECKPOINT} nor {WEIGHTS}: its net is not at hand.")


def write_weights(run: Run, folder: Path) -> Path | None:
    """Write the weights of a finished run of full length beside its published record.

    None if the run is shortened, or its checkpoint is not at hand.

    Raises:
        RecordError: if the checkpoint is damaged or not of the last iteration, or other weights lie there.
    """
    checkpoint, path = run.folder / CHECKPOINT, folder / WEIGHTS
    if run.status != "complete" or not checkpoint.exists():
        return None
    content = load_checkpoint(checkpoint)
    if (content["digest"], content["iteration"]) != (run.digest, run.result["iteration"]):
        raise RecordError(f"{checkpoint} is not of the run's last iteration: no weights are published.")
    tensors = {f"net.{name}": tensor for name, tensor in content["net"].items()} | {"mean": content["mean"]}
    tensors = {name: _plain(tensor) for name, tensor in tensors.items()}
    facts = {key: content[key] for key in FACTS}
    header = json.dumps({**facts, SEAL: _seal(facts, tensors)}, sort_keys=True)
    weights = save(tensors, {HEADER: header})
    if path.exists() and path.read_bytes() != weights:
        raise RecordError(f"{path} holds other weights already: move it away first, nothing is overwritten.")
    write_out(path, weights)
    return path


def read_weights(path: Path) -> dict[str, Any]:
    """What a `.safetensors` file holds: of ours the entries of a checkpoint, of others their tensors.

    Raises:
        RecordError: if it cannot be read, is no such file, or does not match its seal.
    """
    tensors: dict[str, Any] = dict(read_safetensors(path))
    with safe_open(path, "pt") as file:
        told = (file.metadata() or {}).get(HEADER)
    if told is None:
        return tensors
    try:
        facts = json.loads(told)
        sealed = facts.pop(SEAL) == _seal(facts, tensors)
    except (ValueError, AttributeError, KeyError):
        sealed = False
    if not sealed:
        raise RecordError(f"{path} is damaged: its checksum does not match its content.")
    net = {name.removeprefix("net."): each for name, each in tensors.items() if name.startswith("net.")}
    return {**facts, "net": net, "mean": tensors["mean"]}


def _plain(tensor: Tensor) -> Tensor:
    """A tensor in memory order, of numbers in float32; BN's counters stay integers."""
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _seal(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of what the weights say of their run and of all tensors, by name."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
