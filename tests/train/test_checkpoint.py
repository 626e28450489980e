"""State on disk: what is saved comes back bit by bit, what was damaged is refused, a crash leaves old or new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small_vae

from dpvae import files
from dpvae.errors import RunError
from dpvae.train.checkpoint import (
    flatten,
    load_model,
    load_state,
    optimiser_state,
    restore_optimiser,
    save_model,
    save_state,
    unflatten,
)

# "/" separates the parts of a path, and "_" is the stand-in where there are no tensors at all
names = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=6).filter(lambda n: n != "_")
tensors = st.builds(lambda shape, kind, seed: torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(seed))
                    .to(kind), st.lists(st.integers(0, 3), max_size=3),
                    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool]), st.integers(0, 99))
values = st.one_of(st.none(), st.booleans(), st.integers(-2**53, 2**53), st.floats(allow_nan=False),
                   st.text(max_size=5), st.lists(st.integers(), max_size=3))
states = st.recursive(st.dictionaries(names, st.one_of(tensors, values), max_size=4),
                      lambda inner: st.dictionaries(names, st.one_of(tensors, values, inner), max_size=4),
                      max_leaves=12)

STATE = {"vae": {"w": torch.arange(6.0).view(2, 3), "b": torch.zeros(0)}, "phase": 1, "metrics": [{"elbo": -3.25}],
         "extra": {"adam": {"state": {0: {"step": torch.tensor(4.0)}}}, "empty": {}}}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and {str(k) for k in a} == set(b) and all(same(v, b[str(k)]) for k, v in a.items())
    return bool(a == b)


@given(state=states)
def test_unflatten_undoes_flatten_for_any_tree(state: dict[str, Any]) -> None:
    flat, structure = flatten(state)
    assert same(state, unflatten(flat, json.loads(json.dumps(structure))))


@given(state=states)
def test_what_is_saved_comes_back_bit_by_bit(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "state.safetensors"
    save_state(path, state)
    assert same(state, load_state(path))


def test_a_flattened_tensor_is_a_copy_that_later_training_does_not_change() -> None:
    weight = torch.ones(2, requires_grad=True)
    flat, _ = flatten({"w": weight})
    with torch.no_grad():
        weight.add_(1)
    assert flat["w"].tolist() == [1.0, 1.0]


def test_no_checkpoint_is_none_and_not_an_error(tmp_path: Path) -> None:
    assert load_state(tmp_path / "state.safetensors") is None


def test_a_truncated_checkpoint_is_a_run_error_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, STATE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match="damaged"):
            load_state(path)


@given(garbage=st.binary(max_size=300))
def test_garbage_in_place_of_a_checkpoint_is_a_run_error(garbage: bytes,
                                                         tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.safetensors"
    path.write_bytes(garbage)
    with pytest.raises(RunError, match="damaged"):
        load_state(path)


def test_a_checkpoint_with_one_flipped_byte_is_a_run_error(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, STATE)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        with pytest.raises(RunError):
            load_state(path)


def test_a_crash_while_saving_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, STATE)

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {"phase": 2})
    assert same(STATE, load_state(path))


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    save_state(tmp_path / "state.safetensors", STATE)
    data = (tmp_path / "state.safetensors").read_bytes()[32:]  # behind the checksum
    header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
    assert set(header) == {"__metadata__", "vae/w", "vae/b", "extra/adam/state/0/step"}


@pytest.mark.parametrize("name", ["anchored", "joint"])
def test_a_model_comes_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    vae = small_vae(name, seed=3)
    save_model(vae, tmp_path)
    back = load_model(tmp_path)
    assert back.shape == vae.shape
    assert same(dict(vae.state_dict()), dict(back.state_dict()))


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
    lambda folder: (folder / "model.safetensors").unlink(),
    lambda folder: (folder / "model.json").write_text("{"),
    lambda folder: (folder / "model.json").unlink(),
    lambda folder: (folder / "model.json").write_text('{"class": "VAE"}'),
    lambda folder: (folder / "model.json").write_text((folder / "model.json").read_text().replace("64", "65")
                                                      .replace('"hidden": 8', '"hidden": 9')),
])
def test_a_damaged_model_is_a_run_error(damage: Any, tmp_path: Path) -> None:
    save_model(small_vae("joint"), tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError):
        load_model(tmp_path)


def test_an_optimiser_goes_on_as_if_it_had_never_been_saved(tmp_path: Path) -> None:
    def walk(parameter: torch.Tensor, optimiser: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            parameter.grad = torch.sin(parameter.detach() * (step + 1))
            optimiser.step()

    straight = torch.ones(3, requires_grad=True)
    walk(straight, torch.optim.Adam([straight], lr=0.1), range(6))
    first = torch.ones(3, requires_grad=True)
    adam = torch.optim.Adam([first], lr=0.1)
    walk(first, adam, range(3))
    save_state(tmp_path / "s", {"adam": optimiser_state(adam), "w": first})
    saved = load_state(tmp_path / "s")
    assert saved is not None
    second = saved["w"].requires_grad_()
    resumed = torch.optim.Adam([second], lr=0.1)
    restore_optimiser(resumed, saved["adam"])
    walk(second, resumed, range(3, 6))
    assert torch.equal(second, straight)
