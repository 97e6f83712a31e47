"""One tester for every metric: values against plain loops, and the laws all of them obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF import metrics

DTYPES = (torch.float32, torch.float64)


def per_neuron(function: Callable[..., float]) -> Callable[..., np.ndarray]:
    """Turn a function of one neuron's (B, T) prediction and (B, R, T) responses into one of all neurons."""

    def all_neurons(ref: Any, pred: torch.Tensor, responses: torch.Tensor) -> np.ndarray:
        p, y = pred.double().numpy()[:, :, 0], responses.double().numpy()
        return np.array([function(ref, p[:, n], y[:, n]) for n in range(p.shape[1])])

    return all_neurons


def _mse(ref: Any, p: np.ndarray, y: np.ndarray) -> float:
    x, g = ref.series(p, y)
    return float(np.mean((x - g) ** 2)) if len(x) else np.nan


def _poisson(ref: Any, p: np.ndarray, y: np.ndarray) -> float:
    x, g = ref.series(p, y)
    return float(np.mean(x - g * np.log(np.maximum(x, 1e-8)))) if len(x) else np.nan


def _fve(ref: Any, p: np.ndarray, y: np.ndarray) -> float:
    x, g = ref.series(p, y)
    if ref.is_flat(g):
        return np.nan
    return float(1 - np.sum((x - g) ** 2) / np.sum((g - g.mean()) ** 2))


def _snr(ref: Any, p: np.ndarray, y: np.ndarray) -> float:
    signal, noise = ref.powers_by_clip(y)
    return np.nan if not noise > 1e-12 else signal / noise


def _fev(ref: Any, p: np.ndarray, y: np.ndarray) -> float:
    signal, noise = ref.powers_by_clip(y)
    return np.nan if not noise > 1e-12 else signal / (signal + noise)


def _oracle(ref: Any, p: np.ndarray, y: np.ndarray) -> float:
    one, others = [], []
    for clip in y:
        for r in range(clip.shape[0]):
            for t in range(clip.shape[1]):
                rest = [clip[s, t] for s in range(clip.shape[0]) if s != r and not np.isnan(clip[s, t])]
                if rest and not np.isnan(clip[r, t]):
                    one.append(clip[r, t])
                    others.append(sum(rest) / len(rest))
    return ref.correlation(np.array(one), np.array(others))


@dataclass(frozen=True)
class Spec:
    """A metric, its plain form, and what it is indifferent to."""

    call: Callable[..., torch.Tensor]
    plain: Callable[..., np.ndarray]
    name: str
    uses_pred: bool = True
    scale_free: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] | None = None  # None: all

    def __call__(self, pred: torch.Tensor, responses: torch.Tensor, **more: Any) -> torch.Tensor:
        options = {**self.options, "reduction": "none", **more}
        return self.call(pred, responses, **options) if self.uses_pred else self.call(responses, **options)


NO_NAN = ("dense", "one neuron", "one clip", "two repeats", "silent neuron")


def _cc(ref: Any, p: np.ndarray, y: np.ndarray) -> float:
    return ref.correlation(*ref.series(p, y))


def _clip_power(part: int) -> Callable[..., np.ndarray]:
    return per_neuron(lambda ref, p, y: ref.powers_by_clip(y)[part])


def _concat_power(part: int) -> Callable[..., np.ndarray]:
    return per_neuron(lambda ref, p, y: ref.powers_concatenated(y)[part])


def _cc_norm(centring: str, kinds: tuple[str, ...] | None) -> Spec:
    plain = per_neuron(lambda ref, p, y: ref.cc_norm(p, y, centring))
    options = {"centring": centring}
    name = f"cc_norm {centring}"
    return Spec(metrics.normalized_corrcoef, plain, name, scale_free=True, options=options, kinds=kinds)


def _power(function: Callable[..., torch.Tensor], part: int, centring: str) -> Spec:
    plain, kinds = (_clip_power(part), None) if centring == "clip" else (_concat_power(part), NO_NAN)
    name = f"{function.__name__} {centring}"
    return Spec(function, plain, name, uses_pred=False, options={"centring": centring}, kinds=kinds)


BANK = [
    Spec(metrics.mse_loss, per_neuron(_mse), "mse_loss"),
    Spec(metrics.poisson_loss, per_neuron(_poisson), "poisson_loss"),
    Spec(metrics.corrcoef, per_neuron(_cc), "corrcoef", scale_free=True),
    Spec(metrics.fve, per_neuron(_fve), "fve"),
    _power(metrics.signal_power, 0, "clip"),
    _power(metrics.noise_power, 1, "clip"),
    _power(metrics.signal_power, 0, "concat"),
    _power(metrics.noise_power, 1, "concat"),
    Spec(metrics.snr, per_neuron(_snr), "snr", uses_pred=False, scale_free=True),
    Spec(metrics.fev, per_neuron(_fev), "fev", uses_pred=False, scale_free=True),
    Spec(metrics.oracle, per_neuron(_oracle), "oracle", uses_pred=False, scale_free=True),
    _cc_norm("concat", NO_NAN),
    _cc_norm("clip", None),
    _cc_norm("published", None),
]
ALL = pytest.mark.parametrize("spec", BANK, ids=lambda spec: spec.name)


@ALL
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestMetric:
    """Laws of every metric."""

    def test_value(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        for kind in spec.kinds or ref.kinds:
            pred, responses = ref.make_case(kind, dtype)
            expected = spec.plain(ref, pred, responses)
            found = spec(pred, responses).double().numpy()
            tolerance = 2e-5 if dtype == torch.float32 else 1e-10
            np.testing.assert_allclose(
                found, expected, rtol=tolerance, atol=tolerance, err_msg=f"{spec.name}, {kind}"
            )

    def test_reductions(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        for kind in ("dense", "missing pairs"):
            pred, responses = ref.make_case(kind, dtype)
            values = spec(pred, responses).double().numpy()
            for reduction, plain in (("mean", np.nanmean), ("sum", np.nansum), ("median", np.nanmedian)):
                found = spec(pred, responses, reduction=reduction)
                assert found.shape == ()
                assert float(found) == pytest.approx(plain(values), rel=1e-5)

    def test_neurons_do_not_mix(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        pred, responses = ref.make_case("gaps", dtype)
        order = [3, 0, 4]
        alone = spec(pred[:, order], responses[:, order])
        torch.testing.assert_close(alone, spec(pred, responses)[order], equal_nan=True)

    def test_order_of_clips_and_repeats_is_irrelevant(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        pred, responses = ref.make_case("fewer repeats", dtype)
        clips, repeats = [2, 0, 3, 1], [4, 2, 0, 1, 3]
        shuffled = spec(pred[clips], responses[clips][:, :, repeats])
        torch.testing.assert_close(shuffled, spec(pred, responses), rtol=1e-5, atol=1e-6)

    def test_padding_changes_nothing(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        pred, responses = ref.make_case("dense", dtype)
        padded = torch.nn.functional.pad(responses, (0, 7, 0, 3), value=torch.nan)
        longer = torch.nn.functional.pad(pred, (0, 7), value=3.0)
        torch.testing.assert_close(spec(longer, padded), spec(pred, responses), rtol=1e-5, atol=1e-6)

    def test_mask_equals_nan(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        pred, responses = ref.make_case("gaps", dtype)
        valid = ~torch.isnan(responses)  # what neural_collate returns
        expected = spec(pred, responses)
        for filled in (responses, torch.nan_to_num(responses, nan=77.0)):
            torch.testing.assert_close(spec(pred, filled, mask=valid), expected, equal_nan=True)

    def test_warm_up_mask(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        pred, responses = ref.make_case("dense", dtype)
        mask = torch.arange(responses.shape[-1]) >= 10
        cut = spec(pred[..., 10:], responses[..., 10:])
        for shaped in (mask, mask.expand(len(pred), 1, 1, -1), mask.expand_as(responses)):
            torch.testing.assert_close(spec(pred, responses, mask=shaped), cut, rtol=1e-5, atol=1e-6)

    def test_strided_input(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        pred, responses = ref.make_case("gaps", dtype)
        strided = responses.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
        torch.testing.assert_close(spec(pred, strided), spec(pred, responses), equal_nan=True)

    def test_inputs_stay_untouched(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        pred, responses = ref.make_case("gaps", dtype)
        before = pred.clone(), responses.clone()
        spec(pred, responses)
        torch.testing.assert_close((pred, responses), before, rtol=0, atol=0, equal_nan=True)

    def test_nan_called_valid_shows(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        pred, responses = ref.make_case("dense", dtype)
        responses[1, 2, :, 5] = torch.nan
        for mask in (torch.ones(40, dtype=torch.bool), torch.ones_like(responses, dtype=torch.bool)):
            found = spec(pred, responses, mask=mask)
            assert torch.isnan(found).tolist() == [False, False, True, False, False]

    def test_device_path_equals_cpu_path(
        self, spec: Spec, dtype: torch.dtype, ref: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a GPU completeness is not asked for, as that would stall: the masked form serves all."""
        pred, responses = ref.make_case("dense", dtype)
        expected = spec(pred, responses)
        monkeypatch.setattr("deepSTRF.metrics._statistics.is_complete", lambda values: False)
        torch.testing.assert_close(spec(pred, responses), expected, rtol=1e-6, atol=1e-6)

    def test_nothing_at_all(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        for shape in ((0, 3, 4, 20), (2, 3, 4, 0), (2, 0, 4, 20)):
            responses = torch.zeros(shape, dtype=dtype)
            found = spec(responses[:, :, :1], responses)
            assert found.shape == (shape[1],)
            assert torch.isnan(found).all()

    def test_bad_arguments(self, spec: Spec, dtype: torch.dtype, ref: Any) -> None:
        pred, responses = ref.make_case("dense", dtype)
        with pytest.raises(ValueError, match="reduction"):
            spec(pred, responses, reduction="max")
        with pytest.raises(ValueError, match="shape"):
            spec(pred[0], responses[0])
        with pytest.raises(TypeError, match="bool"):
            spec(pred, responses, mask=torch.ones_like(responses))
        with pytest.raises(ValueError, match="mask expands"):
            spec(pred, responses, mask=torch.ones(3, dtype=torch.bool))
        if spec.uses_pred:
            with pytest.raises(ValueError, match="shape"):
                spec(pred[:, :2], responses)
            with pytest.raises(ValueError, match="R-axis"):
                spec(responses, responses)


@pytest.mark.parametrize("spec", [spec for spec in BANK if spec.scale_free], ids=lambda spec: spec.name)
def test_scale_and_shift_invariance(spec: Spec, ref: Any) -> None:
    for kind in ("dense", "gaps"):
        if spec.kinds and kind not in spec.kinds:
            continue
        pred, responses = ref.make_case(kind)
        expected = spec(pred, responses)
        for scale, shift in ((1e-8, 0.0), (1e-150, 0.0), (1e9, 0.0), (1.0, 1e6), (1e-6, 1.0)):
            found = spec(scale * pred + shift, scale * responses + shift)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
