"""ICNet: a deep convolutional encoder of the waveform, read out linearly by every neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from deepSTRF.models._checks import check_positive_int
from deepSTRF.models.audio.base import AudioEncodingModel
from deepSTRF.models.audio.icnet_encoder import ICNetEncoder
from deepSTRF.models.audio.icnet_readout import ICNetReadout, categorical_loss
from deepSTRF.registry import MODELS

__all__ = ["ICNet", "convert_icnet_state"]

#: Buffers of public checkpoints that follow from the constructor arguments.
_DERIVED = ("wav2spec.sincnet._n", "wav2spec.sincnet._window")


@MODELS.register("icnet")
class ICNet(AudioEncodingModel):
    """Waveform-native deep model: sinc filters, strided causal convolutions, a bottleneck, a linear readout.

    It hears waveforms only: ``wav2spec`` is its own encoder (`ICNetEncoder`), whose latent of F channels
    stands where other models have a spectrogram, so that ``STRF_gradmap`` is a map over the latent. All in
    all it is strictly causal. At 48 kHz and 5 ms it has 5,121,047 parameters for 119 neurons, remembers 404
    ms and costs 139 billion multiplications per 5 s clip: fit it on a GPU. A learning rate of 4e-4 is advised
    (1e-3 is unstable).

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz (``dataset.audio_fs``).
    out_neurons : int or sequence of int
        Neurons, N. A sequence gives those of several recordings that share the encoder, in the order of
        ``recording_a + recording_b``: N is their sum, and what a recording lacks is NaN in its responses.
    dt_ms : float
        Bin width in ms (``dataset.dt``); ``audio_fs * dt_ms / 1000`` must be whole.
    n_filters, sincnet_kernel_size : int
        Band-pass filters, and taps of each.
    encoder_channels : int
        Channels of the strided convolutions.
    encoder_kernel_size : int or sequence of int
        Taps of the convolutions; a sequence gives one number per layer, the bottleneck last. Shorter late
        kernels shorten the memory most.
    n_encoder_layers : int
        Strided convolutions.
    bottleneck_channels : int
        Channels of the latent, F.
    encoder_strides : sequence of int or None
        Strides, product equal to the samples per bin. None: the most even factors, ascending (240 samples
        give 2, 2, 3, 4, 5).
    head : {"poisson", "categorical"}
        ``"poisson"``: a rate, for ``poisson_loss``. ``"categorical"``: probabilities of spike counts, for
        `loss`.
    n_classes : int
        Counts that the categorical head tells apart; the last class is "this many or more".
    time_input : bool
        Whether every recording has gains on the latent that drift with time, see `forward_params`. An
        ordinary fit does not tell the time, leaves them at 1 and warns.
    f_min, f_max : float
        Range of the filters at the start, in hertz; None is Nyquist.
    sincnet_parameterization, sincnet_norm : str
        ``parameterization`` and ``norm`` of `SincNet`.

    Attributes
    ----------
    wav2spec : ICNetEncoder
        The encoder, with ``encoder_strides``, ``hop``, ``audio_fs`` and ``receptive_field_samples``.
    H : int
        Features that the readout sees, equal to F.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments; among them strides that do not multiply to the samples per bin.

    References
    ----------
    Drakopoulos et al. 2025, doi 10.1038/s42256-025-01104-9.

    Examples
    --------
    >>> import torch
    >>> model = ICNet(audio_fs=48000, out_neurons=119, dt_ms=5.0)
    >>> model.count_trainable_params(), model.wav2spec.encoder_strides
    (5121047, [2, 2, 3, 4, 5])
    >>> small = ICNet(8000, out_neurons=3, n_filters=4, encoder_channels=6, bottleneck_channels=5)
    >>> small(torch.zeros(1, 1, 400)).shape
    torch.Size([1, 3, 1, 10])
    """

    wav2spec: ICNetEncoder
    readout: ICNetReadout

    def __init__(
        self,
        audio_fs: float,
        out_neurons: int | Sequence[int] = 1,
        dt_ms: float = 5.0,
        n_filters: int = 48,
        sincnet_kernel_size: int = 64,
        encoder_channels: int = 128,
        encoder_kernel_size: int | Sequence[int] = 64,
        n_encoder_layers: int = 5,
        bottleneck_channels: int = 64,
        encoder_strides: Sequence[int] | None = None,
        *,
        head: str = "poisson",
        n_classes: int = 5,
        time_input: bool = False,
        f_min: float = 300.0,
        f_max: float | None = None,
        sincnet_parameterization: str = "spacing",
        sincnet_norm: str = "unit",
    ) -> None:
        neurons = _neurons_per_recording(out_neurons)
        encoder = ICNetEncoder(
            audio_fs,
            dt_ms,
            n_filters,
            sincnet_kernel_size,
            encoder_channels,
            encoder_kernel_size,
            n_encoder_layers,
            bottleneck_channels,
            encoder_strides,
            f_min=f_min,
            f_max=f_max,
            sincnet_parameterization=sincnet_parameterization,
            sincnet_norm=sincnet_norm,
        )
        super().__init__(encoder.out_channels, 1, sum(neurons), wav2spec=encoder)
        self.H = self.F
        self.readout = ICNetReadout(self.F, neurons, head, n_classes, time_input)
        self.validate()

    @property
    def untrained_advice(self) -> str:
        """What a fit says when it trained only part of the model: drifting gains need to be told the time."""
        if not self.readout.time_input:
            return "freeze them with requires_grad_(False), or use them"
        return (
            "forward is not told the time, so build the model with time_input=False, or fit it with a Fitter "
            "whose predict_batch(batch) returns model.forward_params(batch.inputs, time_hours)"
        )

    def forward_params(self, x: Tensor, time_hours: Tensor | float | None = None) -> Tensor:
        """Return the parameters of every neuron's response distribution.

        Parameters
        ----------
        x : Tensor
            (B, 1, T_audio).
        time_hours : Tensor or float, optional
            With ``time_input=True``, hours since the start of the recording: one number, (B,) or (B, T).
            None, as in ``forward``, leaves the gains of the latent at 1.

        Returns
        -------
        Tensor
            Rates (B, N, 1, T) of the Poisson head, logits (B, N, n_classes, T) of the categorical one.

        Raises
        ------
        ValueError
            For a waveform or times of another shape.
        """
        return self.readout.parameters_of(self.spectrogram(x), time_hours)

    def expected_counts(self, params: Tensor) -> Tensor:
        """Return the expected spikes per bin (B, N, 1, T) of what `forward_params` gave.

        The last class of the categorical head counts as its smallest member.
        """
        return self.readout.expected_counts(params)

    def loss(
        self,
        params: Tensor,
        responses: Tensor,
        mask: Tensor | None = None,
        reduction: str = "mean",
        weighting: str = "bins",
    ) -> Tensor:
        """Return the cross-entropy of spike counts under the categorical head.

        Parameters
        ----------
        params : Tensor
            (B, N, n_classes, T) logits from `forward_params`.
        responses : Tensor
            (B, N, R, T) spike counts of single repeats; NaN where nothing was recorded.
        mask, reduction, weighting
            See `deepSTRF.models.audio.icnet_readout.categorical_loss`.

        Returns
        -------
        Tensor
            () or (N,), in nats per bin.

        Raises
        ------
        ValueError
            For the Poisson head, for shapes that disagree, and for responses that are no spike counts.
        """
        if self.readout.head != "categorical":
            raise ValueError(
                "loss() belongs to the categorical head; the Poisson head is trained with "
                "deepSTRF.metrics.poisson_loss(model(x), responses). Build the model with head='categorical'"
            )
        if params.ndim == 4 and params.shape[2] != self.readout.n_classes:
            raise ValueError(
                f"params must be the logits (B, N, {self.readout.n_classes}, T) of model.forward_params(x), "
                f"got {tuple(params.shape)}"
            )
        return categorical_loss(params, responses, mask, reduction, weighting)

    def recording_neurons(self, recording: int) -> slice:
        """Return which neurons (axis 1 of the output) belong to a recording.

        Parameters
        ----------
        recording : int
            Position in ``out_neurons``; negative numbers count from the end.

        Returns
        -------
        slice
            For ``model(x)[:, model.recording_neurons(0)]``.

        Raises
        ------
        IndexError
            For a recording that does not exist.
        """
        sizes = self.readout.neurons_per_recording
        if not -len(sizes) <= recording < len(sizes):
            raise IndexError(f"recording {recording} does not exist; the model has {len(sizes)}")
        start = sum(sizes[: recording % len(sizes)])
        return slice(start, start + sizes[recording])

    def param_groups(self, lr: float, *, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return optimiser groups: the filters' cutoffs at their own learning rate, all else at ``lr``.

        Parameters
        ----------
        lr : float
            Learning rate; 4e-4 is advised.
        weight_decay : float
            Weight decay of everything but the cutoffs.

        Returns
        -------
        list of dict
            E.g. for ``torch.optim.AdamW(model.param_groups(4e-4))``.
        """
        cutoffs = self.wav2spec.sincnet.param_groups(lr)
        taken = {id(parameter) for parameter in self.wav2spec.sincnet.parameters()}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in taken]
        return [{"params": rest, "lr": lr, "weight_decay": weight_decay}, *cutoffs]


def convert_icnet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a public ICNet checkpoint so that an `ICNet` loads them.

    Public checkpoints keep the cutoffs in hertz, hold the decoder's weights under two names, and use their
    own strides (which no weight shows): build the model with ``sincnet_parameterization="hertz"`` and the
    ``encoder_strides`` of the checkpoint, then call ``model.load_state_dict(convert_icnet_state(state))``.

    Parameters
    ----------
    state : mapping of str to Tensor
        Tensors by their public names: ``wav2spec.*`` and ``decoder.*`` (and, a second time, ``readout.*``).

    Returns
    -------
    dict
        Tensors by our names.

    Raises
    ------
    ValueError
        When there is not exactly one decoder, or its two copies differ.

    Examples
    --------
    >>> import torch
    >>> public = {"decoder.weight": torch.zeros(3, 64), "decoder.bias": torch.zeros(3)}
    >>> {name: tuple(tensor.shape) for name, tensor in convert_icnet_state(public).items()}
    {'readout.weight': (3, 1, 64), 'readout.bias': (3, 1)}
    """
    converted = {
        name: tensor
        for name, tensor in state.items()
        if name not in _DERIVED and not name.startswith(("decoder.", "readout."))
    }
    for part in ("weight", "bias"):
        copies = [
            tensor
            for name, tensor in state.items()
            if name.startswith(("decoder.", "readout.")) and name.rsplit(".", 1)[1] == part
        ]
        if not copies or any(copy.shape != copies[0].shape for copy in copies):
            raise ValueError(
                f"expected one decoder {part} (under 'decoder.*', perhaps again under 'readout.*'), found "
                f"{[tuple(copy.shape) for copy in copies]}"
            )
        if any(not bool((copy == copies[0]).all()) for copy in copies):
            raise ValueError(f"the copies of the decoder's {part} differ; this is no ICNet checkpoint")
        converted[f"readout.{part}"] = copies[0].unsqueeze(1)
    return converted


def _neurons_per_recording(out_neurons: int | Sequence[int]) -> list[int]:
    if not isinstance(out_neurons, list | tuple):
        return [check_positive_int("out_neurons", out_neurons)]
    if not out_neurons:
        raise ValueError("out_neurons must name at least one recording, got an empty list")
    return [check_positive_int(f"out_neurons[{index}]", n) for index, n in enumerate(out_neurons)]
