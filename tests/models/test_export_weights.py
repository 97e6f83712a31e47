"""Weights of graphs in 16 and 8 bits: what is rounded, that packing loses nothing, and sizes of files."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from deepSTRF.models.audio import GatedNet, Linear, StateNet
from deepSTRF.models.io.weights import _as_half, _as_whole, pack_weights, round_weights  # inner: exactness
from deepSTRF.models.wav2spec import make_wav2spec

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("shape", [(40, 30), (3, 20, 30), (16, 1, 8, 9), (300, 2)])
def test_eight_bits_are_nearest_multiples_and_survive_reshapes(shape):
    torch.manual_seed(0)
    model = torch.nn.Module()
    values = torch.randn(shape) * torch.logspace(-6, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    model.weight = torch.nn.Parameter(values.clone())
    assert round_weights(model, "int8") == ["weight"]
    rounded = model.weight.detach()
    rows, near = (x.flatten(2 if len(shape) == 3 else 1) for x in (values, rounded))
    step = rows.abs().amax(dim=-1, keepdim=True) / 127
    # half a step, and what 12 bits of the scale add at the largest values
    assert bool(((rows - near).abs() <= (0.5 + 127 * 2.0**-12) * step).all())
    array = rounded.numpy()
    forms = [array, array.swapaxes(-1, -2).copy(), array.reshape(rows.flatten(0, -2).shape), array[..., None]]
    for form in forms if shape != (300, 2) else []:
        whole, scale = _as_whole(form)
        assert whole.dtype == np.int8
        np.testing.assert_array_equal(whole.astype(np.float32) * scale, form)


def test_what_is_not_exact_in_a_narrow_type_stays():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 40)).astype(np.float32)
    assert _as_half(values) is None
    assert _as_whole(values) is None
    assert _as_half(np.full((4, 4), 1e6, np.float32)) is None
    half, scale = _as_half(values.astype(np.float16).astype(np.float32))
    assert (half.dtype, scale) == (np.float16, None)


def test_front_ends_biases_and_small_matrices_are_not_rounded():
    torch.manual_seed(0)
    model = Linear(12, 9, 20, wav2spec=make_wav2spec("leaf", 16000, 5.0, n_filters=12))
    before = copy.deepcopy(model.state_dict())
    assert round_weights(model, "int8") == ["readout.strf.kernel.weight"]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["readout.strf.kernel.weight"]
    assert round_weights(Linear(4, 3, 2), "int8") == []  # 24 weights


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_stacks_of_biases_and_poles_are_not_rounded(precision):
    torch.manual_seed(0)
    model = torch.nn.Module()
    for name in ("weight_ih", "bias_ih", "biases", "A_log", "A_imag"):
        setattr(model, name, torch.nn.Parameter(torch.randn(4, 100)))
    assert round_weights(model, precision) == ["weight_ih"]
    gated = GatedNet(16, out_neurons=4)
    assert gated.core.rnn.layers[0].bias_hh.ndim == 2
    for name in round_weights(gated, precision):
        assert "bias" not in name


@pytest.mark.parametrize("backbone", ["S4", "S4D"])
def test_state_space_systems_keep_their_poles_and_so_their_predictions(backbone):
    torch.manual_seed(0)
    model = StateNet(34, out_neurons=20, rnn_type=backbone).eval()
    rounded, x = copy.deepcopy(model), torch.randn(2, 1, 34, 300)
    assert any(name.endswith(".C") for name in round_weights(rounded, "int8"))
    with torch.no_grad():
        before, after = model(x), rounded(x)
    assert float((before - after).abs().max()) < 0.02 * float(before.max() - before.min())


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_half_precision_leaves_weights_out_of_its_range(size):
    torch.manual_seed(0)
    model = torch.nn.Linear(30, 30)
    with torch.no_grad():
        model.weight.mul_(size)
    before = model.weight.detach().clone()
    assert round_weights(model, "float16") == []
    assert torch.equal(model.weight, before)
    assert round_weights(model, "int8") == ["weight"]  # scales follow the unit
    torch.testing.assert_close(model.weight.detach(), before, rtol=0, atol=0.01 * float(before.abs().max()))


def exported(model, folder, graph, precision):
    made = model.export(folder, graphs=[graph], precision=precision)
    file = made / f"{graph}.onnx"
    metadata = json.loads((made / "metadata.json").read_text())[graph]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return file.stat().st_size, metadata, session


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_graph_equals_the_rounded_model(precision, tmp_path):
    torch.manual_seed(0)
    model = Linear(16, 20, 40).eval()
    before = copy.deepcopy(model.state_dict())
    plain, _, _ = exported(model, tmp_path / "plain", "sequence", "float32")
    size, metadata, session = exported(model, tmp_path / "small", "sequence", precision)
    weights = 4 * 16 * 20 * 40
    saved = {"float16": 0.5, "int8": 0.75}[precision]
    assert plain - size > 0.95 * saved * weights
    assert metadata["weights"]["precision"] == precision
    assert metadata["weights"]["rounded"] == ["readout.strf.kernel.weight"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rounded = copy.deepcopy(model)
    round_weights(rounded, precision)
    x = torch.randn(2, 1, 16, 50)
    with torch.no_grad():
        expected, original = rounded(x)[:, :, 0].numpy(), model(x)[:, :, 0].numpy()
    (rates,) = session.run(None, {"spectrogram": x.numpy()})
    span = np.ptp(original)
    np.testing.assert_allclose(rates, expected, atol=1e-5 * span)
    moved = np.abs(expected - original).max() / span
    assert moved < {"float16": 1e-3, "int8": 2e-2}[precision]
    assert metadata["weights"]["largest_difference_from_model"] == pytest.approx(moved, rel=1.0)


def test_weights_inside_of_a_loop_are_packed(tmp_path):
    torch.manual_seed(0)
    model = StateNet(16, 8, out_neurons=30).eval()
    plain, _, _ = exported(model, tmp_path / "plain", "sequence", "float32")
    size, metadata, session = exported(model, tmp_path / "small", "sequence", "int8")
    n_rounded = sum(
        value.numel() for name, value in model.named_parameters() if name in metadata["weights"]["rounded"]
    )
    assert plain - size > 0.6 * 4 * n_rounded
    rounded = copy.deepcopy(model)
    round_weights(rounded, "int8")
    x = torch.randn(2, 1, 16, 60)
    with torch.no_grad():
        expected = rounded(x)[:, :, 0].numpy()
    np.testing.assert_allclose(
        session.run(None, {"spectrogram": x.numpy()})[0], expected, atol=1e-5 * np.ptp(expected)
    )


def test_constants_in_the_body_of_a_loop_are_found():
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["w"], ["out"])],
        "body",
        [],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [16, 32])],
        initializer=[onnx.numpy_helper.from_array(np.full((16, 32), 0.5, np.float32), "w")],
    )
    flag = onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    node = onnx.helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [16, 32])
    opset = [onnx.helper.make_opsetid("", 20)]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [flag], [y]), opset_imports=opset, ir_version=10
    )
    assert proto.opset_import[0].version == 20
    assert pack_weights(proto, "float16") == 2
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert (session.run(None, {"flag": np.array(True)})[0] == 0.5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision"),
        ({"precision": "int8", "format": "torch"}, "format='onnx'"),
    ],
)
def test_what_cannot_be_stored_so_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Linear(8, 3).export(tmp_path / "graphs", **options)
    assert not (tmp_path / "graphs").exists()


def test_double_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="float32"):
        Linear(8, 3).double().export(tmp_path / "graphs", precision="float16")
