"""DeepEncoder: its layers one by one, the page's sizes, exact linearity without the readout's bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.interpret import dstrf, measure_receptive_field
from deepSTRF.models.audio import DeepEncoder, Linear


def test_formula() -> None:
    """Each output from a loop over taps, every layer padded with zeros by itself."""
    model = DeepEncoder(6, 7, 3, kernel_size=3, dilations=(1, 2)).double()
    w = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((6, 20))
    y = x
    for name, dilation in (("core.2.weight", 1), ("core.4.weight", 2)):
        padded = np.pad(y, ((0, 0), (2 * dilation, 0)))
        taps = [w[name][:, :, k] @ padded[:, k * dilation : k * dilation + 20] for k in range(3)]
        y = np.maximum(sum(taps), 0)
    wanted = w["readout.fc.weight"] @ y + w["readout.fc.bias"][:, None]
    np.testing.assert_allclose(model(torch.from_numpy(x)[None, None])[0, :, 0].detach(), wanted, atol=1e-14)


def test_sizes_of_the_page() -> None:
    model = DeepEncoder(n_frequency_bands=64)
    assert (model.count_trainable_params(), model.receptive_field, model.H, model.K) == (368769, 65, 128, 5)
    assert DeepEncoder().count_trainable_params() == 349569
    assert [tuple(p.shape) for p in model.core.parameters()] == [(128, 64, 5), *[(128, 128, 5)] * 4]
    assert [part.dilation[0] for part in model.core if isinstance(part, nn.Conv1d)] == [1, 1, 2, 4, 8]
    linear = Linear(64, 65, norm="none")
    assert (linear.count_trainable_params(), linear.receptive_field) == (64 * 65 + 1, 65)
    assert measure_receptive_field(DeepEncoder(6, 32), 6) == 65


def test_without_the_readout_bias_the_filter_is_all() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 80, dtype=torch.float64)
    for bias in (False, True):
        model = DeepEncoder(6, 16, 2, readout_bias=bias).double()
        result = dstrf(model, x)
        assert result.method == "sweep"
        expected = model.readout.fc.bias.detach() if bias else torch.zeros(2, dtype=torch.float64)
        torch.testing.assert_close(result.intercept, expected.expand(80, 2), atol=1e-14, rtol=0)


def test_illegal_arguments_are_told() -> None:
    for dilations in ((), "11", 3):
        with pytest.raises(ValueError, match="dilations must be whole numbers"):
            DeepEncoder(dilations=dilations)
    with pytest.raises(ValueError, match="dilations must be at least 1"):
        DeepEncoder(dilations=(1, 0))
    with pytest.raises(ValueError, match="kernel_size"):
        DeepEncoder(kernel_size=0)
    with pytest.raises(TypeError, match="readout_bias"):
        DeepEncoder(readout_bias=1)
