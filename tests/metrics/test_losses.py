"""Losses: likelihoods against SciPy, gradients, masks, weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from deepSTRF.metrics import gamma_loss, mse_loss, negative_binomial_loss, poisson_loss, psth
from deepSTRF.registry import LOSSES as REGISTERED

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": mse_loss,
    "poisson": poisson_loss,
    "poisson log": partial(poisson_loss, log_input=True),
    "negative binomial": partial(negative_binomial_loss, dispersion=0.4),
    "negative binomial log": partial(negative_binomial_loss, dispersion=0.4, log_input=True),
    "gamma": partial(gamma_loss, shape=2.0),
    "gamma log": partial(gamma_loss, shape=2.0, log_input=True),
    "gamma exclude": partial(gamma_loss, shape=2.0, zeros="exclude"),
}
covered = {getattr(loss, "func", loss) for loss in LOSSES.values()}
LOSSES |= {
    name: loss
    for name, loss in REGISTERED.items()
    if loss not in covered and {"reduction", "weighting"} <= set(inspect.signature(loss).parameters)
}
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def counts_and_rates(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rate = torch.rand(2, 3, 1, 30, dtype=dtype) * 3 + 0.2
    return torch.poisson(rate.expand(2, 3, 4, 30)), rate + 0.3


@EVERY
def test_gradcheck(loss: Callable[..., Tensor]) -> None:
    counts, rate = (tensor[..., :4].clone() for tensor in counts_and_rates())
    counts[0, 1, 2, 2:] = torch.nan
    counts[1, 2] = torch.nan
    rate.requires_grad_()
    for reduction in ("none", "mean"):
        for weighting in ("bins", "repeats"):
            call = partial(loss, gt=counts, reduction=reduction, weighting=weighting)
            assert torch.autograd.gradcheck(lambda p, call=call: torch.nan_to_num(call(p)), (rate,))


@EVERY
@pytest.mark.parametrize("reduction", ["mean", "sum", "median"])
def test_gradient_is_exactly_zero_where_nothing_counts(loss: Callable[..., Tensor], reduction: str) -> None:
    counts, rate = counts_and_rates(torch.float32)
    counts[0, 0, :, 4:9] = torch.nan
    counts[:, 2] = torch.nan
    hidden = torch.isnan(counts).all(2, keepdim=True)
    for poison in (torch.nan, torch.inf, -torch.inf, 1e30, -1e30):
        pred = torch.where(hidden, torch.tensor(poison), rate).requires_grad_()
        value = loss(pred, counts, reduction=reduction)
        value.backward()
        assert torch.isfinite(value)
        assert pred.grad is not None
        assert torch.isfinite(pred.grad).all()
        assert (pred.grad[hidden] == 0).all()
        assert (pred.grad[~hidden] != 0).any()


@EVERY
def test_batch_without_any_data(loss: Callable[..., Tensor]) -> None:
    pred = torch.ones(1, 2, 1, 5, requires_grad=True)
    nothing = torch.full((1, 2, 3, 5), torch.nan)
    value = loss(pred, nothing)
    assert torch.isnan(value)
    value.backward()
    assert pred.grad is not None
    assert (pred.grad == 0).all()
    assert torch.isnan(loss(pred, nothing, reduction="none")).all()
    assert loss(pred, nothing, reduction="sum") == 0


@EVERY
def test_a_diverged_prediction_shows(loss: Callable[..., Tensor]) -> None:
    counts, rate = counts_and_rates()
    rate[0, 1, 0, 3] = torch.nan
    assert torch.isnan(loss(rate, counts))
    assert torch.isnan(loss(rate, counts, reduction="none")).tolist() == [False, True, False]


@EVERY
def test_psth_computed_beforehand_gives_the_identical_value(loss: Callable[..., Tensor]) -> None:
    function = loss.func if isinstance(loss, partial) else loss
    assert function.accepts_psth is True
    assert not hasattr(partial(function, weighting="repeats"), "accepts_psth")
    for dtype in (torch.float32, torch.float64):
        counts, rate = counts_and_rates(dtype)
        assert torch.equal(loss(rate, counts), loss(rate, psth(counts)))
        counts[0, 1, 2, 5:] = torch.nan
        counts[1, 2, :, 3] = torch.nan
        assert torch.equal(loss(rate, counts), loss(rate, psth(counts)))


def test_poisson_forms_agree_and_match_scipy() -> None:
    counts, rate = counts_and_rates()
    y, mu = counts.numpy(), rate.numpy()
    full = -scipy.stats.poisson.logpmf(y, mu).mean()
    constant = scipy.special.gammaln(y + 1).mean()
    assert float(poisson_loss(rate, counts)) == pytest.approx(full - constant)
    assert float(poisson_loss(rate.log(), counts, log_input=True)) == pytest.approx(full - constant)


@pytest.mark.parametrize("dispersion", [1e-3, 0.4, 3.0])
def test_negative_binomial_matches_scipy(dispersion: float) -> None:
    counts, rate = counts_and_rates()
    y, mu = counts.numpy(), rate.numpy()
    full = -scipy.stats.nbinom.logpmf(y, 1 / dispersion, 1 / (1 + dispersion * mu)).mean()
    kwargs = {"dispersion": dispersion, "full": True}
    assert float(negative_binomial_loss(rate, counts, **kwargs)) == pytest.approx(full, rel=1e-6)
    log = negative_binomial_loss(rate.log(), counts, log_input=True, **kwargs)
    assert float(log) == pytest.approx(full, rel=1e-6)


def test_negative_binomial_tends_to_poisson() -> None:
    counts, rate = counts_and_rates()
    small = negative_binomial_loss(rate, counts, dispersion=1e-7)
    assert float(small) == pytest.approx(float(poisson_loss(rate, counts)), rel=1e-6)


@pytest.mark.parametrize("shape", [0.5, 1.0, 4.0])
def test_gamma_matches_scipy(shape: float) -> None:
    _, rate = counts_and_rates()
    signal = torch.rand(2, 3, 4, 30, dtype=torch.float64) + 0.1
    full = -scipy.stats.gamma.logpdf(signal.numpy(), a=shape, scale=rate.numpy() / shape).mean()
    assert float(gamma_loss(rate, signal, shape=shape, full=True)) == pytest.approx(full)
    log = gamma_loss(rate.log(), signal, shape=shape, full=True, log_input=True)
    assert float(log) == pytest.approx(full)


def test_gamma_zeros_are_bounded_or_excluded() -> None:
    signal = torch.tensor([[[[0.0, 0.0, 2.0]]]])
    pred = torch.tensor([[[[1e-30, 1e-3, 2.0]]]], requires_grad=True)
    gamma_loss(pred, signal).backward()
    assert pred.grad is not None
    assert torch.isfinite(pred.grad).all()
    assert gamma_loss(pred, signal, zeros="exclude") == gamma_loss(pred[..., 2:], signal[..., 2:])


def test_parameters_per_neuron() -> None:
    counts, rate = counts_and_rates()
    values = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    together = negative_binomial_loss(rate, counts, dispersion=values, reduction="none")
    for n, value in enumerate(values.tolist()):
        alone = negative_binomial_loss(rate[:, n : n + 1], counts[:, n : n + 1], dispersion=value)
        assert float(together[n]) == pytest.approx(float(alone))
    with pytest.raises(ValueError, match="shape"):
        negative_binomial_loss(rate, counts, dispersion=values[:2])
    with pytest.raises(ValueError, match="> 0"):
        negative_binomial_loss(rate, counts, dispersion=-values)
    with pytest.raises(ValueError, match="> 0"):
        gamma_loss(rate, counts, shape=0.0)


@pytest.mark.parametrize("loss", [negative_binomial_loss, gamma_loss])
def test_a_learned_dispersion_needs_the_full_likelihood(loss: Callable[..., Tensor]) -> None:
    counts, rate = counts_and_rates()
    counts[0, 0, 1, 3:] = torch.nan
    name = "dispersion" if loss is negative_binomial_loss else "shape"
    parameter = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="full=True"):
        loss(rate, counts, **{name: parameter})
    assert torch.autograd.gradcheck(lambda v: loss(rate, counts, full=True, **{name: v}), (parameter,))


def test_learned_dispersion_finds_the_truth() -> None:
    generator = np.random.default_rng(0)
    counts = torch.from_numpy(
        generator.negative_binomial(2.0, 2.0 / (2.0 + 3.0), size=(1, 1, 10, 3000)).astype(float)
    )
    candidates = torch.tensor([0.25, 0.4, 0.5, 0.6, 1.0])
    mean = torch.full((1, 1, 1, 3000), 3.0)
    losses = [float(negative_binomial_loss(mean, counts, dispersion=float(a), full=True)) for a in candidates]
    assert candidates[int(np.argmin(losses))] == 0.5


def test_repeat_weighting_is_the_likelihood_of_the_single_repeats() -> None:
    counts, rate = counts_and_rates()
    counts[0, :, 1:, 10:] = torch.nan
    valid = ~torch.isnan(counts)
    for loss, single in (
        (poisson_loss, rate - counts * rate.log()),
        (partial(poisson_loss, log_input=True), rate.exp() - counts * rate),
    ):
        expected = torch.stack([single[:, n][valid[:, n]].mean() for n in range(3)])
        torch.testing.assert_close(loss(rate, counts, reduction="none", weighting="repeats"), expected)
    # squared error: up to the variance of the repeats, which does not depend on the prediction
    single = (rate - counts).square()
    offset = [
        single[:, n][valid[:, n]].mean() - mse_loss(p, counts, reduction="none", weighting="repeats")[n]
        for n in range(3)
        for p in (rate,)
    ]
    other = (rate + 1 - counts).square()
    moved = [
        other[:, n][valid[:, n]].mean() - mse_loss(rate + 1, counts, reduction="none", weighting="repeats")[n]
        for n in range(3)
    ]
    torch.testing.assert_close(torch.stack(offset), torch.stack(moved))


def test_repeat_weighting_with_a_psth_and_the_mask_of_its_repeats() -> None:
    counts, rate = counts_and_rates()
    counts[0, :, 1:, 10:] = torch.nan
    direct = poisson_loss(rate, counts, weighting="repeats")
    torch.testing.assert_close(
        poisson_loss(rate, psth(counts), mask=~torch.isnan(counts), weighting="repeats"), direct
    )
    assert not torch.isclose(direct, poisson_loss(rate, counts))


def test_validate_input() -> None:
    counts, rate = counts_and_rates()
    for loss in (poisson_loss, negative_binomial_loss, gamma_loss):
        bad = rate.clone()
        bad[0, 0, 0, 0] = -0.1
        with pytest.raises(ValueError, match="negative values"):
            loss(bad, counts, validate_input=True)
        hidden = counts.clone()
        hidden[0, 0, :, 0] = torch.nan
        loss(bad, hidden, validate_input=True)
        loss(rate.log(), counts, log_input=True, validate_input=True)
        negative = counts.clone()
        negative[0, 0, 0, 0] = -1.0  # one repeat; its PSTH need not be negative
        for options in ({}, {"log_input": True}, {"weighting": "repeats"}):
            with pytest.raises(ValueError, match="gt holds negative values"):
                loss(rate, negative, validate_input=True, **options)
            loss(rate, negative, **options)
        elsewhere = torch.ones_like(negative, dtype=torch.bool)
        elsewhere[0, 0, 0, 0] = False
        loss(rate, negative, mask=elsewhere, validate_input=True)


@EVERY
def test_bad_options(loss: Callable[..., Tensor]) -> None:
    counts, rate = counts_and_rates()
    with pytest.raises(ValueError, match="weighting"):
        loss(rate, counts, weighting="trials")
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        loss(rate.numpy(), counts)
    function = loss.func if isinstance(loss, partial) else loss
    if function is not mse_loss:
        with pytest.raises(ValueError, match="eps"):
            loss(rate, counts, eps=0.0)
    if function is gamma_loss:
        with pytest.raises(ValueError, match="zeros"):
            gamma_loss(rate, counts, zeros="drop")


@EVERY
def test_half_precision_is_raised_to_float32(loss: Callable[..., Tensor]) -> None:
    counts, rate = counts_and_rates(torch.float32)
    low = rate.bfloat16()
    assert loss(low, counts).dtype == torch.float32
    torch.testing.assert_close(loss(low, counts), loss(low.float(), counts))


@EVERY
def test_compiles_without_graph_breaks(loss: Callable[..., Tensor]) -> None:
    counts, rate = counts_and_rates()
    counts[0, 0, 0, :4] = torch.nan
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(rate, counts), loss(rate, counts))


def test_psth() -> None:
    responses = torch.tensor([[1.0, torch.nan, 3.0], [3.0, torch.nan, torch.nan]])
    torch.testing.assert_close(psth(responses), torch.tensor([[2.0, torch.nan, 3.0]]), equal_nan=True)
    assert psth(torch.ones(2, 3, 4, dtype=torch.int16)).dtype == torch.float32
    assert psth(torch.ones(4, 1, 5)).shape == (4, 1, 5)
    with pytest.raises(ValueError, match="shape"):
        psth(torch.ones(3))
