"""Encoding models of four slots: front-end, prefilter, core, readout.

`NeuralModel` holds what all models share: the pipeline, streaming, prediction, saving and loading.
`resolve_slot` builds what a user names for a slot.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_dtype, check_positive_int, check_tensor
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.io.checkpoint import load_checkpoint, save_checkpoint
from deepSTRF.models.io.hub import locate_checkpoint, push_model
from deepSTRF.models.prediction import predict_clips
from deepSTRF.models.streaming import State, check_state, init_slot_state, step_slot
from deepSTRF.registry import Registry

__all__ = ["NeuralModel", "resolve_slot"]

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

    def __init__(self, out_neurons: int = 1) -> None:
        super().__init__()
        self.O = check_positive_int("out_neurons", out_neurons)
        self.wav2spec = nn.Identity()
        self.prefiltering = nn.Identity()
        self.core = nn.Identity()

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
        spectrogram: Tensor = self.wav2spec(x)
        self._check_spectrogram(spectrogram)
        return spectrogram

    def respond(self, spectrogram: Tensor) -> Tensor:
        """Return the responses (B, N, 1, T) to spectrograms (B, 1, F, T): everything after the front-end."""
        return self.readout(self.core(self.prefiltering(spectrogram)))  # type: ignore[no-any-return]

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
        check_dtype(x, placement(self)[1])

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
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
        own_device, own_dtype = placement(self)
        where, kind = device or own_device, dtype or own_dtype
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
        return frames, following

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

    def count_trainable_params(self) -> int:
        """Return the number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @property
    def receptive_field(self) -> int | None:
        """Frames that a prediction depends on, the current one included; None when unbounded."""
        return None

    @property
    def latency_ms(self) -> float:
        """Delay in ms that the front-end adds to the sound; 0 without one."""
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
            Spikes per bin, or per second.
        device : torch.device or str, optional
            Where to run; None is where the model is.

        Returns
        -------
        list of Tensor
            One (N, T) tensor per clip, on the CPU.

        Raises
        ------
        ValueError
            When stimuli and model do not fit each other.
        IndexError
            For a clip that does not exist.
        """
        return predict_clips(self, dataset, clips=clips, unit=unit, device=device)

    def save_pretrained(
        self, directory: str | os.PathLike[str], *, metadata: Any = None, model_card: str | None = None
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

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        TypeError, ValueError
            When the model cannot be rebuilt from what would be written; the text names the part.
        """
        return save_checkpoint(self, directory, metadata=metadata, model_card=model_card)

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
    def from_pretrained(
        cls,
        repo_or_path: str | os.PathLike[str],
        *,
        extra_kwargs: Mapping[str, Any] | None = None,
        modules: Mapping[str, type] | None = None,
        strict: bool = True,
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
            Whether the saved tensors must match exactly.
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
            When the files are damaged or hold another class.
        """
        model, metadata = load_checkpoint(
            locate_checkpoint(repo_or_path, cache_dir=cache_dir, revision=revision, token=token),
            expected=cls,
            extra_kwargs=extra_kwargs,
            modules=modules,
            strict=strict,
            map_location=map_location,
        )
        return (model, metadata) if return_metadata else model  # type: ignore[return-value]


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
