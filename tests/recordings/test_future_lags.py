"""Lags that begin after the response, or long before it: ridge, `Linear`, and what reports say of them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deepSTRF.baselines import fit_ridge, start_from_ridge
from deepSTRF.cli import main
from deepSTRF.datasets import recording as pieces_of_clips  # inner: sizes of pieces
from deepSTRF.datasets import windows
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig, Run, run_experiment
from deepSTRF.interpret import dstrf, exciting_spectrogram, measure_window, strf_tuning, waveform_fields
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import ConvNet2D, Linear, LinearNonlinear, StateNet
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.plots import plot_strf_confidence, plot_strf_grid
from deepSTRF.registry import MODELS
from deepSTRF.report import explain_run, write_report
from deepSTRF.training import Fitter, ProtocolCard, make_loaders, score_model, validate_model

Array = npt.NDArray[np.float64]
BANDS, NEURONS, DT = 3, 3, 10.0
RANGES = [(-10, 40), (-5, 0), (3, 20), (-7, -2), (0, 6)]


def explicit(features: Array, lags: tuple[int, int]) -> Array:
    """Rows (T, L F) of a lagged design, lag by lag from the first on; zeros outside the clip."""
    bands, n_bins = features.shape
    rows = np.zeros((n_bins, lags[1] - lags[0] + 1, bands))
    for t in range(n_bins):
        for place, lag in enumerate(range(lags[0], lags[1] + 1)):
            if 0 <= t - lag < n_bins:
                rows[t, place] = features[:, t - lag]
    return rows.reshape(n_bins, -1)


def recording(lengths: tuple[int, ...] = (90, 40, 7, 120), holes: bool = True, seed: int = 0) -> Any:
    """Clips of several lengths, one shorter than a window; single bins, clips and most bins missing."""
    rng = np.random.default_rng(seed)
    stims = [rng.normal(size=(BANDS, n)) for n in lengths]
    responses: list[Any] = [rng.normal(size=(NEURONS, 2, n)) for n in lengths]
    if holes:
        responses[0][1, :, 11:19] = np.nan
        responses[1][1] = np.nan
        for response in responses:
            response[2, :, rng.random(response.shape[-1]) < 0.8] = np.nan
    return AudioNeuralDataset.from_arrays(stims, responses, dt_ms=DT, check_alignment=False)


def in_ms(lags: tuple[int, int]) -> tuple[float, float]:
    return lags[0] * DT, lags[1] * DT


# ------------------------------ ridge


@pytest.mark.parametrize("max_bytes", [2**28, 4_000])
@pytest.mark.parametrize("lags", RANGES)
def test_ridge_is_that_of_an_explicit_design(lags: tuple[int, int], max_bytes: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is a development extra")
    ds = recording()
    fit = fit_ridge(ds, lags_ms=in_ms(lags), lambdas=3.0, standardize=False, max_bytes=max_bytes)
    assert fit.lags == range(lags[0], lags[1] + 1)
    assert fit.weight.shape == (NEURONS, 1, BANDS, lags[1] - lags[0] + 1)
    assert set(fit.forms) <= {"primal", "dual"}
    for neuron in range(NEURONS):
        x, y = [], []
        for clip in range(len(ds)):
            response = np.asarray(ds.response_block(clip)[neuron].double()).mean(0)
            kept = ~np.isnan(response)
            x.append(explicit(np.asarray(ds.stims[clip][0].double()), lags)[kept])
            y.append(response[kept])
        theirs = linear_model.Ridge(alpha=3.0, solver="svd").fit(np.concatenate(x), np.concatenate(y))
        wanted = theirs.coef_.reshape(-1, BANDS)[::-1].T  # oldest lag first, as everywhere here
        np.testing.assert_allclose(fit.weight[neuron, 0], wanted, atol=1e-8 * np.abs(wanted).max(), rtol=0)
        assert fit.bias[neuron].item() == pytest.approx(theirs.intercept_, abs=1e-8)


def test_both_forms_are_tried_above() -> None:
    forms = [set(fit_ridge(recording(), lags_ms=in_ms(lags), lambdas=3.0).forms) for lags in RANGES]
    assert {"primal", "dual"} <= set().union(*forms)


@pytest.mark.parametrize("lags", RANGES)
def test_the_model_is_the_estimate_at_the_ends_of_clips_too(lags: tuple[int, int]) -> None:
    ds = recording(holes=False)
    fit = fit_ridge(ds, lags_ms=in_ms(lags), lambdas=2.0, standardize=False)
    weight = np.asarray(fit.weight[:, 0].flip(-1).transpose(1, 2).flatten(1))
    for clip, rates in enumerate(fit.model.predict(ds)):
        x = explicit(np.asarray(ds.stims[clip][0].double()), lags)
        np.testing.assert_allclose(rates, weight @ x.T + np.asarray(fit.bias)[:, None], atol=1e-5)


def test_causal_calls_are_what_they_were() -> None:
    ds = recording()
    one, two = fit_ridge(ds, n_lags=12, lambdas=2.0), fit_ridge(ds, lags_ms=(0, 110), lambdas=2.0)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)
    assert (two.model.is_causal, two.model.first_lag, two.lags) == (True, 0, range(12))
    assert fit_ridge(ds, lambdas=2.0).weight.shape[-1] == 40
    assert "lags" not in one.facts()
    assert fit_ridge(ds, lags_ms=(-20, 30), lambdas=2.0).facts()["lags"] == "-20 to 30 ms before the response"


def test_a_response_before_its_stimulus_is_found_there() -> None:
    rng = np.random.default_rng(1)
    stims = [rng.normal(size=(BANDS, 500)) for _ in range(3)]
    responses = [
        np.stack([np.roll(s[1], -4), np.roll(s[2], 6)])[:, None] for s in stims
    ]  # 40 ms ahead; 60 after
    ds = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=DT, check_alignment=False)
    fit = fit_ridge(
        ds.select(clips=[0, 1]), ds.select(clips=[2]), lags_ms=(-100, 100), standardize=False, score="cc"
    )
    for neuron, (band, lag) in enumerate([(1, -4), (2, 6)]):
        found = np.unravel_index(int(fit.weight[neuron, 0].abs().argmax()), (BANDS, 21))
        assert (found[0], fit.lags[::-1][found[1]]) == (band, lag)
    causal = fit_ridge(
        ds.select(clips=[0, 1]), ds.select(clips=[2]), n_lags=11, standardize=False, score="cc"
    )
    scores = [score_model(one.model, ds.select(clips=[2])).mean("cc").mean for one in (fit, causal)]
    assert scores[0] > 0.98 > 0.7 > scores[1]


@pytest.mark.parametrize("lags", [*RANGES, (-60, 70)])
def test_long_clips_in_pieces_are_the_whole(lags: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = recording((200, 90)), recording((150, 40), seed=3)
    options: dict[str, Any] = {"lags_ms": in_ms(lags), "lambdas": [1.0, 30.0], "warmup_ms": 50.0}
    whole = fit_ridge(train, validation, **options)
    monkeypatch.setattr(pieces_of_clips, "WHOLE_CLIP_BYTES", 100)
    monkeypatch.setattr(pieces_of_clips, "PIECE_OF_CLIP_BYTES", 24 * 31)  # 31 bins
    assert len(train.pieces(0)) == 7
    cut = fit_ridge(train, validation, **options)
    torch.testing.assert_close(cut.weight, whole.weight, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(cut.scores["cc"], whole.scores["cc"])
    scores = [score_model(one.model, validation).mean("cc").mean for one in (whole, cut)]
    assert scores[0] == pytest.approx(scores[1])


def test_windows_with_context_have_no_future() -> None:
    cut = windows(recording((200, 200), holes=False), 0.5, context_ms=100.0)
    fit_ridge(cut, lags_ms=(0, 50), lambdas=1.0)
    with pytest.raises(ValueError, match=r"looks 3 bins ahead; windows hold what comes before them"):
        fit_ridge(cut, lags_ms=(-30, 50), lambdas=1.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lags_ms": (-100, 404)}, "no whole bins of 10 ms; the nearest that are: \\(-100, 400\\)"),
        ({"lags_ms": (400, -100)}, "first <= last"),
        ({"lags_ms": (-100, math.inf)}, "lags_ms must be"),
        ({"lags_ms": (-100, 0, 100)}, "lags_ms must be"),
        ({"lags_ms": (-100, 100), "n_lags": 20}, "are 21 frames \\(both ends included\\) and n_lags=20"),
    ],
)
def test_bad_lags(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fit_ridge(recording(), lambdas=1.0, **options)
    if "n_lags" not in options:
        with pytest.raises(ValueError, match=text):
            Linear(BANDS, dt_ms=DT, **options)


def test_lags_round_to_a_hundredth_of_a_bin() -> None:
    assert fit_ridge(recording(), lags_ms=(-20.05, 30.0), n_lags=6, lambdas=1.0).lags == range(-2, 4)
    model = Linear(BANDS, lags_ms=(-101.56, 398.44), dt_ms=1000 / 128)
    assert (model.first_lag, model.T) == (-13, 65)


# ------------------------------ the model


@pytest.mark.parametrize("kernel", [None, {"kernel": "separable", "rank": 2}, {"kernel": "parametric"}])
@pytest.mark.parametrize("lags", RANGES)
def test_forward_is_the_sum_over_lags(lags: tuple[int, int], kernel: Any) -> None:
    torch.manual_seed(0)
    model = Linear(BANDS, out_neurons=NEURONS, norm="none", kernel=kernel, lags=lags).double()
    weight = model.STRF_weight(unit="raw").numpy()
    bias = model.readout.strf.kernel.bias.detach().numpy()
    for n_bins in (70, 2, 1):
        x = torch.randn(2, 1, BANDS, n_bins, dtype=torch.float64)
        for clip, rates in zip(x, model(x), strict=True):
            rows = explicit(clip[0].numpy(), lags).reshape(n_bins, -1, BANDS)
            wanted = np.einsum("nfl,tlf->nt", weight[..., ::-1], rows) + bias[:, None]
            np.testing.assert_allclose(rates[:, 0].detach(), wanted, atol=1e-12)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("lags", RANGES)
def test_no_frame_beyond_the_lags_is_seen(lags: tuple[int, int], standardize: bool) -> None:
    """NaN in a frame reaches exactly the predictions whose lags hold it."""
    model = Linear(BANDS, out_neurons=NEURONS, lags=lags, standardize=standardize).eval()
    if standardize:
        model.fit_standardization([torch.randn(1, BANDS, 50)])
    x = torch.randn(1, 1, BANDS, 120)
    x[..., 60] = math.nan
    with torch.no_grad():
        touched = model(x)[0, :, 0].isnan()
    assert touched.all(0).equal(touched.any(0))
    assert touched.all(0).nonzero().flatten().tolist() == list(range(60 + lags[0], 60 + lags[1] + 1))
    assert model.lookahead_frames == max(-lags[0], 0)
    assert model.is_causal == (lags[0] >= 0)
    assert model.receptive_field == max(lags[1], 0) + 1
    assert measure_window(model, BANDS) == (model.receptive_field, model.lookahead_frames)


def test_registered_models_are_causal_as_they_are_built() -> None:
    for name in MODELS:
        cls: Any = MODELS.get(name)
        built = cls(audio_fs=4000, out_neurons=2, dt_ms=5.0) if name == "icnet" else cls(34, out_neurons=2)
        assert (built.lookahead_frames, built.is_causal) == (0, True), name


@pytest.mark.parametrize("cls", [StateNet, ConvNet2D, LinearNonlinear])
def test_other_models_name_those_with_future_lags(cls: Any) -> None:
    for options in ({"lags_ms": (-100, 400)}, {"lags": (-10, 40)}):
        with pytest.raises(TypeError, match=r"Linear\(\.\.\., lags_ms=.*fit_ridge"):
            cls(34, out_neurons=2, **options)


def test_window_and_lags_agree() -> None:
    assert Linear(BANDS).T == 9
    assert Linear(BANDS, 51, lags=(-10, 40)).T == 51
    for options, text in (
        ({"temporal_window_size": 9, "lags": (-10, 40)}, "51 frames"),
        ({"lags": (1.5, 3)}, "whole frames"),
        ({"lags": (4, 3)}, "first <= last"),
        ({"lags_ms": (-10, 40)}, "dt_ms"),
        ({"lags_ms": (-10, 40), "dt_ms": DT, "lags": (-1, 4)}, "in the place of lags"),
        ({"lags_ms": (-10, 40), "dt_ms": 0.0}, "dt_ms"),
    ):
        with pytest.raises(ValueError, match=text):
            Linear(BANDS, **options)  # type: ignore[arg-type]
    assert "lags=(-10, 40)" in repr(Linear(BANDS, lags=(-10, 40)))


def test_streams_say_why_there_are_none() -> None:
    model = Linear(BANDS, lags=(-3, 5)).eval()
    for call in (lambda: model.init_state(1), lambda: model.step(torch.zeros(1, 1, BANDS, 4), {})):
        with pytest.raises(TypeError, match=r"3 after its own.*whole clips"):
            call()
    later = Linear(BANDS, lags=(3, 20), norm="none").eval()
    x, state, parts = torch.randn(1, 1, BANDS, 60), later.init_state(1), []
    with torch.no_grad():
        for chunk in x.split([1, 2, 30, 27], dim=-1):
            y, state = later.step(chunk, state)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, -1), later(x))


def test_checkpoints_keep_the_lags(tmp_path: Path) -> None:
    ds = recording(holes=False)
    for name, model in (
        ("ms", Linear(BANDS, out_neurons=NEURONS, lags_ms=(-30, 50), dt_ms=DT, standardize=True)),
        ("frames", fit_ridge(ds, lags_ms=(-30, 50), lambdas=2.0).model),
    ):
        model.measure_bands(ds.stims).eval()
        model.save_pretrained(tmp_path / name)
        again: Any = NeuralModel.from_pretrained(tmp_path / name)
        assert (again.first_lag, again.T, again.lookahead_frames) == (-3, 9, 3)
        assert torch.equal(again.predict(ds)[0], model.predict(ds)[0])
        assert "looks 30 ms ahead" in (tmp_path / name / "README.md").read_text()
        assert (
            dict(ProtocolCard.collect(ds, model=model).rows())["Causal"] == "no: the model looks 30 ms ahead"
        )
    Linear(BANDS, out_neurons=NEURONS).save_pretrained(tmp_path / "causal")
    assert "ahead" not in (tmp_path / "causal" / "README.md").read_text()
    assert "Causal" not in dict(ProtocolCard.collect(ds, model=Linear(BANDS)).rows())


def test_lags_in_ms_are_for_one_bin_width() -> None:
    model = Linear(BANDS, out_neurons=NEURONS, lags_ms=(-30, 50), dt_ms=5.0)
    ds = recording((90, 90), holes=False)
    with pytest.raises(ValueError, match=r"bins of 5 ms.*bins of 10 ms.*dt_ms=dataset.dt"):
        model.predict(ds)
    with pytest.raises(ValueError, match=r"dt_ms=dataset.dt"):
        Fitter(model, *make_loaders(ds, ds, batch_size=1), max_epochs=1, progress=False).fit()


def test_fits_refuse_to_show_padding_as_stimulus() -> None:
    ds = recording((90, 90, 60, 90), holes=False)
    model = Linear(BANDS, out_neurons=NEURONS, lags=(-3, 5), standardize=True)
    validate_model(model, ds)
    one_by_one = make_loaders(ds.select(clips=[0, 2]), ds.select(clips=[3]), batch_size=1)
    Fitter(model, *one_by_one, max_epochs=1, progress=False).fit()
    of_one_length = make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[3]), batch_size=2)
    Fitter(
        Linear(BANDS, out_neurons=NEURONS, lags=(-3, 5)), *of_one_length, max_epochs=1, progress=False
    ).fit()
    padded = make_loaders(ds.select(clips=[0, 2]), ds.select(clips=[3]), batch_size=2)
    with pytest.raises(ValueError, match=r"looks 3 bins ahead.*60 to 90 bins.*batch_size=1"):
        Fitter(Linear(BANDS, out_neurons=NEURONS, lags=(-3, 5)), *padded, max_epochs=1, progress=False).fit()


def test_starts_from_ridge_need_the_same_lags() -> None:
    ds = recording(holes=False)
    fit = fit_ridge(ds, lags_ms=(-30, 50), lambdas=2.0)
    model = Linear(BANDS, out_neurons=NEURONS, lags=(-3, 5), standardize=True, norm="none")
    start_from_ridge(model, fit, ds)
    torch.testing.assert_close(model.eval().predict(ds)[0], fit.model.predict(ds)[0])
    with pytest.raises(ValueError, match=r"begin at 0 bins.*at -3"):
        start_from_ridge(Linear(BANDS, 9, NEURONS, standardize=True), fit, ds)


# ------------------------------ interpretation


@pytest.mark.parametrize("activation", [None, "softplus"])
@pytest.mark.parametrize("lags", RANGES)
def test_dynamic_strfs_hold_the_frames_ahead(lags: tuple[int, int], activation: str | None) -> None:
    torch.manual_seed(0)
    model = Linear(BANDS, out_neurons=2, lags=lags, output_activation=activation).double().eval()
    x = torch.randn(BANDS, 60, dtype=torch.float64)
    whole = torch.autograd.functional.jacobian(lambda z: model(z[None, None])[0, :, 0], x)  # (N, T, F, T)
    found = dstrf(model, x)
    assert found.lookahead == max(-lags[0], 0)
    for place, lag in enumerate(found.lag_frames.tolist()):
        for t in (0, 20, 58):
            if 0 <= t - lag < 60:
                torch.testing.assert_close(found.weights[t, :, place], whole[:, t, :, t - lag])
    maps = model.STRF_gradmap(stimulus=x, unit="raw")[:, 0]
    last = 59 - model.lookahead_frames
    torch.testing.assert_close(maps, whole[:, last, :, 60 - maps.shape[-1] :])


def test_exciting_stimuli_tuning_and_fields_count_from_the_response() -> None:
    torch.manual_seed(0)
    model = Linear(BANDS, out_neurons=2, norm="none", lags=(-3, 5))
    found = exciting_spectrogram(model, energy=4.0)
    strf = model.STRFs(unit="raw").numpy()
    wanted = 2.0 * strf / np.linalg.norm(strf, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.stimulus, wanted, atol=1e-4)
    field = np.zeros((1, BANDS, 9))
    field[0, 1, 7] = 1.0  # lag -2
    table = strf_tuning(field, [500.0, 1000.0, 2000.0], DT, first_lag=-3)
    assert table["latency_ms"].item() == pytest.approx(-20.0)
    heard = Linear(8, out_neurons=1, lags=(-3, 5), wav2spec=make_wav2spec("mel", 16000, 5.0, n_filters=8))
    with pytest.raises(ValueError, match=r"looks 3 frames ahead.*wrt='samples'"):
        waveform_fields(heard, torch.randn(16000))


def test_figures_have_the_response_at_zero() -> None:
    field = np.random.default_rng(0).normal(size=(BANDS, 9))
    _, (panel,) = plot_strf_grid([field], dt_ms=DT, first_lag=-3)
    assert panel.get_xlim() == (60.0, -30.0)
    assert [line.get_xdata()[0] for line in panel.lines] == [0.0]
    _, (panel,) = plot_strf_grid([field], dt_ms=DT, first_lag=4)
    assert panel.get_xlim() == (130.0, 40.0)
    _, axes = plot_strf_confidence(field, field - 1, field + 1, dt_ms=DT, first_lag=-3)
    assert axes[1].get_xlim() == (60.0, -30.0)


# ------------------------------ experiments


@pytest.mark.parametrize("name", ["ridge", "linear"])
def test_runs_say_that_the_model_looks_ahead(name: str, tmp_path: Path) -> None:
    data = tmp_path / "mine.npz"
    recording((120, 120, 120, 120, 120), holes=False).save(data)
    words = ["fit", "--dataset", str(data), "--model", name, "--model-option", "lags_ms=[-30, 50]"]
    words += ["--split", "3/1/1", "--out", str(tmp_path / "run"), "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main(words if name == "ridge" else [*words, "--epochs", "1"])
    assert ended.value.code == 0
    run = Run.load(tmp_path / "run")
    model: Any = run.load_model()
    assert (model.first_lag, model.T) == (-3, 9)
    assert ("Causal", "no: the model looks 30 ms ahead") in [tuple(row) for row in run.protocol]
    assert any("looks 30 ms ahead" in text for _, text in run.facts["notes"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = explain_run(run, [0], progress=False)
    assert "looks ahead" in dict(found.skipped)["dynamic STRFs"]
    page = write_report(run).read_text()
    assert "it looks 30 ms ahead, right of the dashed line" in page
    assert "looks 30 ms ahead in the stimulus" in page


def test_an_experiment_names_the_models_with_lags() -> None:
    config = ExperimentConfig(model="statenet", model_options={"lags_ms": [-30, 50]})
    with pytest.raises(
        ValueError, match=r"no option 'lags_ms'.*'linear' \(Linear\) and 'ridge' \(fit_ridge\)"
    ):
        run_experiment(config, progress=False)
