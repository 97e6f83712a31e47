"""What the earlier deepSTRF called otherwise: it works and warns, or is an error that shows the new call."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import pickle
import warnings
from pathlib import Path

import pytest
import torch

from deepSTRF import _moved
from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.metrics import compute_CCmax, normalized_corrcoef
from deepSTRF.models.audio import Linear
from deepSTRF.models.audio.dnet import LearnableExponentialDecay
from deepSTRF.models.prefiltering import AdapTrans, ICAdaptation, get_CFs, make_prefiltering
from deepSTRF.models.wav2spec import CausalGammatone, CausalMelSpectrogram, make_wav2spec

#: Import lines of the earlier package, by its public list.
LINES = {
    "deepSTRF.datasets.neural_dataset": "NeuralDataset",
    "deepSTRF.datasets.audio.audio_dataset": "AudioNeuralDataset",
    "deepSTRF.models.neural_model": "NeuralModel",
    "deepSTRF.models.audio.audio_model": "AudioEncodingModel",
    "deepSTRF.models.layers": "CausalSTRFConv ParametricSTRF SeparableSTRF CausalLayerNorm "
    "LearnableExponentialDecay LocallyConnected1d SinusoidalPositionalEncoding build_causal_window_mask",
    "deepSTRF.models.scales": "Hz_to_mel mel_to_Hz Hz_to_ERB ERB_to_Hz ERB_bandwidth Greenwood "
    "inverse_Greenwood",
    "deepSTRF.metrics.performance": "corrcoef fve normalized_corrcoef coherence signal_power noise_power snr "
    "compute_CCmax compute_TTRC",
    "deepSTRF.training.tb_log": "TensorBoardSeedLogger make_tensorboard_logger_factory",
    "deepSTRF.training.wandb_log": "WandbSeedLogger make_wandb_logger_factory",
    "deepSTRF.utils": "compare_wav2spec_to_groundtruth concat_neural_datasets neural_collate "
    "plot_psth_vs_pred plot_stim_with_response plot_strf_grid",
    "deepSTRF.utils.data": "concat_neural_datasets neural_collate",
    "deepSTRF.utils.data_download": "default_cache_dir stream_download unzip",
    "deepSTRF.utils.hub": "save_pretrained_to_dir download_pretrained CONFIG_FILE WEIGHTS_FILE METADATA_FILE "
    "MODEL_CARD_FILE",
    "deepSTRF.utils.plotting": "compare_wav2spec_to_groundtruth plot_psth_vs_pred plot_stim_with_response "
    "plot_strf_grid",
}


@pytest.mark.parametrize("place", LINES)
def test_earlier_imports_work(place: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = importlib.import_module(place)
        for name in LINES[place].split():
            assert getattr(module, name) is not None


@pytest.mark.parametrize(("place", "name"), [key for key in _moved.CHANGED if key[0] != _moved.DATASET])
def test_names_that_meant_something_else_show_the_new_call(place: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module(place)
        with pytest.raises(ImportError, match=r"of the earlier deepSTRF is now: ") as caught:
            exec(f"from {place} import {name}")
    assert _moved.CHANGED[place, name] in str(caught.value)


def recording() -> NeuralDataset:
    return SyntheticDataset(n_neurons=3, n_clips=4, n_repeats=2, clip_seconds=0.3)


def test_calls_that_read_a_dataset_work_and_warn() -> None:
    ds = recording()
    for name, value in (("get_N", 3), ("get_S", 4), ("get_F", ds.F), ("get_nrn_meta", ds.nrn_meta)):
        with pytest.warns(DeprecationWarning, match=rf"ds\.{name}\(\) is now"):
            assert getattr(ds, name)() == value


@pytest.mark.parametrize("name", [key[1] for key in _moved.CHANGED if key[0] == _moved.DATASET])
def test_calls_that_changed_a_dataset_show_the_new_one(name: str) -> None:
    with pytest.raises(AttributeError, match=f"{name} changed a dataset in place") as caught:
        getattr(recording(), name)
    assert _moved.CHANGED[_moved.DATASET, name] in str(caught.value)


def test_the_calls_shown_do_what_the_earlier_ones_did() -> None:
    """Selection by attributes of neurons and clips, on a recording with gaps."""
    sounds = [torch.rand(4, 20) for _ in range(3)]
    counts = [[torch.ones(2, 20), None], [None, torch.ones(2, 20)], [torch.ones(2, 20), None]]
    types = [{"type": "song"}, {"type": "noise"}, {"type": "song"}]
    ds = NeuralDataset.from_arrays(
        sounds, counts, 5.0, stim_meta=types, nrn_meta=[{"area": "A1"}, {"area": "PEG"}]
    )
    calls = {
        name: _moved.CHANGED[_moved.DATASET, name]
        for place, name in _moved.CHANGED
        if place == _moved.DATASET
    }
    names = {"ds": ds, "i": 1, "indices": [1, 0], "predicate": lambda row: "song" in row.values()}
    exec(calls["select_neuron"], names)
    assert names["view"].I == [1]
    exec(calls["select_population"], names)
    assert names["view"].I == [1, 0]
    exec(calls["select_pop_by_nrn_attr"], names)
    assert names["view"].I == [0]
    for heard in ("select_pop_by_stim_attr", "select_pop_by_stim_predicate"):
        exec(calls[heard], names)
        assert names["view"].I == [0]
    for clips in ("select_stims_by_attr", "select_stims_by_predicate"):
        exec(calls[clips], names)
        assert names["view"].S_sel == [0, 2]
    exec(calls["select_stims"], names)
    assert names["view"].S_sel == [1, 0]


def test_a_dataset_is_otherwise_an_ordinary_object() -> None:
    ds = recording()
    assert not hasattr(ds, "nothing")
    with pytest.raises(AttributeError, match="'SyntheticDataset' object has no attribute 'nothing'"):
        ds.nothing  # noqa: B018
    for twin in (copy.copy(ds), copy.deepcopy(ds), pickle.loads(pickle.dumps(ds))):
        assert len(twin) == len(ds)


def test_earlier_keywords_work_and_warn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    repeats = torch.rand(2, 6, 50)
    with pytest.warns(DeprecationWarning, match=r"compute_CCmax\(max_iters=\) is now n_splits="):
        old = compute_CCmax(repeats, max_iters=4)
    assert torch.equal(old.nan_to_num(), compute_CCmax(repeats, n_splits=4).nan_to_num())
    rates, responses = torch.rand(1, 2, 1, 50), torch.rand(1, 2, 6, 50) + torch.rand(1, 2, 1, 50)
    with pytest.warns(DeprecationWarning, match="ccmax_iters"):
        old = normalized_corrcoef(rates, responses, method="hsu", ccmax_iters=4)
    assert torch.equal(old, normalized_corrcoef(rates, responses, method="hsu", n_splits=4))
    with pytest.warns(DeprecationWarning, match="n_freqs"):
        assert torch.equal(get_CFs(500, 8000, n_freqs=5), get_CFs(500, 8000, 5))
    with pytest.warns(DeprecationWarning, match="n_freqs"):
        assert make_prefiltering("adaptrans", n_freqs=5, dt=5.0).F == 5
    model = Linear(4, 3, 2, wav2spec=CausalMelSpectrogram(16000, n_mels=4)).eval()
    sound = torch.randn(1, 1600)
    with pytest.warns(DeprecationWarning, match="stimulus"):
        old = model.waveform_gradmap(stimulus=sound, neuron=0)
    assert torch.equal(old, model.waveform_gradmap(sound, neuron=0))
    with pytest.warns(DeprecationWarning, match="save_dir") as caught:
        model.save_pretrained(save_dir=tmp_path)
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="repo_id_or_path") as caught:
        assert Linear.from_pretrained(repo_id_or_path=tmp_path).F == 4
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: AdapTrans([0.9], [0.5], kernel_size=10), r"AdapTrans\(init_a_vals, init_w_vals\)"),
        (lambda: ICAdaptation([0.9], kernel_size=10), r"ICAdaptation\(init_a_vals\)"),
        (lambda: make_prefiltering("adaptrans", 4, 5.0, kernel_size=10), r"make_prefiltering\(kind, F, dt\)"),
        (lambda: CausalGammatone(16000, pcen_s=0.02), r"pcen_tau_ms=-hop_ms / math\.log\(1 - pcen_s\)"),
        (lambda: make_wav2spec("gammatone", 16000, 5.0, pcen_s=0.02), "pcen_tau_ms=-hop_ms"),
        (
            lambda: LearnableExponentialDecay(4, kernel_size=14),
            r"Decay\(input_size, init_tau\)",
        ),
        (lambda: get_CFs(500, 8000, n=3, n_freqs=3), "'n' twice"),
        (lambda: get_CFs(500, 8000, n=3, nonsense=3), "nonsense"),
        (lambda: Linear(4, 3, 2).save_pretrained(), "needs a folder"),
        (lambda: Linear(4, 3, 2).save_pretrained("x", folder="y"), "no argument 'folder'"),
    ],
)
def test_keywords_that_meant_something_else_show_the_new_call(call, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        call()


def test_the_time_constant_shown_is_the_earlier_share() -> None:
    """A running mean that takes the share s of each frame forgets with exp(-hop / tau)."""
    hop_ms, pcen_s = 5.0, 0.025
    shown = _moved.KEYWORDS["CausalGammatone", "pcen_s"].split("pcen_tau_ms=")[1].split("), a time")[0]
    tau = eval(shown, {"math": math, "hop_ms": hop_ms, "pcen_s": pcen_s})
    assert tau == pytest.approx(197.5, rel=1e-3)


def test_a_share_per_frame_never_passes_for_a_time_constant() -> None:
    """It stood at the same place of the call."""
    given = (16000, 4, 5.0, 500.0, 8000.0, 4, 1.019, 20.0, "halfwave", None, "pcen", 1e-4)
    with pytest.raises(ValueError, match=r"pcen_tau_ms=0\.025 is a time constant in ms.*math\.log\(1 - s\)"):
        CausalGammatone(*given, 0.025)
    assert CausalGammatone(*given, 197.5).pcen_tau_ms == 197.5


def test_signatures_stay_those_of_the_functions() -> None:
    assert "n_splits" in inspect.signature(normalized_corrcoef).parameters
    assert "ccmax_iters" not in inspect.signature(normalized_corrcoef).parameters


def test_every_keyword_of_the_table_belongs_to_a_call() -> None:
    known = {"AdapTrans", "CausalGammatone", "ICAdaptation", "GradientMaps.waveform_gradmap", "compute_CCmax"}
    known |= {"LearnableExponentialDecay"}
    known |= {"NeuralModel.from_pretrained", "NeuralModel.save_pretrained", "get_CFs", "make_prefiltering"}
    assert {call for call, _ in _moved.KEYWORDS} == known | {"normalized_corrcoef"}
