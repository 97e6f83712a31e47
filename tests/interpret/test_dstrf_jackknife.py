"""Filters that several fits agree on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.interpret.dstrf import ArraySink, FileSink, dstrf, jackknifed_dstrf
from deepSTRF.interpret.dstrf.jackknife import jackknife_error  # compared with the textbook formula
from deepSTRF.models.audio import Linear, StateNet

F, T = 4, 50


def fits(n: int = 7) -> list[Linear]:
    made = []
    for seed in range(n):
        torch.manual_seed(seed)
        made.append(Linear(F, 3, 2, output_activation=nn.Softplus()).double().eval())
    return made


@pytest.mark.parametrize("agreement", [None, 0.75, 0.95, 1.0])
@pytest.mark.parametrize("budget", [1, 2**20])
def test_mean_and_mask_as_they_are_written(agreement, budget) -> None:
    models, x = fits(), torch.randn(F, T, dtype=torch.float64)
    each = np.stack([dstrf(model, x).weights.numpy() for model in models])
    wanted = each.mean(0)
    if agreement is not None:
        upper, lower = np.quantile(each, agreement, axis=0), np.quantile(each, 1 - agreement, axis=0)
        wanted[(upper > 0) & (lower < 0)] = 0
    times = slice(None) if budget > 1 else slice(20, 26)
    result = jackknifed_dstrf(models, x, agreement=agreement, budget_bytes=budget, times=times)
    np.testing.assert_allclose(result.weights, wanted[times], atol=1e-15)
    if budget > 1:
        zero = np.logical_and(wanted == 0, each.mean(0) != 0).mean()
        assert result.kept == pytest.approx(1 - zero)
    assert result.times.tolist() == list(range(T))[times]


def test_the_mean_filter_reproduces_the_mean_response(tmp_path) -> None:
    models, x = fits(), torch.randn(F, T, dtype=torch.float64)
    result = jackknifed_dstrf(models, x, sink=FileSink(tmp_path / "mean.npy"), budget_bytes=20_000)
    weights = torch.from_numpy(np.load(result.weights))
    windows = nn.functional.pad(x, (2, 0)).unfold(1, 3, 1)
    total = torch.einsum("tnlf,ftl->tn", weights, windows) + result.intercept
    torch.testing.assert_close(total, result.response, atol=1e-12, rtol=0)
    mean = torch.stack([model(x.view(1, 1, F, T))[0, :, 0].T for model in models]).mean(0)
    torch.testing.assert_close(result.response, mean.detach(), atol=1e-12, rtol=0)


def test_one_fit_is_itself_and_illegal_arguments_are_told() -> None:
    (model,), x = fits(1), torch.randn(F, T, dtype=torch.float64)
    alone = jackknifed_dstrf([model], x, agreement=0.9)
    torch.testing.assert_close(alone.weights, dstrf(model, x).weights)
    with pytest.raises(ValueError, match="models is empty"):
        jackknifed_dstrf([], x)
    with pytest.raises(ValueError, match="fits of one model"):
        jackknifed_dstrf([model, Linear(F, 3, 1).double()], x)
    for agreement in (0.5, 0.0, 1.1):
        with pytest.raises(ValueError, match="agreement must be above"):
            jackknifed_dstrf([model], x, agreement=agreement)
    with pytest.raises(ValueError, match="edge must be one of"):
        jackknifed_dstrf([model], x, edge="crop")


def test_standard_errors_and_their_t_map(tmp_path) -> None:
    models, x = fits(), torch.randn(F, T, dtype=torch.float64)
    each = np.stack([dstrf(model, x).weights.numpy() for model in models])
    n = len(models)
    pseudo = n * each.mean(0) - (n - 1) * each  # Tukey's pseudo-values: their error of the mean
    wanted = pseudo.std(0, ddof=1) / np.sqrt(n)
    result = jackknifed_dstrf(models, x, error=ArraySink(), budget_bytes=20_000)
    np.testing.assert_allclose(result.error, wanted, atol=1e-14)
    t = np.divide(
        each.mean(0), wanted, out=np.zeros_like(wanted), where=wanted > 0
    )  # before the clip: 0 of 0
    np.testing.assert_allclose(result.t_map(), t, rtol=1e-9)
    masked = jackknifed_dstrf(models, x, error=ArraySink(), agreement=0.75)
    assert bool((masked.t_map()[masked.weights == 0] == 0).all())
    on_disk = jackknifed_dstrf(models, x, error=FileSink(tmp_path / "error.npy"))
    np.testing.assert_allclose(np.load(on_disk.error), wanted, atol=1e-14)
    with pytest.raises(TypeError, match="needs weights and errors in memory"):
        on_disk.t_map()
    assert jackknifed_dstrf(models, x).error is None
    assert bool(jackknife_error(torch.ones(1, 3)).isnan().all())


def test_errors_of_a_mean_are_those_of_statistics() -> None:
    """Of a plain mean the jackknife is the standard error, exactly."""
    values = torch.randn(12, 4, dtype=torch.float64)
    left_out = torch.stack([values[torch.arange(12) != j].mean(0) for j in range(12)])
    torch.testing.assert_close(jackknife_error(left_out), values.std(0) / 12**0.5)


def test_small_budgets_and_recurrent_fits_change_nothing() -> None:
    """Each fit goes along the clip once, however few bins there are at a time."""
    x, models = torch.randn(F, T, dtype=torch.float64), []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(StateNet(F, out_neurons=2, rnn_type="GRU", kernel_size=2, stride=1).double().eval())
    each = torch.stack([dstrf(model, x, lags=5).weights for model in models])
    for budget in (1, 10_000, 2**24):
        result = jackknifed_dstrf(models, x, lags=5, agreement=0.9, error=ArraySink(), budget_bytes=budget)
        assert (result.lags, result.lookahead) == (5, 0)
        torch.testing.assert_close(result.error, jackknife_error(each), atol=1e-14, rtol=0)
        kept = result.weights != 0
        torch.testing.assert_close(result.weights[kept], each.mean(0)[kept], atol=1e-14, rtol=0)
