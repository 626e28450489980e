"""Models and training state on disk: safetensors for numbers, JSON for structure, never pickle.

Every file is written beside its target and renamed, so that a crash leaves the old one or the new one, never half.

>>> flatten({"a": {0: torch.zeros(1)}, "b": 3})
({'a/0': tensor([0.])}, {'a': {'0': None}, 'b': 3})
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dpvae.errors import RunError
from dpvae.files import DAMAGED
from dpvae.files import read_json as read_json
from dpvae.files import write_bytes as write_bytes
from dpvae.files import write_json as write_json
from dpvae.models.vae import VAE


def save_model(vae: VAE, folder: Path) -> None:
    """``model.safetensors`` (prior, decoder, encoder) and ``model.json`` (their shape)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    write_bytes(folder / "model.safetensors", save(tensors))
    write_json(folder / "model.json", {"class": "VAE", **vae.shape})


def load_model(folder: Path) -> VAE:
    """The model that :func:`save_model` wrote."""
    shape = {name: value for name, value in _shape(folder).items() if name != "class"}
    try:
        vae = VAE(shape.pop("cardinalities"), **shape, generator=torch.Generator())
        vae.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{folder}/model.safetensors: does not load ({error.__class__.__name__}); {DAMAGED}") from None
    return vae


def _shape(folder: Path) -> dict[str, Any]:
    """What ``model.json`` of a run says, or ``config.json`` of a release's model folder (of a run: its settings)."""
    if not (folder / "model.json").is_file() and (folder / "config.json").is_file():
        shape = read_json(folder / "config.json").get("model", {})
        if "cardinalities" in shape:
            return dict(shape)
    return dict(read_json(folder / "model.json"))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """A nested dictionary of tensors and JSON values, in one file behind its own checksum."""
    tensors, structure = flatten(state)
    data = save(tensors or {"_": torch.zeros(1)}, metadata={"structure": json.dumps(structure)})
    write_bytes(path, hashlib.sha256(data).digest() + data)


def load_state(path: Path) -> dict[str, Any] | None:
    """What :func:`save_state` wrote, or ``None`` where there is no such file."""
    if not path.is_file():
        return None
    digest, data = path.read_bytes()[:32], path.read_bytes()[32:]
    try:
        if hashlib.sha256(data).digest() != digest:
            raise ValueError("checksum")
        header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
        structure = json.loads(header["__metadata__"]["structure"])
        return unflatten(load(data), structure)
    except Exception as error:  # safetensors raises its own class, which it does not export everywhere
        raise RunError(f"{path}: does not load ({error.__class__.__name__}); {DAMAGED}") from None


def flatten(state: dict[Any, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by path, and the same tree with ``None`` in their place (JSON keys are text)."""
    tensors: dict[str, Tensor] = {}
    structure: dict[str, Any] = {}
    for key, value in state.items():
        path = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            structure[str(key)] = None
        elif isinstance(value, dict):
            inner, structure[str(key)] = flatten(value, f"{path}/")
            tensors |= inner
        else:
            structure[str(key)] = value
    return tensors, structure


def unflatten(tensors: dict[str, Tensor], structure: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The inverse of :func:`flatten`, with text keys."""
    tree: dict[str, Any] = {}
    for key, value in structure.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            tree[key] = unflatten(tensors, value, f"{path}/")
        else:
            tree[key] = tensors.get(path, value)
    return tree


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The per-parameter state of an optimiser, by parameter index."""
    return {"state": optimiser.state_dict()["state"]}


def restore_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put :func:`optimiser_state` back; the parameter groups stay as they were built."""
    state = {int(index): entries for index, entries in saved["state"].items()}
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
