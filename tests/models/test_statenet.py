"""StateNet: its encoders, its features, its options, and public checkpoints. The bank does the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.models.audio import StateNet

# the layer of the encoder is checked by itself
from deepSTRF.models.audio.statenet import LocallyConnected1d, covered_positions
from deepSTRF.registry import BACKBONES

#: The prototype of the issue that asked for this model.
MODERN = {
    "temporal_window_size": 15,
    "hidden_channels": 96,
    "connectivity": "STRF",
    "encoder_activation": "gelu",
    "dropout": 0.3,
    "skip": True,
    "standardize": True,
}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 39_081),
        ({"rnn_type": "LSTM"}, 49_021),
        ({"rnn_type": "RNN"}, 19_201),
        ({"rnn_type": "vanilla"}, 19_201),
        ({"rnn_type": "LMU"}, 28_289),
        ({"rnn_type": "Mamba"}, 47_761),
        ({"rnn_type": "S4"}, 37_261),
        ({"rnn_type": "S4D"}, 32_781),
        ({"connectivity": "FC"}, 40_971),
        ({"connectivity": "CONV"}, 38_577),
        ({"num_layers": 2}, 39_081 + 29_820),
        ({"skip": True}, 39_081 + 70 * 119),
        (MODERN, 34 * 15 * 96 + 96 + 2 * 96 + 3 * 2 * 96 * 97 + 2 * 96 * 119 + 119 + 2 * 119),
    ],
)
def test_parameter_counts(options: dict[str, object], count: int) -> None:
    assert StateNet(34, out_neurons=119, **options).count_trainable_params() == count


def test_attributes() -> None:
    model = StateNet(34, out_neurons=3)
    assert (model.T, model.F, model.O, model.K, model.S) == (1, 34, 3, 7, 3)
    assert (model.C, model.L, model.H) == (7, 10, 70)
    assert model.rnn_type == "GRU"
    assert model.receptive_field is None
    assert model.STRF_gradmap().shape == (3, 1, 34, 60)
    assert isinstance(model.core.rnn, nn.GRU)
    assert (StateNet(34, **MODERN).L, StateNet(34, **MODERN).H) == (1, 96)


def encoded(model: StateNet, x: torch.Tensor) -> torch.Tensor:
    """What the backbone is fed: (B, T, H)."""
    fed = []
    handle = model.core.rnn.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    model.eval()(x)
    handle.remove()
    return fed[0]


@pytest.mark.parametrize("connectivity", ["LC", "CONV", "FC"])
def test_encoder_by_hand(connectivity: str) -> None:
    """Feature c at place l is at index c * L + l."""
    model = StateNet(13, kernel_size=5, stride=2, hidden_channels=3, connectivity=connectivity).double()
    x = torch.randn(1, 1, 13, 4, dtype=torch.float64)
    layers, frame = model.core.encoder_layers, x[0, 0, :, 2].numpy()
    weights = {name: value.detach().numpy() for name, value in layers.state_dict().items()}
    maps = np.zeros((3, 5))
    for c in range(3):
        for place in range(5):
            patch = frame[2 * place : 2 * place + 5]
            if connectivity == "LC":
                maps[c, place] = weights["0.weights"][c, :, place] @ patch + weights["0.biases"][c, place]
            elif connectivity == "CONV":
                maps[c, place] = weights["0.weight"][c, 0] @ patch + weights["0.bias"][c]
            else:
                row = c * 5 + place
                maps[c, place] = weights["1.weight"][row] @ frame + weights["1.bias"][row]
    normed = (maps - maps.mean(0)) / np.sqrt(maps.var(0) + 1e-5)
    features = 1 / (1 + np.exp(-normed))
    np.testing.assert_allclose(encoded(model, x)[0, 2].detach().numpy(), features.reshape(-1), atol=1e-12)


def test_strf_encoder_sees_its_window() -> None:
    model = StateNet(12, 4, hidden_channels=5, connectivity="STRF", encoder_activation="tanh")
    x = torch.randn(1, 1, 12, 30, requires_grad=True)
    features = encoded(model, x)
    (gradient,) = torch.autograd.grad(features[0, 20].sum() + features[0, 20, 0], x)
    assert gradient[0, 0].abs().amax(0).nonzero().flatten().tolist() == [17, 18, 19, 20]


def test_receptive_fields_of_the_encoder() -> None:
    model = StateNet(12, 4, hidden_channels=6, connectivity="STRF", out_neurons=2, standardize=True).eval()
    model.fit_standardization([3.0 * torch.randn(1, 12, 200)])
    weight = model.core.encoder_layers[0].kernel.weight.detach()[:, 0]
    assert torch.equal(model.STRFs(hidden_idx=None), weight)
    assert torch.equal(model.STRFs(-1), weight[5])
    folded = weight / model.standardizer.std[:, None]
    torch.testing.assert_close(model.STRFs(hidden_idx=None, folded=True), folded)
    with pytest.raises(IndexError, match="below 6"):
        model.STRFs(6)
    with pytest.raises(ValueError, match=r"connectivity='LC' has no receptive fields.*STRF_gradmap"):
        StateNet(12, out_neurons=2).STRFs()


def test_skip_shows_the_readout_both() -> None:
    model = StateNet(12, kernel_size=4, stride=2, hidden_channels=3, skip=True).eval()
    x = torch.randn(1, 1, 12, 9)
    features, encoder = model.core(x), encoded(model, x)
    assert features.shape == (1, 2 * 15, 9)
    assert torch.equal(features[:, :15], encoder.transpose(1, 2))
    assert torch.equal(features[:, 15:], model.core.rnn(encoder).transpose(1, 2))


def test_dropout_only_while_training() -> None:
    model = StateNet(12, kernel_size=4, dropout=0.5).train()
    x = torch.randn(1, 1, 12, 20)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_illegal_names_list_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"rnn_type.*'gru'.*'lmu'.*'s4d'.*'vanilla'"):
        StateNet(34, rnn_type="GRUU")
    with pytest.raises(ValueError, match=r"connectivity must be one of 'LC', 'FC', 'CONV', 'STRF'"):
        StateNet(34, connectivity="lattice")
    with pytest.raises(ValueError, match=r"encoder_activation must be one of 'sigmoid'.*'gelu'"):
        StateNet(34, encoder_activation="swish")
    with pytest.raises(TypeError, match="rnn_type"):
        StateNet(34, rnn_type=3)
    with pytest.raises(ValueError, match=r"kernel_size=35.*34 bands.*1 to 34"):
        StateNet(34, kernel_size=35)
    with pytest.raises(TypeError, match="skip"):
        StateNet(34, skip=1)
    with pytest.raises(ValueError, match="'GRU' has no option 'memory_size'; it takes none"):
        StateNet(34, rnn_options={"memory_size": 8})
    with pytest.raises(ValueError, match="'d_state', 'expand', 'd_conv'"):
        StateNet(34, rnn_type="Mamba", rnn_options={"n_heads": 8})


def test_options_reach_the_backbone() -> None:
    model = StateNet(34, rnn_type="lmu", rnn_options={"memory_size": 16, "theta": 40}, num_layers=2)
    assert [layer.W_m.shape for layer in model.core.rnn.layers] == [(70, 16), (70, 16)]


def test_detach_and_long_recordings() -> None:
    """Chunks with a detached state train on recordings of any length; ``detach()`` is harmless."""
    model = StateNet(12, kernel_size=4, stride=2, hidden_channels=3)
    model.detach()
    state, x = model.init_state(1), torch.randn(1, 1, 12, 30)
    for chunk in x.split(10, -1):
        y, state = model.step(chunk, state)
        y.sum().backward()
        state["core"]["rnn"] = {name: value.detach() for name, value in state["core"]["rnn"].items()}
    assert model.core.rnn.weight_hh_l0.grad is not None


def public_state(rnn_type: str) -> dict[str, torch.Tensor]:
    """A checkpoint with the public names and shapes, made up."""
    state = {
        "encoder_layers.0.weights": torch.randn(7, 7, 10),
        "encoder_layers.0.biases": torch.randn(7, 10),
        "encoder_layers.1.ln.weight": torch.rand(7),
        "encoder_layers.1.ln.bias": torch.randn(7),
        "readout.fc.weight": torch.randn(5, 70),
        "readout.fc.bias": torch.randn(5),
        "readout.activation._raw_beta": torch.rand(5),
        "readout.activation._raw_b": torch.rand(5),
    }
    if rnn_type == "LMU":
        names = {"e_x": (1, 70), "e_h": (1, 70), "e_m": (1, 128)}
        names |= {"W_x": (70, 70), "W_h": (70, 70), "W_m": (70, 128), "A": (128, 128), "B": (128, 1)}
        return state | {f"rnn.cell.{name}": 0.1 * torch.randn(shape) for name, shape in names.items()}
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[rnn_type]
    for part in ("ih", "hh"):
        state[f"rnn.weight_{part}_l0"] = 0.1 * torch.randn(gates * 70, 70)
        state[f"rnn.bias_{part}_l0"] = 0.1 * torch.randn(gates * 70)
    return state


@pytest.mark.parametrize("rnn_type", ["GRU", "LSTM", "RNN", "LMU"])
def test_public_checkpoints_load(rnn_type: str) -> None:
    state = public_state(rnn_type)
    model = StateNet(34, out_neurons=5, rnn_type=rnn_type)
    model.load_state_dict(model.convert_public_state(state))
    assert torch.equal(model.core.encoder_layers[0].weights, state["encoder_layers.0.weights"])
    assert torch.equal(model.readout.fc.weight, state["readout.fc.weight"])
    own = model.core.rnn.layers[0].W_h if rnn_type == "LMU" else model.core.rnn.weight_hh_l0
    assert torch.equal(own, state["rnn.cell.W_h" if rnn_type == "LMU" else "rnn.weight_hh_l0"])


def test_other_public_checkpoints_say_so() -> None:
    with pytest.raises(ValueError, match=r"rnn.layer.kernel.C.*GRU, LSTM, RNN and LMU"):
        StateNet(34).convert_public_state({"rnn.layer.kernel.C": torch.zeros(1)})


def test_every_backbone_can_be_chosen() -> None:
    for name in BACKBONES.names():
        assert StateNet(12, kernel_size=4, stride=4, hidden_channels=2, rnn_type=name)(
            torch.randn(1, 1, 12, 3)
        ).shape == (1, 1, 1, 3)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (3, 0, 1), (2, 2, 1), (2, 1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_locally_connected_by_hand(stride: int, padding: int, dilation: int, bias: bool) -> None:
    layer = LocallyConnected1d(16, 2, 3, 4, stride, padding, dilation, bias)
    x = torch.randn(5, 2, 16)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (padding, padding)))
    expected = np.zeros((5, 3, layer.output_size))
    for place in range(layer.output_size):
        patch = padded[:, :, place * stride : place * stride + 3 * dilation + 1 : dilation]
        kernel = layer.weights[..., place].detach().numpy().reshape(3, 2, 4)
        expected[..., place] = np.einsum("bik,oik->bo", patch, kernel)
    if bias:
        expected += layer.biases.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-5)
    with torch.no_grad():  # as one matrix, kept while the weights stay as they are
        np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-5)
        layer.weights.mul_(2.0)
        bare = expected - (layer.biases.numpy() if bias else 0.0)
        np.testing.assert_allclose(layer(x).numpy(), expected + bare, atol=2e-5)
    assert layer.output_size == nn.Conv1d(2, 3, 4, stride, padding, dilation)(x).shape[-1]


def test_locally_connected_start() -> None:
    """Both signs, scaled by the fan-in, and nothing drawn in vain."""
    torch.manual_seed(0)
    layer = LocallyConnected1d(60, 2, 20, 8)
    bound = (2 * 8) ** -0.5
    assert float(layer.weights.detach().abs().max()) <= bound
    assert abs(float(layer.weights.detach().mean())) < 0.02 * bound
    after = torch.rand(1)
    torch.manual_seed(0)
    torch.empty(layer.weights.numel() + layer.biases.numel()).uniform_()
    torch.testing.assert_close(after, torch.rand(1))


def test_locally_connected_errors() -> None:
    with pytest.raises(ValueError, match=r"kernel_size=9 .*8 bands.*1 to 8"):
        covered_positions(8, 9, 1)
    with pytest.raises(ValueError, match="spans 9 bands"):
        LocallyConnected1d(8, 1, 1, 3, dilation=4)
    with pytest.raises(ValueError, match=r"expected \(B, 2, 16\)"):
        LocallyConnected1d(16, 2, 3, 4)(torch.zeros(5, 1, 16))


def test_band_filters_leave_no_receptive_fields() -> None:
    model = StateNet(34, 5, connectivity="STRF", band_filters=4, out_neurons=2)
    with pytest.raises(ValueError, match=r"recurrent band filters.*STRF_gradmap"):
        model.STRFs()
    assert bool(torch.isfinite(model.STRF_gradmap()).all())
