"""Encoding models of four slots: front-end, prefilter, core, readout.

`NeuralModel` holds the pipeline, streaming, prediction, saving and loading; `AudioEncodingModel` adds bands,
a window in time, a prefilter and an optional standardisation of the bands. `resolve_slot` builds a slot's
module from a dictionary.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from deepSTRF._moved import earlier_keywords, rename_keywords
from deepSTRF._validation import (
    check_choice,
    check_dtype,
    check_flag,
    check_positive_int,
    check_tensor,
    checked,
    checked_but,
    to_tensor,
)
from deepSTRF.dsp.filters import LongTermSpectrum
from deepSTRF.models.configurable import HALF_PRECISION, Configurable, first_parameter, placement
from deepSTRF.models.fitted_on import FittedOn, band_moments, warn_of_empty_bands
from deepSTRF.models.gradients import GradientMaps
from deepSTRF.models.io.checkpoint import load_checkpoint, save_checkpoint
from deepSTRF.models.io.export import GRAPHS, export_model
from deepSTRF.models.io.hub import locate_checkpoint, push_model
from deepSTRF.models.norms import BandStandardizer
from deepSTRF.models.prediction import evaluating, front_end_frames, predict_clips
from deepSTRF.models.readouts import OutputScale, start_output
from deepSTRF.models.streaming import Device, DType, State, check_state, init_slot_state, step_slot
from deepSTRF.models.transfer import transfer_model
from deepSTRF.registry import PREFILTERS, Registry

__all__ = ["AudioEncodingModel", "NeuralModel", "resolve_slot"]

_SLOTS = ("wav2spec", "prefiltering", "core", "readout")


class NeuralModel(nn.Module, Configurable):
    """An encoding model, ``readout(core(prefiltering(wav2spec(x))))``: sound in, one rate per neuron out.

    ====================  ===================================  =========================================
    slot                  input                                output
    ====================  ===================================  =========================================
    ``wav2spec``          (B, 1, T_audio)                      (B, 1, F, T)
    ``prefiltering``      (B, 1, F, T)                         (B, C, F, T)
    ``core``              (B, C, F, T)                         shared features of the model's own shape
    ``readout``           features                             (B, N, 1, T)
    ====================  ===================================  =========================================

    The first three start as ``nn.Identity()``; a subclass sets ``readout``. Without a ``wav2spec`` the input
    is a spectrogram (B, 1, F, T). Axis 2 of the output is kept for samples or distribution parameters.

    Parameters
    ----------
    out_neurons : int
        Neurons, N.

    Attributes
    ----------
    O : int
        Neurons, N.
    lookahead_frames : int
        Frames after its own that a prediction depends on: 0 but for a model that is built to look ahead.
    fitted_on : FittedOn or None
        What the model was fitted on, set by every fit and compared with every dataset; None compares nothing.
    recommended : mapping
        Of the class: choices of a fit that suit it, for `deepSTRF.training.fit_settings` and ``deepstrf fit
        --recommended``; empty where there are none.

    Raises
    ------
    TypeError, ValueError
        When ``out_neurons`` is no positive integer.

    Examples
    --------
    >>> from deepSTRF.models.readouts import STRFReadout
    >>> class TwoNeurons(NeuralModel):
    ...     def __init__(self):
    ...         super().__init__(out_neurons=2)
    ...         self.readout = STRFReadout(F=8, T=3, C_in=1, out_neurons=2)
    >>> TwoNeurons()(torch.zeros(1, 1, 8, 50)).shape
    torch.Size([1, 2, 1, 50])
    """

    wav2spec: nn.Module
    prefiltering: nn.Module
    core: nn.Module
    readout: nn.Module
    fitted_on: FittedOn | None = None
    lookahead_frames: int = 0
    #: Choices of a fit that suit the model: arguments of `deepSTRF.training.fit_settings`.
    recommended: ClassVar[Mapping[str, Any]] = {}

    @checked
    def __init__(self, out_neurons: int = 1) -> None:
        super().__init__()
        self.O = check_positive_int("out_neurons", out_neurons)
        self.wav2spec = nn.Identity()
        self.prefiltering = nn.Identity()
        self.core = nn.Identity()
        self.output_scale = OutputScale(self.O)

    def spectrogram(self, x: Tensor) -> Tensor:
        """Return what the front-end makes of a stimulus: (B, 1, F, T). Spectrograms pass through.

        Parameters
        ----------
        x : Tensor
            (B, 1, T_audio) with a front-end, (B, 1, F, T) without.

        Returns
        -------
        Tensor
            (B, 1, F, T).

        Raises
        ------
        TypeError
            For anything but a tensor of the model's precision.
        ValueError
            For an input of another rank, or without frames.
        """
        check_tensor(x)
        if isinstance(self.wav2spec, nn.Identity):
            self._check_spectrogram(x)
            return x
        spectrogram = self._rounded(front_end_frames(self.wav2spec, x))
        self._check_spectrogram(spectrogram)
        return spectrogram

    def respond(self, spectrogram: Tensor) -> Tensor:
        """Return the responses (B, N, 1, T) to spectrograms (B, 1, F, T): everything after the front-end."""
        y: Tensor = self.output_scale(self.readout(self.core(self.prefiltering(spectrogram))))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Return the responses (B, N, 1, T) to stimuli (B, 1, T_audio) or (B, 1, F, T)."""
        return self.respond(self.spectrogram(x))

    def _check_spectrogram(self, x: Tensor) -> None:
        if x.ndim != 4:
            hint = "a waveform needs a front-end (wav2spec=...)" if x.ndim == 3 and x.shape[1] == 1 else (
                "add the missing axes, e.g. stimulus.unsqueeze(0) for one clip (1, F, T)"
            )  # fmt: skip
            raise ValueError(f"expected spectrograms (B, 1, F, T), got {tuple(x.shape)}; {hint}")
        if x.shape[-1] < 1:
            raise ValueError(f"expected spectrograms with T of at least 1, got {tuple(x.shape)}")
        check_dtype(x, self._precision())

    def _precision(self) -> torch.dtype:
        """Precision of what follows the front-end, whose own may be another."""
        for slot in ("readout", "core", "prefiltering"):
            part = getattr(self, slot, None)
            found = None if part is None else first_parameter(part)
            if found is not None:
                return found.dtype
        return placement(self)[1]

    def _rounded(self, frames: Tensor) -> Tensor:
        """Frames in the model's precision, where that is half: front-ends compute in float32."""
        heard = not isinstance(self.wav2spec, nn.Identity) and isinstance(frames, Tensor)
        kind = self._precision() if heard and frames.dtype == torch.float32 else None
        return frames.to(kind) if kind in HALF_PRECISION else frames

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame, for ``batch`` parallel streams.

        Parameters
        ----------
        batch : int
            Number of streams, B.
        device, dtype : optional
            Where and how; None is as the model.

        Returns
        -------
        dict
            A tree of tensors of fixed shapes, one branch per slot.

        Raises
        ------
        TypeError
            When the module in a slot cannot run chunk by chunk; the text names the slot.
        """
        where, kind = placement(self, device, dtype)
        return {
            slot: init_slot_state(getattr(self, slot), slot, batch, device=where, dtype=kind)
            for slot in _SLOTS
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Respond to the next whole frames.

        Parameters
        ----------
        chunk : Tensor
            (B, 1, n * hop) samples with a front-end, (B, 1, F, n) frames without; n of at least 1.
        state : dict
            From `init_state` or the previous step; it is not changed.

        Returns
        -------
        tuple
            Responses (B, N, 1, n) and the next state. In eval mode any cut gives what ``forward`` gives.
        """
        try:
            frames, following = step_slot(self.wav2spec, "wav2spec", chunk, state["wav2spec"])
            frames = self._rounded(frames)
            self._check_spectrogram(frames)
            y, rest = self._step_response(frames, state)
        except (KeyError, TypeError):
            check_state(self, state)  # raises where the state is at fault
            raise
        return y, {"wav2spec": following, **rest}

    def _step_response(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        following: State = {}
        for slot in _SLOTS[1:]:
            frames, following[slot] = step_slot(getattr(self, slot), slot, frames, state[slot])
        return self.output_scale(frames), following

    def detach(self) -> None:
        """Cut the gradient through a state kept between clips; models without one have nothing to do."""

    @property
    def own_loss(self) -> str | None:
        """Name of the loss that the model brings itself; None when it is trained on the loss asked for.

        A model that predicts the parameters of a distribution, or that adds a penalty of its own, returns a
        name here and defines `loss`; every fit then trains it on that loss. `forward_params` returns what
        `loss` needs, and `expected_counts` makes the prediction of it.
        """
        return None

    def forward_params(self, x: Tensor) -> Tensor:
        """Return what the model's own `loss` is computed from; here the prediction itself.

        Parameters
        ----------
        x : Tensor
            Stimuli (B, 1, T_audio) or (B, 1, F, T).

        Returns
        -------
        Tensor
            (B, N, ..., T).
        """
        return self(x)  # type: ignore[no-any-return]

    def expected_counts(self, params: Tensor) -> Tensor:
        """Return the prediction (B, N, 1, T) of what `forward_params` gave.

        Parameters
        ----------
        params : Tensor
            (B, N, ..., T).

        Returns
        -------
        Tensor
            (B, N, 1, T).
        """
        return params

    def loss(self, params: Tensor, responses: Tensor, *, reduction: str = "mean") -> Tensor:
        """Return the model's own loss; a model that names one in `own_loss` defines it.

        Parameters
        ----------
        params : Tensor
            (B, N, ..., T) from `forward_params`.
        responses : Tensor
            (B, N, R, T) single repeats; NaN where nothing was recorded.
        reduction : {"mean", "none"}
            "none", as a fit calls it, returns one value per neuron (N,), or a scalar where the loss does not
            separate neurons.

        Returns
        -------
        Tensor
            () or (N,).

        Raises
        ------
        NotImplementedError
            When the model has no loss of its own.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no loss of its own: use a function of deepSTRF.metrics on model(x)"
        )

    @property
    def prediction_domain(self) -> str:
        """Range of the predictions: "real" or "non-negative"; "unknown" behind code that is not ours.

        A likelihood of counts needs "non-negative". A model whose ``forward``, ``respond`` or readout is your
        own may override this property; else a fit looks at its predictions.
        """
        if not _are_ours(type(self).forward, type(self).respond, type(self.readout).forward):
            return "unknown"
        domain = str(getattr(self.readout, "prediction_domain", "unknown"))
        return "real" if domain == "non-negative" and bool((self.output_scale.offset < 0).any()) else domain

    def start_output(self, mean: Tensor, deviation: Tensor, lowest: Tensor, highest: Tensor) -> None:
        """Start the output at each neuron's own size; a `Fitter` calls it before the first epoch.

        A model with a ``forward`` or ``respond`` of your own, which may leave the scale out, stays as it is.

        Parameters
        ----------
        mean, deviation, lowest, highest : Tensor
            (N,) mean, standard deviation, minimum and maximum of the PSTHs of the training clips.
        """
        if _are_ours(type(self).forward, type(self).respond):
            start_output(self.output_scale, self.readout, mean, deviation, lowest, highest)

    def count_trainable_params(self) -> int:
        """Return the number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @property
    def receptive_field(self) -> int | None:
        """Frames that a prediction depends on, the current one included; None when unbounded.

        Frames after the current one are not counted: they are `lookahead_frames`.
        """
        return None

    @property
    def is_causal(self) -> bool:
        """Whether no prediction depends on later frames (`lookahead_frames` is 0)."""
        return self.lookahead_frames == 0

    @property
    def latency_ms(self) -> float:
        """Delay in ms that the front-end adds to the sound; 0 without one. `Stream.latency_ms` is of all."""
        return float(getattr(self.wav2spec, "latency_ms", 0.0))

    def validate(self) -> None:
        """Check that the model is complete.

        Raises
        ------
        TypeError
            When a slot holds no module.
        ValueError
            When ``O`` is no positive integer or there is no readout.
        """
        check_positive_int("out_neurons", self.O)
        for slot in _SLOTS:
            module = getattr(self, slot, None)
            if module is None:
                raise ValueError(
                    f"{type(self).__name__} has no {slot}: set self.{slot} to an nn.Module in __init__"
                )
            if not isinstance(module, nn.Module):
                raise TypeError(f"the slot {slot!r} must hold an nn.Module, got {type(module).__name__}")

    @checked
    def predict(
        self,
        dataset: Any,
        *,
        clips: Sequence[int] | None = None,
        unit: str = "bin",
        device: torch.device | str | None = None,
    ) -> list[Tensor]:
        """Predict the responses to the clips of a dataset, in eval mode.

        Parameters
        ----------
        dataset : DatasetLike
            Stimuli and bin width.
        clips : sequence of int, optional
            Which clips; None is all.
        unit : {"bin", "hz"}
            The unit of the responses, or for counts and rates per bin: per second.
        device : torch.device or str, optional
            Where to run; None is where the model is.

        Returns
        -------
        list of Tensor
            One (N, T) tensor per clip, on the CPU; N are the neurons of the dataset, in its order.

        Raises
        ------
        ValueError
            When stimuli and model do not fit each other, or the dataset is not one of neurons, bins and bands
            that the model was fitted on (``model.fitted_on``).
        IndexError
            For a clip that does not exist.
        """
        return predict_clips(self, dataset, clips=clips, unit=unit, device=device)

    @checked_but("output_activation")
    def transfer(
        self, out_neurons: int, *, freeze: bool = True, output_activation: nn.Module | str | None = None
    ) -> Self:
        """Return a new model for another population: front-end, prefilter and core of this one, new readout.

        The readout starts as that of a new model, and the next fit starts its output at the new neurons' own
        sizes. `fitted_on` forgets the neurons and keeps bins, bands, sample rate and level, which the next
        recording must have.

        Parameters
        ----------
        out_neurons : int
            Neurons of the new population.
        freeze : bool
            Whether all that is in front of the readout stays as it is (no gradient, in eval mode). False
            trains it too. Files do not keep this: after loading, everything is trainable.
        output_activation : nn.Module, str or None
            Of the new readout; None is as that of this model.

        Returns
        -------
        NeuralModel
            Of this class, on its device and in its precision; this model is not changed.

        Raises
        ------
        TypeError, ValueError
            When nothing in front of the readout was learned, as in `Linear` on a spectrogram, or a part
            cannot be built for another number of neurons.

        Examples
        --------
        >>> from deepSTRF.models.audio import StateNet
        >>> fitted = StateNet(n_frequency_bands=24, out_neurons=80)
        >>> new = fitted.transfer(out_neurons=39)
        >>> new.O, new.count_trainable_params() == sum(p.numel() for p in new.readout.parameters())
        (39, True)
        """
        return transfer_model(  # type: ignore[no-any-return]
            self, out_neurons, freeze=freeze, output_activation=output_activation
        )

    @checked
    def save_pretrained(
        self,
        directory: str | os.PathLike[str] = "",
        *,
        metadata: Any = None,
        model_card: str | None = None,
        **earlier: Any,
    ) -> Path:
        """Save configuration and weights into a folder; see `deepSTRF.models.io.checkpoint.save_checkpoint`.

        Parameters
        ----------
        directory : path
            Folder to write; it is made when missing, and an older checkpoint in it survives a failed write.
        metadata : object, optional
            Plain data to keep beside the model (protocol, scores, neuron names).
        model_card : str, optional
            Text of the README; None writes one.
        **earlier
            ``save_dir``, the name of the folder in the earlier deepSTRF.

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        TypeError, ValueError
            When the model cannot be rebuilt from what would be written; the text names the part.
        """
        if earlier:
            given = {"directory": directory} if directory else {}
            named = rename_keywords("NeuralModel.save_pretrained", {**given, **earlier})
            directory = named.pop("directory", "")
            if named:
                raise TypeError(f"save_pretrained has no argument {', '.join(map(repr, named))}")
        if not directory:
            raise TypeError("save_pretrained needs a folder: model.save_pretrained('path/to/folder')")
        return save_checkpoint(self, directory, metadata=metadata, model_card=model_card)

    @checked
    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "onnx",
        graphs: Sequence[str] = GRAPHS,
        precision: str = "float32",
        progress: Callable[[str], None] | None = None,
    ) -> Path:
        """Write graphs that run without this package, in ONNX Runtime or PyTorch (page "Exported models").

        Kept when they agree with the model to 1e-5 of the range, at other sizes and over 1,000 steps.

        Parameters
        ----------
        path : path
            Folder to write; graphs of an earlier call in it survive a failed one.
        format : {"onnx", "torch"}
            ONNX (extra ``export``), or an archive that ``torch.export.load`` reads.
        graphs : sequence of {"sequence", "step"}
            Whole clips to rates (B, N, T), and one frame with the state before and after it.
        precision : {"float32", "float16", "int8"}
            How ONNX files store the weights behind the front-end; the metadata states what that moved.
        progress : callable, optional
            Called with a line for each stage; a learned front-end takes a minute.

        Returns
        -------
        pathlib.Path
            The folder: ``sequence.onnx``, ``step.onnx`` (or ``.pt2``), ``metadata.json`` (also inside each).

        Raises
        ------
        ImportError, FileExistsError, ValueError
            Without the packages of the extra; when the folder holds other files of these names; when a graph
            cannot be exported, with the reason and what can (attention without a window).
        """
        return export_model(self, path, format=format, graphs=graphs, precision=precision, progress=progress)

    @checked
    def push_to_hub(
        self,
        repo_id: str,
        *,
        metadata: Any = None,
        model_card: str | None = None,
        private: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Save the model into a repository ``"user/name"`` on the hub (extra ``hub``); return its address.

        Parameters
        ----------
        repo_id : str
            ``"user/name"``; the repository is made when missing.
        metadata, model_card
            As in `save_pretrained`.
        private : bool
            Whether a new repository is private.
        token : str, optional
            Access token; None is the one huggingface_hub was logged in with. It is never written anywhere.
        commit_message : str, optional
            What the history of the repository says.

        Returns
        -------
        str
            Address of the repository.

        Raises
        ------
        ImportError
            Without huggingface_hub.
        PermissionError
            When the token may not write there.
        TypeError, ValueError
            When the model cannot be saved; nothing is sent then.
        """
        return push_model(
            self,
            repo_id,
            metadata=metadata,
            model_card=model_card,
            private=private,
            token=token,
            commit_message=commit_message,
        )

    @classmethod
    @earlier_keywords
    @checked
    def from_pretrained(
        cls,
        repo_or_path: str | os.PathLike[str],
        *,
        extra_kwargs: Mapping[str, Any] | None = None,
        modules: Mapping[str, type] | None = None,
        strict: bool = True,
        refit_required: bool = False,
        map_location: str | torch.device = "cpu",
        cache_dir: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        return_metadata: bool = False,
    ) -> Self | tuple[Self, Any]:
        """Rebuild a saved model, in eval mode; ``NeuralModel.from_pretrained`` takes any class.

        Parameters
        ----------
        repo_or_path : path or str
            Folder that `save_pretrained` wrote, or a repository ``"user/name"`` on the hub (extra ``hub``);
            an existing folder wins.
        extra_kwargs : mapping, optional
            Constructor arguments that replace the saved ones.
        modules : mapping of str to type, optional
            Your own classes by name, for models or parts that deepSTRF does not know.
        strict : bool
            Whether the saved tensors must match exactly. False loads those whose name and shape fit, and
            warns with the names of those that stay as built: a fitted core for another population with
            ``extra_kwargs={"out_neurons": 9}``.
        refit_required : bool
            Load a folder of the earlier package also where a part computes something else here (gammatone
            and LEAF filters): a start for a new fit.
        map_location : str or torch.device
            Where the model goes.
        cache_dir, revision, token : optional
            Of a repository: where copies are kept, which commit, and the right to read it
            (`deepSTRF.models.io.hub.download_checkpoint`).
        return_metadata : bool
            Whether to return ``(model, metadata)``.

        Returns
        -------
        NeuralModel or tuple
            The model, or the model and its metadata.

        Raises
        ------
        FileNotFoundError
            When folder, repository or files are missing.
        ConnectionError
            When a repository is named, the hub cannot be reached and there is no copy.
        ValueError, TypeError
            When the files are damaged or hold another class, or would predict something else here.
        """
        model, metadata = load_checkpoint(
            locate_checkpoint(repo_or_path, cache_dir=cache_dir, revision=revision, token=token),
            expected=cls,
            extra_kwargs=extra_kwargs,
            modules=modules,
            strict=strict,
            refit_required=refit_required,
            map_location=map_location,
        )
        return (model, metadata) if return_metadata else model  # type: ignore[return-value]


def _are_ours(*methods: Any) -> bool:
    """Whether methods are those of this package, and not a user's."""
    return all(method.__module__.partition(".")[0] == __name__.partition(".")[0] for method in methods)


class AudioEncodingModel(GradientMaps, NeuralModel):
    """An encoding model of sound: a spectrogram of F bands, or a waveform through a front-end.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    temporal_window_size : int
        Frames that a prediction depends on, the current one included, T.
    out_neurons : int
        Neurons, N.
    prefiltering : nn.Module, dict or None
        Maps (B, 1, F, T) to (B, C, F, T); its ``out_channels`` is C (1 when it has none). A dictionary names
        one: ``{"prefiltering": "adaptrans", "dt": 5.0}``.
    wav2spec : nn.Module or None
        Front-end that maps (B, 1, T_audio) to (B, 1, F, T); None expects spectrograms.
    standardize : bool
        Whether each band is z-scored with the statistics measured by `fit_standardization`.

    Attributes
    ----------
    F, T, C_in : int
        Bands, window, channels after prefiltering.
    first_lag : int
        Lag of the newest frame of the window: 0 but for a `Linear` built with other lags.
    standardizer : BandStandardizer or None
        The input standardisation; it is part of the saved model.
    band_std : Tensor (F,) or None
        Standard deviation of each band of the training spectrograms, 0 of one that was constant: the unit of
        receptive fields, kept in a saved model (not in a bare ``state_dict``). None before `measure_bands`,
        which every fit calls.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, or a front-end or prefilter with another number of bands.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> issubclass(Linear, AudioEncodingModel)
    True
    """

    standardizer: BandStandardizer | None
    band_std: Tensor | None
    first_lag: int = 0

    @checked
    def __init__(
        self,
        n_frequency_bands: int,
        temporal_window_size: int,
        out_neurons: int = 1,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        standardize: bool = False,
    ) -> None:
        super().__init__(out_neurons=out_neurons)
        self.F = check_positive_int("n_frequency_bands", n_frequency_bands)
        self.T = check_positive_int("temporal_window_size", temporal_window_size)
        prefilter = resolve_slot("prefiltering", prefiltering, PREFILTERS, n_frequency_bands=self.F)
        if prefilter is not None:
            _check_bands("prefiltering", "F", prefilter, self.F)
            self.prefiltering = prefilter
        self.C_in = check_positive_int("prefiltering.out_channels", getattr(prefilter, "out_channels", 1))
        if wav2spec is not None:
            _check_front_end(wav2spec, self.F)
            self.wav2spec = wav2spec
        first = prefilter[0] if type(prefilter) is nn.Sequential and len(prefilter) else prefilter
        if getattr(first, "needs_energy", False):
            _check_energy(first, wav2spec, standardize)
        self.standardizer = BandStandardizer(self.F) if check_flag("standardize", standardize) else None
        self.register_buffer("band_std", None, persistent=False)

    def respond(self, spectrogram: Tensor) -> Tensor:
        """Return the responses (B, N, 1, T) to spectrograms (B, 1, F, T), standardised if so built."""
        return super().respond(self._standardized(spectrogram))

    @checked
    def fit_standardization(self, stims: Iterable[Tensor]) -> Self:
        """Measure each band's mean and standard deviation on training clips.

        Parameters
        ----------
        stims : iterable of Tensor
            Training stimuli as the dataset holds them: (1, F, T) spectrograms, or (1, T_audio) waveforms,
            which pass through the front-end as it is now. A leading batch axis is fine.

        Returns
        -------
        AudioEncodingModel
            This model.

        Raises
        ------
        ValueError
            When the model was built without ``standardize=True``, or for no clips or values that are not
            finite.
        """
        if self.standardizer is None:
            name = type(self).__name__
            if "standardize" not in inspect.signature(type(self)).parameters:
                raise ValueError(f"{name} takes no standardisation: it learns its scales from the waveform")
            raise ValueError(f"build the model with {name}(..., standardize=True) to standardise its input")
        self.standardizer.fit(self._spectrograms(stims))
        return self

    def measure_bands(self, stims: Iterable[Tensor], spectrograms: Iterable[Tensor] | None = None) -> Self:
        """Measure each band's standard deviation on training clips: the unit of receptive fields.

        A standardisation that was built and not fitted yet is fitted in the same pass. `Fitter` and
        `fit_ridge` call this; a training loop of one's own does so itself, after a front-end has learned.

        Parameters
        ----------
        stims : iterable of Tensor
            As in `fit_standardization`.
        spectrograms : iterable of Tensor (..., F, T), optional
            Those of the same stimuli, where they are at hand; None computes them.

        Returns
        -------
        AudioEncodingModel
            This model, with `band_std`.

        Raises
        ------
        ValueError
            For no clips, or values that are not finite.

        Examples
        --------
        >>> from deepSTRF.models.audio import Linear
        >>> model = Linear(2, 3, norm="none").measure_bands([torch.tensor([[[0.0, 2.0], [5.0, 9.0]]])])
        >>> model.band_std
        tensor([1., 2.])
        """
        hears = not isinstance(self.wav2spec, nn.Identity)
        spectrum = LongTermSpectrum(self.wav2spec.audio_fs) if hears else None  # type: ignore[arg-type]
        mean, std = band_moments(self._spectrograms(stims, spectrograms, spectrum), self.F)
        device, dtype = placement(self)
        self.band_std = std.to(device, dtype)
        if self.standardizer is not None and not self.standardizer.fitted:
            self.standardizer.set_moments(mean, std)
        warn_of_empty_bands(self.wav2spec, std, None if spectrum is None else spectrum.occupied())
        return self

    def _spectrograms(
        self,
        stims: Iterable[Tensor],
        known: Iterable[Tensor] | None = None,
        spectrum: LongTermSpectrum | None = None,
    ) -> Iterator[Tensor]:
        """Spectrograms (..., F, T) of stimuli, in eval mode; sounds are added to a spectrum on the way."""
        device, dtype = placement(self)
        rank = 4 if isinstance(self.wav2spec, nn.Identity) else 3
        made = None if known is None else iter(known)
        ours = type(self).spectrogram is NeuralModel.spectrogram
        known_shape = torch.Size()
        for stim in stims:
            batch = stim if isinstance(stim, Tensor) else to_tensor(stim)
            batch = batch.unsqueeze(0) if batch.ndim == rank - 1 else batch
            if spectrum is not None:
                spectrum.add(batch)
            if made is not None:
                yield next(made)
                continue
            batch = batch.to(device, dtype)
            if rank == 4 and ours and batch.shape[:-1] == known_shape:  # it passes, in any mode
                yield batch
                continue
            with evaluating(self.wav2spec if ours else self):
                spectrogram = self.spectrogram(batch)
            known_shape = batch.shape[:-1]
            yield spectrogram

    def _in_unit(self, fields: Tensor, unit: str | None) -> Tensor:
        """Receptive fields (..., F, T), raw ones in the unit asked for; None is "sd" where it is known."""
        check_choice("unit", unit, (None, "sd", "raw"))
        if unit == "raw" or (unit is None and self.band_std is None):
            return fields
        if self.band_std is None:
            raise ValueError(
                "unit='sd' needs the standard deviation of each band, and this model was not fitted: call "
                "model.measure_bands([dataset.stims[i] for i in train_clips]), or take unit='raw'"
            )
        return fields * self.band_std.to(fields).unsqueeze(-1)

    def _kernel_in_unit(self, weight: Tensor, folded: bool, unit: str | None) -> Tensor:
        """A kernel (..., F, T) in the unit asked for; not folded and "raw" it is what is stored.

        A kernel on standardised bands is per standard deviation as it stands, up to bands without variance,
        whose weights nothing trains.
        """
        fields = self._in_unit(self._per_raw_unit(weight) if folded else weight, unit)
        if folded or self.standardizer is None or self.band_std is None or unit == "raw":
            return fields
        return fields / self.standardizer.std.to(fields).unsqueeze(-1)

    def _standardized(self, spectrogram: Tensor) -> Tensor:
        return spectrogram if self.standardizer is None else self.standardizer(spectrogram)

    def _step_response(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        return super()._step_response(self._standardized(frames), state)

    def _check_spectrogram(self, x: Tensor) -> None:
        super()._check_spectrogram(x)
        if x.shape[1] != 1 or x.shape[2] != self.F:
            raise ValueError(
                f"expected spectrograms (B, 1, {self.F}, T), got {tuple(x.shape)}; the model was built with "
                f"n_frequency_bands={self.F}"
            )

    def param_groups(self, lr: float, *, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return optimiser groups: front-end and prefilter apart, each with its own learning rate.

        Parameters
        ----------
        lr : float
            Learning rate of core and readout, and of a front-end or prefilter without ``param_groups``.
        weight_decay : float
            Weight decay of core and readout; front-end and prefilter are never decayed.

        Returns
        -------
        list of dict
            E.g. for ``torch.optim.AdamW(model.param_groups(1e-3))``.
        """
        taken: set[int] = set()
        front: list[dict[str, Any]] = []
        for slot in (self.wav2spec, self.prefiltering):
            groups = getattr(slot, "param_groups", None)
            front += groups(lr) if callable(groups) else [{"params": list(slot.parameters()), "lr": lr}]
            taken.update(id(parameter) for parameter in slot.parameters())
        front = [{"weight_decay": 0.0, **group} for group in front if group["params"]]
        rest = [parameter for parameter in self.parameters() if id(parameter) not in taken]
        return [{"params": rest, "lr": lr, "weight_decay": weight_decay}, *front]

    @property
    def receptive_field(self) -> int | None:
        """Frames of the spectrogram that a prediction depends on, None when unbounded.

        They are the model's window and the prefilter's memory; the memory of a front-end comes on top.
        """
        window = self.T + self.first_lag  # up to the current frame
        if isinstance(self.prefiltering, nn.Identity):
            return max(window, 1)
        memory = getattr(self.prefiltering, "receptive_field", None)
        return None if memory is None else max(window + int(memory) - 1, 1)

    def _per_raw_unit(self, weight: Tensor) -> Tensor:
        """Receptive fields (..., F, T) on the raw spectrogram: the input standardisation is folded in."""
        if self.standardizer is None:
            return weight
        folds = isinstance(self.prefiltering, nn.Identity)  # what follows the standardisation is linear
        if not folds:
            raise ValueError(
                "standardisation cannot be folded through a prefilter; use folded=False, or the gradient "
                "map model.STRF_gradmap()"
            )
        return weight / self.standardizer.std.detach().cpu().unsqueeze(-1)

    def validate(self) -> None:
        """Check that the model is complete; see `NeuralModel.validate`."""
        super().validate()
        check_positive_int("n_frequency_bands", self.F)
        check_positive_int("temporal_window_size", self.T)
        check_positive_int("C_in", self.C_in)


def _check_front_end(wav2spec: object, bands: int) -> None:
    if not isinstance(wav2spec, nn.Module):
        raise TypeError(f"wav2spec must be an nn.Module or None, got {type(wav2spec).__name__}")
    missing = [name for name in ("out_channels", "hop", "audio_fs") if not hasattr(wav2spec, name)]
    if missing:
        raise ValueError(
            f"the front-end {type(wav2spec).__name__} lacks the attribute(s) {', '.join(missing)}; a "
            "wav2spec module states out_channels (bands), hop (samples per bin) and audio_fs (Hz)"
        )
    _check_bands("wav2spec", "out_channels", wav2spec, bands)


def _check_energy(prefilter: object, wav2spec: object, standardize: bool) -> None:
    """Raise an error for a prefilter that divides energies behind levels that may be negative."""
    name = type(prefilter).__name__
    if standardize:
        raise ValueError(
            f"standardize=True hands {name} z-scored bands, and it needs energies, which are not negative: "
            "build the model with standardize=False"
        )
    front_end = type(wav2spec).__name__
    if getattr(wav2spec, "compression", None) == "log":
        raise ValueError(
            f"{front_end} takes logarithms (compression='log'), and {name} needs energies, "
            "which are not negative: build the front-end with compression='none'"
        )
    if getattr(wav2spec, "has_negative_levels", False):
        raise ValueError(
            f"{front_end} gives levels of either sign, and {name} needs energies, which are not negative: "
            "take another front-end, or another form of it (SincNet: envelope=True or activation='logabs')"
        )


def _check_bands(slot: str, attribute: str, module: nn.Module, bands: int) -> None:
    has = getattr(module, attribute, bands)
    if int(has) != bands:
        raise ValueError(
            f"{slot} ({type(module).__name__}) has {int(has)} bands ({attribute}) but the model has "
            f"n_frequency_bands={bands}; make them equal"
        )


def resolve_slot(
    slot: str, given: nn.Module | Mapping[str, Any] | None, registry: Registry[Any], **sizes: Any
) -> nn.Module | None:
    """Return the module of a slot: the given one, or a registered one built from a dictionary of options."""
    if given is None or isinstance(given, nn.Module):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"{slot} must be an nn.Module, a dictionary or None, got {type(given).__name__}")
    options = dict(given)
    keys = [key for key in (slot, "type") if key in options]
    if len(keys) != 1:
        raise ValueError(
            f"a {slot} dictionary names its class under one key, {slot!r} or 'type', got the keys "
            f"{sorted(options)}"
        )
    name = options.pop(keys[0])
    if not len(registry):
        raise ValueError(
            f"no {registry.what} can be named yet, got {name!r}: pass an nn.Module to {slot}= instead"
        )
    build = registry.get(name)
    signature = inspect.signature(build)
    try:
        signature.bind(**sizes, **options)
    except TypeError as error:
        takes = ", ".join(key for key in signature.parameters if key not in sizes) or "nothing"
        raise ValueError(
            f"the {slot} dictionary does not fit {name!r}: {error}; besides its name it takes {takes}"
        ) from None
    return build(**sizes, **options)  # type: ignore[no-any-return]
