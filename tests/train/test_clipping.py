"""Book-keeping against Opacus' hooks: the same clipped sums, the same norms, on every kind of layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from torch import Tensor, nn

from dpvae.errors import ConfigError
from dpvae.train.clipping import recorder as recorder_module
from dpvae.train.clipping import rules, terms
from dpvae.train.clipping.ghost import Ghost
from dpvae.train.clipping.recorder import Recorder
from dpvae.train.clipping.recurrent import swap_recurrent

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")

RECORDS = 6
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class Mixed(nn.Module):
    """Grouped and dilated convolutions, no bias, a layer used three times, 4-D linear input, an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.second = nn.Conv2d(4, 6, 3, dilation=2, stride=2, padding=2, bias=False)
        self.norm = nn.GroupNorm(2, 6)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1)
        self.grouped_up = nn.ConvTranspose2d(4, 4, 3, groups=2, dilation=2, bias=False)
        self.wide = nn.Linear(14, 14)
        self.layer_norm = nn.LayerNorm(14)
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(14, 14).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(F.silu(self.second(F.silu(self.first(x)))))
        h = F.silu(self.grouped_up(self.up(h)))  # (B, 4, 14, 14)
        h = torch.tanh(self.wide(h))
        h = self.frozen(h)
        return self.wide(self.layer_norm(self.wide(h))).flatten(1)


class Tokens(nn.Module):
    """Embeddings of tokens and places, attention by linear layers, and the embedding's weight as the output's."""

    def __init__(self, *, tied: bool = False, padding: int | None = None) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 8, padding_idx=padding), nn.Embedding(5, 8)
        self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 7, bias=False), nn.LayerNorm(8)
        if tied:
            self.out.weight = self.tokens.weight

    def forward(self, x_BT: Tensor) -> Tensor:
        places = torch.arange(x_BT.shape[1], device=x_BT.device).expand(len(x_BT), -1)
        h = self.tokens(x_BT) + self.places(places)
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        return self.out(h + F.scaled_dot_product_attention(q, k, v))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: object) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.cell_state = kind is nn.LSTM
        self.core = kind(4, 5, batch_first=True, **options)
        self.start = nn.Linear(4, 5)
        self.out = nn.Linear(5 * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x_BT: Tensor) -> Tensor:
        x = self.tokens(x_BT)
        if self.cell_state:
            return self.out(self.core(x)[0])
        layers = self.core.num_layers * (2 if self.core.bidirectional else 1)
        h = torch.tanh(self.start(x[:, 0])).expand(layers, -1, -1).contiguous()
        out, last = self.core(x, h)
        return torch.cat([self.out(out), last.sum(0)[:, None, :3]], 1)


class OwnParameter(nn.Module):
    """A layer that nobody has a rule for, of two inputs, with layers below it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.randn(4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.scale).tanh() * self.scale


class Shared(nn.Module):
    """A layer called twice, two layers with one weight, and K samples beside one another."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.again = self.a if twice else None
        self.decoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Unflatten(1, (2, 2, 2)),
                                     nn.ConvTranspose2d(2, 1, 2, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        offsets_K1 = torch.linspace(-1, 1, 3, dtype=x.dtype, device=x.device)[:, None]
        z_BK = self.b(self.a(self.a(x).tanh()).tanh())[:, None] + offsets_K1
        return self.decoder(z_BK.flatten(0, 1)).unflatten(0, (len(x), 3)).mean(1).flatten(1)


def real(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(RECORDS, *shape, generator=torch.Generator().manual_seed(1))


def codes(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 5, (RECORDS, *shape), generator=torch.Generator().manual_seed(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "table": (lambda: nn.Sequential(nn.Linear(9, 16), nn.SiLU(), nn.Linear(16, 9)), real(9)),
    "samples by Gram": (lambda: nn.Sequential(nn.Linear(20, 30), nn.SiLU(), nn.Linear(30, 20)), real(2, 20)),
    "samples by instantiation": (lambda: nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 4)), real(12, 4)),
    "in place": (lambda: nn.Sequential(nn.Linear(9, 16), nn.ReLU(inplace=True), nn.Linear(16, 9)), real(9)),
    "mixed": (Mixed, real(2, 9, 9)),
    "convolution of sequences": (lambda: nn.Sequential(
        nn.Conv1d(3, 4, 3, padding="same"), nn.SiLU(), nn.Conv1d(4, 4, 2, padding=1)), real(3, 8)),
    "circular padding": (lambda: nn.Conv2d(2, 3, 3, padding_mode="circular", padding=1), real(2, 5, 5)),
    "convolution of volumes": (lambda: nn.Conv3d(2, 3, 2), real(2, 3, 3, 3)),
    "few positions": (lambda: nn.Sequential(nn.Conv2d(6, 40, 3), nn.SiLU(), nn.ConvTranspose2d(40, 6, 3)),
                      real(6, 3, 3)),
    "one code a record": (lambda: nn.Sequential(nn.Embedding(5, 4), nn.SiLU(), nn.Linear(4, 3)), codes()),
    "tokens": (Tokens, codes(5)),
    "padded tokens": (lambda: Tokens(padding=0), codes(5)),
    "tied tokens": (lambda: Tokens(tied=True), codes(5)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), real(5, 8)),
    "gru": (lambda: Recurrent(nn.GRU), codes(6)),
    "gru of two layers both ways": (lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True), codes(6)),
    "gru without bias": (lambda: Recurrent(nn.GRU, bias=False), codes(6)),
    "lstm": (lambda: Recurrent(nn.LSTM), codes(6)),
    "rnn": (lambda: Recurrent(nn.RNN, nonlinearity="relu"), codes(6)),
    "no rule": (lambda: nn.Sequential(nn.Linear(4, 4), OwnParameter(), nn.InstanceNorm1d(3, affine=True),
                                      nn.Linear(4, 2)), real(3, 4)),
    "shared": (Shared, real(4)),
    "shared under two names": (lambda: Shared(twice=True), real(4)),
}
# Opacus refuses nn.MultiheadAttention, trips over changes in place, and gets the others wrong: its gradients ignore
# the padding's mode, give the row of padding_idx one, and count a layer twice that has two names
NO_HOOKS = {"transformer", "in place", "circular padding", "padded tokens", "shared under two names"}


def made(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, rows = MODELS[name]
    x = rows()
    return build().to(dtype), x.to(dtype) if x.is_floating_point() else x


def loss_of(out: Tensor, rows: int) -> Tensor:
    """One number per record, unlike for each."""
    weights = torch.linspace(0.5, 3.0, rows, dtype=out.dtype)
    return (out.flatten(1).tanh().square().sum(1) + out.flatten(1).sum(1)) * weights


def by_record(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """One backward pass per record: what any method must equal."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = []
    for i in range(len(x)):
        loss = loss_of(model(x), len(x))[i]
        grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(trained.values(), grads, strict=True)])
    return {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(trained)}


def by_hooks(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Opacus' gradients per record."""
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    swapped = swap_recurrent(model)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    loss_of(wrapped(x), len(x)).sum().backward()
    samples = {name: p.new_zeros(len(x), *p.shape) if p.grad_sample is None
               else p.grad_sample.reshape(len(x), -1, *p.shape).sum(1) for p, name in names.items()}
    wrapped.remove_hooks()
    for parent, name, original in swapped:
        setattr(parent, name, original)
    return samples


def by_book(model: nn.Module, x: Tensor, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Norms and clipped sums of a recorder."""
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    recorder = Recorder(model)
    loss_of(recorder(x), len(x)).sum().backward()
    norms = recorder.squared_norms().sqrt()
    sums = {names[p]: total for p, total in recorder.clipped_sums((clip / norms).clamp(max=1.0)).items()}
    recorder.remove_hooks()
    return norms, sums


def distance(name: str, dtype: torch.dtype, clip: float, oracle: Callable[[nn.Module, Tensor], dict[str, Tensor]]
             ) -> float:
    """Largest relative error of norms and of the clipped sum against ``oracle``."""
    model, x = made(name, dtype)
    norms, sums = by_book(model, x, clip)
    samples = oracle(model, x)
    true = torch.cat([s.flatten(1) for s in samples.values()], 1).norm(dim=1)
    factors = (clip / true).clamp(max=1.0)
    expected = torch.cat([torch.einsum("b,b...->...", factors, s).flatten() for s in samples.values()])
    got = torch.cat([sums[key].flatten() for key in samples])
    assert set(samples) == set(sums)
    return max(float((got - expected).norm() / expected.norm()), float(((norms - true) / true).abs().max()))


@pytest.mark.parametrize("clip", [0.1, 20.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
def test_clipped_sums_are_those_of_one_backward_pass_per_record(name: str, dtype: torch.dtype, clip: float) -> None:
    assert distance(name, dtype, clip, by_record) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in NO_HOOKS])
def test_clipped_sums_are_those_of_opacus_hooks(name: str, dtype: torch.dtype) -> None:
    assert distance(name, dtype, 1.0, by_hooks) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["table", "samples by Gram", "one code a record", "tokens"])
def test_ghost_norms_are_those_of_one_backward_pass_per_record(name: str) -> None:
    model, x = made(name, torch.float64)
    samples = by_record(model, x)
    ghost = Ghost(model, batch_first=True, loss_reduction="sum", max_grad_norm=1.0)
    loss_of(ghost(x), len(x)).sum().backward()
    true = torch.cat([sample.flatten(1) for sample in samples.values()], 1).norm(dim=1)
    torch.testing.assert_close(ghost.get_norm_sample(), true, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["table", "samples by instantiation", "convolution of sequences", "few positions",
                                  "convolution of volumes", "padded tokens", "no rule"])
def test_under_ghost_clipping_no_record_adds_more_than_the_clip_norm(name: str) -> None:
    for i in range(RECORDS):
        model, x = made(name, torch.float64)
        ghost = Ghost(model, batch_first=True, loss_reduction="sum", max_grad_norm=0.01)
        sums = ghost.clip(loss_of(ghost(x[i:i + 1]), 1), lambda norms_B: 0.01 / norms_B)
        assert sums is not None
        assert float(torch.cat([total.flatten() for _, total in sums]).norm()) <= 0.01 * (1 + 1e-6)


def test_ghost_clipping_refuses_a_padding_that_its_norms_do_not_know() -> None:
    model, _ = made("circular padding", torch.float64)
    with pytest.raises(ConfigError, match=r"Conv2d pads by 'circular'.*performance\.clipping=fast"):
        Ghost(model, batch_first=True, loss_reduction="sum", max_grad_norm=1.0)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_state_are_those_of_the_plain_model_before_during_and_after(name: str) -> None:
    model, x = made(name, torch.float64)
    before, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    recorder = Recorder(model)
    torch.testing.assert_close(recorder(x), before)
    with torch.no_grad():
        torch.testing.assert_close(recorder(x), before)
    recorder.remove_hooks()
    torch.testing.assert_close(model(x), before)
    assert list(model.state_dict()) == list(state)
    model(x).sum().backward()
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_no_record_adds_more_than_the_clip_norm(name: str) -> None:
    model, x = made(name, torch.float32)
    for i in range(RECORDS):
        sums = by_book(model, x[i:i + 1], 0.01)[1]
        assert float(torch.cat([s.flatten() for s in sums.values()]).double().norm()) <= 0.01 * (1 + 1e-6)


@pytest.mark.parametrize("name", ["table", "samples by Gram", "mixed", "tokens", "transformer"])
def test_in_bfloat16_no_record_adds_more_than_the_clip_norm(name: str) -> None:
    model, x = made(name, torch.float32)
    for i in range(RECORDS):
        recorder = Recorder(model)
        with torch.autocast("cpu", torch.bfloat16):
            out = recorder(x[i:i + 1])
            loss_of(out.float(), 1).sum().backward()
        norms = recorder.squared_norms().sqrt()
        sums = recorder.clipped_sums(0.01 / norms)
        recorder.remove_hooks()
        assert norms.dtype == torch.float32
        assert float(torch.cat([s.double().flatten() for s in sums.values()]).norm()) <= 0.01 * (1 + 1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["table", "samples by Gram", "mixed", "transformer", "shared"])
def test_a_record_that_is_not_finite_adds_nothing_and_changes_nobody_else(name: str, bad: float) -> None:
    model, x = made(name, torch.float64)
    recorder = Recorder(model)
    poisoned = x.clone()
    poisoned[2] = bad
    loss_of(recorder(poisoned), RECORDS).sum().backward()
    norms = recorder.squared_norms().sqrt()
    finite = torch.isfinite(norms)
    assert (~finite).nonzero().flatten().tolist() == [2]
    got = recorder.clipped_sums(torch.where(finite, 1 / norms, 0.0))
    loss_of(recorder(x), RECORDS).sum().backward()
    norms = recorder.squared_norms().sqrt()
    expected = recorder.clipped_sums(torch.where(finite, 1 / norms, 0.0))
    for parameter, total in got.items():
        torch.testing.assert_close(total, expected[parameter])


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(model: nn.Module, x: Tensor, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        loss_of(Recorder(model)(x), len(x)).sum().backward()


def test_a_parameter_used_outside_its_layer_is_refused() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.tokens(x), self.tokens.weight)

    recorder = Recorder(Outside())
    loss_of(recorder(codes(3)()), RECORDS).sum().backward()
    with pytest.raises(ConfigError, match=r"tokens\.weight was used outside"):
        recorder.clip(torch.ones_like)


def test_rows_that_belong_to_no_record_are_refused() -> None:
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Embedding(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.places(torch.arange(5))

    refused(Position(), real(5, 4)(), "rows for 6 records")


def test_a_tensor_changed_in_place_after_a_layer_has_seen_it_is_refused() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = x * 2
            out = self.layer(h)
            h += 1
            return out + h

    refused(Changed(), real(4)(), "changed in place")


def test_a_layer_without_a_rule_that_draws_random_numbers_is_refused() -> None:
    class Dropping(OwnParameter):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(super().forward(x), 0.5)

    refused(Dropping(), real(4)(), "Dropping has no rule")


# -- mutants ---------------------------------------------------------------------------------------------------------


def forgets_a_layer(patch: pytest.MonkeyPatch) -> None:
    layers = recorder_module._layers

    def all_but_one(recorder: Recorder, module: nn.Module, seen: set[nn.Module] | None = None):  # type: ignore[no-untyped-def]
        found = list(layers(recorder, module, seen))
        yield from found[1:]

    patch.setattr(recorder_module, "_layers", all_but_one)


def drops_cross_terms(patch: pytest.MonkeyPatch) -> None:
    norms = terms.Sample.squared_norms

    def join(parts: list[terms.Term]) -> terms.Term:
        class Apart:
            def squared_norms(self) -> Tensor:
                return torch.stack([norms(part.sampled()) for part in parts]).sum(0)

            def clipped_sum(self, factors_B: Tensor) -> Tensor:
                return torch.stack([part.sampled().clipped_sum(factors_B) for part in parts]).sum(0)

        return parts[0] if len(parts) == 1 else Apart()  # type: ignore[return-value]

    patch.setattr(recorder_module, "join", join)


def forgets_the_bias(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "summed", lambda g_BTp: terms.Sample(torch.zeros_like(g_BTp[:, 0])))


def positions_apart(patch: pytest.MonkeyPatch) -> None:
    def gram(g_BTp: Tensor, a_BTd: Tensor, same: Tensor | None) -> tuple[Tensor, Tensor]:
        return (g_BTp.square().sum(2) * a_BTd.square().sum(2)).sum(1), g_BTp.new_zeros(len(g_BTp))

    patch.setattr(terms, "_gram", gram)


def forgets_a_term(patch: pytest.MonkeyPatch) -> None:
    """The layer is known, and yet its gradient never reaches the book."""
    patch.setattr(Recorder, "record", lambda self, layer, rule, *call: None if layer is self._patched[0] else
                  self.write(rule(layer, call[0], call[2], self.records)))


MUTANTS = {"a layer forgotten": (forgets_a_term, "table"), "cross terms dropped": (drops_cross_terms, "shared"),
           "a bias forgotten": (forgets_the_bias, "table"), "positions apart": (positions_apart, "samples by Gram")}


@pytest.mark.parametrize(("mutate", "name"), MUTANTS.values(), ids=MUTANTS.keys())
def test_a_recorder_that_is_wrong_is_seen(mutate: Callable[[pytest.MonkeyPatch], None], name: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    assert distance(name, torch.float64, 0.1, by_hooks) < 1e-12
    mutate(monkeypatch)
    assert distance(name, torch.float64, 0.1, by_hooks) > TOLERANCE[torch.float32]


def test_a_recorder_that_forgets_a_layer_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    forgets_a_layer(monkeypatch)
    with pytest.raises(ConfigError, match="no layer was found for the parameter 0"):
        Recorder(made("table", torch.float32)[0])
