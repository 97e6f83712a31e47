"""ICNet: a deep convolutional encoder of the waveform, read out linearly by every neuron.

Drakopoulos et al. 2025, doi 10.1038/s42256-025-01104-9. `ICNetEncoder` maps the waveform to a latent at the
neural rate by sinc filters and strided causal convolutions; `ICNetReadout` maps the latent to a rate per
neuron, or to a distribution over spike counts that is trained by `categorical_loss`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_choice, check_flag, check_positive_int, checked_but
from deepSTRF.models.base import AudioEncodingModel
from deepSTRF.models.configurable import HALF_PRECISION, Configurable, placement
from deepSTRF.models.streaming import Device, DType, FramewiseMixin, State
from deepSTRF.models.wav2spec.base import WaveformFrontEnd
from deepSTRF.models.wav2spec.sincnet import SincNet
from deepSTRF.registry import MODELS

__all__ = ["CausalConvPReLU", "ICNet", "ICNetEncoder", "ICNetReadout", "categorical_loss", "even_strides"]

#: Slope of a PReLU for negative drive at the start (He et al. 2015, doi 10.1109/ICCV.2015.123).
_PRELU_SLOPE = 0.25
#: Layers among which a stride is factorised.
_MOST_STRIDES = 100
#: Hours per unit of the time input (the released model's scale: seconds / 36,000).
_HOURS_PER_UNIT = 10.0
#: Buffers of public checkpoints that follow from the constructor arguments.
_DERIVED = ("wav2spec.sincnet._n", "wav2spec.sincnet._window")


@MODELS.register("icnet")
class ICNet(AudioEncodingModel):
    """Waveform-native deep model: sinc filters, strided causal convolutions, a bottleneck, a linear readout.

    Its input is a waveform: ``wav2spec`` is its own encoder, whose latent of F channels takes the place of
    the spectrogram, so that ``STRF_gradmap`` is a map over the latent. It is strictly causal. At 48 kHz and 5
    ms it has 5,121,047 parameters for 119 neurons and a memory of 404 ms, and costs 139 billion
    multiplications per 5 s clip: fit it on a GPU. A learning rate of 4e-4 is advised (1e-3 is unstable).

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
        Classes of the categorical head, counts 0, 1, ...; the last is "this many or more".
    time_input : bool
        Whether every recording has gains on the latent that drift with time, see `forward_params`. An
        ordinary fit passes no time, leaves them at 1 and warns.
    f_min, f_max : float
        Range of the filters at the start, in hertz; None is Nyquist.
    sincnet_parameterization, sincnet_norm : str
        ``parameterization`` and ``norm`` of `SincNet`.

    Attributes
    ----------
    wav2spec : ICNetEncoder
        The encoder, with ``encoder_strides``, ``hop``, ``audio_fs`` and ``receptive_field_samples``.
    H : int
        Features of the readout, equal to F.

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

    @checked_but("encoder_strides")
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
        readout = ICNetReadout(encoder.out_channels, out_neurons, head, n_classes, time_input)
        super().__init__(encoder.out_channels, 1, len(readout.weight), wav2spec=encoder)
        self.H, self.readout = self.F, readout
        self.validate()

    @property
    def untrained_advice(self) -> str:
        """Advice for a fit that leaves parameters untrained: drifting gains need the time of each clip."""
        if not self.readout.time_input:
            return "freeze them with requires_grad_(False), or use them"
        return (
            "forward gets no time, so build the model with time_input=False, or fit it with a Fitter whose "
            "predict_batch(batch) returns model.forward_params(batch.inputs, time_hours)"
        )

    @property
    def own_loss(self) -> str | None:
        """Name of the categorical head's loss; a Poisson head is trained on the loss asked for."""
        return "cross-entropy of spike counts" if self.readout.head == "categorical" else None

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
        params = self.readout.parameters_of(self.spectrogram(x), time_hours)
        return self.output_scale(params) if self.readout.head == "poisson" else params

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
            See `deepSTRF.models.audio.icnet.categorical_loss`.

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

    loss.response_domain = "counts"  # type: ignore[attr-defined]

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

    def public_difference(self, stored: Mapping[str, Tensor]) -> list[str]:
        """Strides that were chosen otherwise: no weight shows them."""
        earlier = _earlier_strides(self.wav2spec.hop, len(self.wav2spec.encoder_strides))
        chosen = self.init_arguments.get("encoder_strides") is None and "wav2spec.sincnet.low_hz_" in stored
        if not chosen or list(self.wav2spec.encoder_strides) == earlier:
            return []
        return [
            f"its strides were {earlier} unless others were given, and are {self.wav2spec.encoder_strides} "
            f"here: build {type(self).__name__}(..., encoder_strides={earlier})"
        ]

    def convert_public_state(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Rename public weights, which hold the decoder under two names.

        They keep cutoffs in hertz and use strides that no weight shows: build the model with
        ``sincnet_parameterization="hertz"`` and the ``encoder_strides`` of the checkpoint.
        """
        decoder = {name: state[name] for name in state if name.startswith(("decoder.", "readout."))}
        converted = {name: state[name] for name in state if name not in decoder and name not in _DERIVED}
        for part in ("weight", "bias"):
            copies = [tensor for name, tensor in decoder.items() if name.rsplit(".", 1)[1] == part]
            if not copies or any(copy.shape != copies[0].shape for copy in copies):
                raise ValueError(
                    f"expected one decoder {part} (under 'decoder.*', perhaps again under 'readout.*'), "
                    f"found {[tuple(copy.shape) for copy in copies]}"
                )
            if any(not bool((copy == copies[0]).all()) for copy in copies):
                raise ValueError(f"the copies of the decoder's {part} differ; this is no ICNet checkpoint")
            converted[f"readout.{part}"] = copies[0].unsqueeze(1)
        return converted


class ICNetEncoder(WaveformFrontEnd):
    """Waveform to a latent at the neural rate: `ICNet`'s own front-end, (B, 1, T_audio) to (B, 1, F, T).

    A `SincNet` at every sample with sign-preserving log compression, then strided causal convolutions whose
    strides multiply to the hop, then a bottleneck convolution at the neural rate. Its channels are learned
    features without centre frequency or order.
    """

    def __init__(
        self,
        audio_fs: float,
        dt_ms: float = 5.0,
        n_filters: int = 48,
        sincnet_kernel_size: int = 64,
        encoder_channels: int = 128,
        encoder_kernel_size: int | Sequence[int] = 64,
        n_encoder_layers: int = 5,
        bottleneck_channels: int = 64,
        encoder_strides: Sequence[int] | None = None,
        *,
        f_min: float = 300.0,
        f_max: float | None = None,
        sincnet_parameterization: str = "spacing",
        sincnet_norm: str = "unit",
    ) -> None:
        latent = check_positive_int("bottleneck_channels", bottleneck_channels)
        super().__init__(audio_fs, latent, dt_ms)
        self.dt_ms = self.hop_ms
        width = check_positive_int("encoder_channels", encoder_channels)
        n_layers = check_positive_int("n_encoder_layers", n_encoder_layers, _MOST_STRIDES)
        self.encoder_strides = _resolve_strides(encoder_strides, self.hop, n_layers)
        kernels = _resolve_kernels(encoder_kernel_size, self.encoder_strides, self.hop)
        self.sincnet = SincNet(
            audio_fs=self.audio_fs,
            n_filters=n_filters,
            kernel_size=sincnet_kernel_size,
            hop_ms=1000.0 / float(self.audio_fs),
            f_min=f_min,
            f_max=f_max,
            activation="symlog",
            parameterization=sincnet_parameterization,
            norm=sincnet_norm,
        )
        inputs = [self.sincnet.n_filters, *[width] * (n_layers - 1)]
        sizes = zip(inputs, kernels[:-1], self.encoder_strides, strict=True)
        self.encoder = nn.ModuleList(
            CausalConvPReLU(channels, width, kernel, stride) for channels, kernel, stride in sizes
        )
        self.bottleneck = CausalConvPReLU(width, latent, kernels[-1])
        self.left_context = self.receptive_field_samples - self.hop

    def _layers(self) -> list[CausalConvPReLU]:
        return [cast(CausalConvPReLU, layer) for layer in (*self.encoder, self.bottleneck)]

    def forward(self, x: Tensor) -> Tensor:
        """Map waveforms (B, 1, T_audio) to the latent (B, 1, F, T_audio / hop)."""
        self.check_waveform(x)
        features = self._rounded(self.sincnet(x).squeeze(1))
        for layer in self._layers():
            features = layer(features)
        return features.unsqueeze(1)

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state of every layer before the first sample: zeros."""
        layers = {
            str(index): layer.init_state(batch, device=device, dtype=dtype)
            for index, layer in enumerate(self._layers())
        }
        return {"sincnet": self.sincnet.init_state(batch, device=device, dtype=dtype), "layers": layers}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Turn the next whole frames of audio (B, 1, n * hop) into (B, 1, F, n) and the next state."""
        self.check_waveform(chunk)
        frames, sincnet = self.sincnet.step(chunk, state["sincnet"])
        features, layers = self._rounded(frames.squeeze(1)), {}
        for index, layer in enumerate(self._layers()):
            features, layers[str(index)] = layer.step(features, state["layers"][str(index)])
        return features.unsqueeze(1), {"sincnet": sincnet, "layers": layers}

    def _rounded(self, features: Tensor) -> Tensor:
        """Outputs of the filters in the precision of the convolutions, where that is half."""
        kind = self.bottleneck.conv.weight.dtype
        return features.to(kind) if kind in HALF_PRECISION else features

    @property
    def receptive_field_samples(self) -> int:
        """Audio samples that one frame of the latent depends on, up to the end of its bin."""
        samples, rate = self.sincnet.kernel_size, 1
        for layer in self._layers():
            samples += (layer.kernel_size - 1) * rate
            rate *= layer.stride
        return samples

    @property
    def latency_ms(self) -> float:
        """Delay of the band-pass filters in ms, ``(K - 1) / 2`` samples; later layers learn their own."""
        return self.sincnet.latency_ms

    @property
    def has_negative_levels(self) -> bool:
        """True: features have either sign."""
        return True

    @property
    def expected_level(self) -> tuple[float, float] | None:
        """Range of the rms of sounds that the compression of ``sincnet`` is made for."""
        return self.sincnet.expected_level

    @property
    def frequencies_hz(self) -> Tensor:
        """Not defined: learned features have no centre frequency; the filters of ``sincnet`` have."""
        raise AttributeError(
            "the channels of ICNet's latent have no centre frequency; see wav2spec.sincnet.frequencies_hz"
        )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return optimiser groups: the filters' cutoffs at their own learning rate, all else at ``lr``."""
        layers = [p for layer in self._layers() for p in layer.parameters() if p.requires_grad]
        rest = [{"params": layers, "lr": lr, "weight_decay": 0.0}] if layers else []
        return [*self.sincnet.param_groups(lr), *rest]


class CausalConvPReLU(nn.Module, Configurable):
    """Strided convolution over the past, then a PReLU with one slope per channel.

    Output ``j`` depends on ``kernel_size`` inputs up to ``(j + 1) * stride - 1``; before the first are zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel_size = check_positive_int("kernel_size", kernel_size)
        self.stride = check_positive_int("stride", stride)
        if self.stride > self.kernel_size:
            raise ValueError(
                f"stride {self.stride} is larger than kernel_size {self.kernel_size}: the inputs between two "
                f"outputs would never be used; give a kernel_size of at least {self.stride}"
            )
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = check_positive_int("out_channels", out_channels)
        self.conv = nn.Conv1d(self.in_channels, self.out_channels, self.kernel_size, stride=self.stride)
        self.activation = nn.PReLU(self.out_channels, init=_PRELU_SLOPE)

    @property
    def history(self) -> int:
        """Past inputs of an output, beside the ``stride`` new ones."""
        return self.kernel_size - self.stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, n * stride) to (B, C_out, n)."""
        return self.activation(self.conv(functional.pad(x, (self.history, 0))))  # type: ignore[no-any-return]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the zeros before the first input: ``{"history": (B, C_in, kernel_size - stride)}``."""
        where, kind = placement(self, device, dtype)
        return {"history": torch.zeros(batch, self.in_channels, self.history, device=where, dtype=kind)}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next inputs (B, C_in, n * stride) to (B, C_out, n) and the next state."""
        padded = torch.cat([state["history"].to(chunk.dtype), chunk], dim=-1)
        following = padded[..., padded.shape[-1] - self.history :].to(state["history"].dtype)
        return self.activation(self.conv(padded)), {"history": following}


def even_strides(total: int, n_layers: int) -> list[int]:
    """Split a stride into ``n_layers`` whole factors that are as equal as possible, in ascending order.

    For example 240 in 5 layers: 2, 2, 3, 4, 5. Small strides come first: least aliasing where the signal is
    fastest, at the price of more arithmetic.
    """
    total, n_layers = (
        check_positive_int("total", total),
        check_positive_int("n_layers", n_layers, _MOST_STRIDES),
    )
    candidates = _ascending_factors(total, n_layers, 1)
    return min(candidates, key=lambda factors: (sum(factors), factors[-1]))


def _ascending_factors(total: int, n_layers: int, smallest: int) -> list[list[int]]:
    """All ascending factorisations of ``total`` whose factors are at least ``smallest``."""
    if n_layers == 1:
        return [[total]]
    largest = math.floor(total ** (1.0 / n_layers) + 1e-9)  # the first of ascending factors is the smallest
    return [
        [factor, *rest]
        for factor in range(smallest, largest + 1)
        if total % factor == 0
        for rest in _ascending_factors(total // factor, n_layers - 1, factor)
    ]


def _earlier_strides(hop: int, n_layers: int) -> list[int]:
    """Strides of the earlier package by default: twos while the rest is even, then ones, the rest last."""
    strides = []
    for _ in range(n_layers - 1):
        strides.append(2 if hop % 2 == 0 else 1)
        hop //= strides[-1]
    return [*strides, hop]


def _resolve_strides(given: Sequence[int] | None, hop: int, n_layers: int) -> list[int]:
    """Return one stride per layer, checked against the hop."""
    even = even_strides(hop, n_layers)
    if given is None:
        return even
    if not isinstance(given, list | tuple):
        raise TypeError(f"encoder_strides must be a list of integers or None, got {given!r}")
    strides = [check_positive_int(f"encoder_strides[{index}]", one) for index, one in enumerate(given)]
    if len(strides) != n_layers or math.prod(strides) != hop:
        raise ValueError(
            f"encoder_strides={strides} ({len(strides)} layers, product {math.prod(strides)}) do not fit "
            f"n_encoder_layers={n_layers} and {hop} samples per bin; e.g. {even} does, and None chooses it"
        )
    return strides


def _resolve_kernels(given: int | Sequence[int], strides: list[int], hop: int) -> list[int]:
    """Return one kernel length per strided layer and one for the bottleneck, none shorter than its stride."""
    needed = len(strides) + 1
    if isinstance(given, numbers.Integral):
        kernels = [check_positive_int("encoder_kernel_size", given)] * needed
    elif isinstance(given, list | tuple):
        kernels = [check_positive_int(f"encoder_kernel_size[{i}]", one) for i, one in enumerate(given)]
    else:
        raise TypeError(f"encoder_kernel_size must be an integer or a list of integers, got {given!r}")
    if len(kernels) != needed:
        raise ValueError(
            f"encoder_kernel_size has {len(kernels)} entries; give one number, or {needed}: one for each of "
            f"the {len(strides)} strided layers and one for the bottleneck"
        )
    for layer, (kernel, stride) in enumerate(zip(kernels, strides, strict=False)):
        if stride > kernel:
            raise ValueError(
                f"layer {layer} has a stride of {stride} and a kernel of {kernel}: samples between its "
                f"outputs would never be used. Give encoder_kernel_size of at least {stride}, other "
                f"encoder_strides, or a rate and bin whose hop (now {hop} samples) has smaller factors"
            )
    return kernels


class ICNetReadout(FramewiseMixin, nn.Module, Configurable):
    """Affine map of each frame's latent to every neuron, as a Poisson rate or as probabilities of counts.

    ``weight`` is (N, P, F) and ``bias`` (N, P), with P of 1 (rate) or ``n_classes`` (logits). The neurons of
    several recordings follow each other. With ``time_input`` each recording scales the latent by gains of its
    own that drift with time, ``1 + gate_weight * t / 10 h + gate_bias``, which start at 1.
    """

    def __init__(
        self,
        in_features: int,
        out_neurons: int | Sequence[int],
        head: str = "poisson",
        n_classes: int = 5,
        time_input: bool = False,
    ) -> None:
        super().__init__()
        check_choice("head", head, ("poisson", "categorical"))
        self.in_features = check_positive_int("in_features", in_features)
        if not isinstance(out_neurons, list | tuple):
            sizes = [check_positive_int("out_neurons", out_neurons)]
        elif out_neurons:
            sizes = [check_positive_int(f"out_neurons[{index}]", n) for index, n in enumerate(out_neurons)]
        else:
            raise ValueError("out_neurons must name at least one recording, got an empty list")
        self.neurons_per_recording = sizes
        self.head, self.time_input = head, check_flag("time_input", time_input)
        self.n_classes = check_positive_int("n_classes", n_classes)
        if self.n_classes < 2:
            raise ValueError("n_classes must be at least 2: no spike, and one or more")
        per_neuron = 1 if head == "poisson" else self.n_classes
        shape = (sum(sizes), per_neuron, self.in_features)
        bound = 1.0 / math.sqrt(self.in_features)  # as in nn.Linear
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape[:2]).uniform_(-bound, bound))
        self.activation = nn.Softplus() if head == "poisson" else nn.Identity()
        if self.time_input:
            self.gate_weight = nn.Parameter(torch.zeros(len(sizes), self.in_features))
            self.gate_bias = nn.Parameter(torch.zeros(len(sizes), self.in_features))

    def forward(self, latent: Tensor) -> Tensor:
        """Map (B, 1, F, T) to expected spike counts per bin (B, N, 1, T)."""
        return self.expected_counts(self.parameters_of(latent))

    def parameters_of(self, latent: Tensor, time_hours: Tensor | float | None = None) -> Tensor:
        """Map the latent (B, 1, F, T) to the parameters (B, N, P, T) of each neuron's distribution.

        ``time_hours`` is a number, (B,) or (B, T); None leaves the gains of the latent at 1.
        """
        if latent.ndim != 4 or latent.shape[1] != 1 or latent.shape[2] != self.in_features:
            raise ValueError(f"expected a latent (B, 1, {self.in_features}, T), got {tuple(latent.shape)}")
        frames = latent.squeeze(1).transpose(1, 2)
        if time_hours is None:
            drive = _affine(frames, self.weight, self.bias)
        else:
            weights = torch.split(self.weight, self.neurons_per_recording)
            biases = torch.split(self.bias, self.neurons_per_recording)
            recordings = zip(self._gains(frames, time_hours), weights, biases, strict=True)
            drive = torch.cat([_affine(frames * gain, *affine) for gain, *affine in recordings], dim=1)
        return self.activation(drive)  # type: ignore[no-any-return]

    def expected_counts(self, parameters: Tensor) -> Tensor:
        """Map what `parameters_of` returns to expected spike counts (B, N, 1, T)."""
        if self.head == "poisson":
            return parameters
        counts = torch.arange(self.n_classes, dtype=parameters.dtype, device=parameters.device)
        return (parameters.softmax(2) * counts.view(-1, 1)).sum(2, keepdim=True)

    @property
    def prediction_domain(self) -> str:
        """A softplus, or an expectation of counts: never negative."""
        return "non-negative"

    def per_neuron_parameters(self) -> list[str]:
        """Return the names of the tensors whose first axis is the neuron."""
        return ["weight", "bias"]

    def _gains(self, frames: Tensor, time_hours: Tensor | float) -> list[Tensor]:
        """Gains of each recording that broadcast over (B, T, F)."""
        if not self.time_input:
            raise ValueError("this model has no time input; build it with ICNet(..., time_input=True)")
        time = torch.as_tensor(time_hours, dtype=frames.dtype, device=frames.device) / _HOURS_PER_UNIT
        batch, bins = frames.shape[:2]
        if tuple(time.shape) not in ((), (batch,), (batch, bins)):
            raise ValueError(
                f"time_hours must be a number, ({batch},) for the clips or ({batch}, {bins}) for their bins, "
                f"got {tuple(time.shape)}"
            )
        time = time.reshape(*time.shape, *[1] * (3 - time.ndim))
        gates = zip(self.gate_weight, self.gate_bias, strict=True)
        return [1.0 + weight * time + bias for weight, bias in gates]


def _affine(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, T, F) -> (B, N, P, T) by a weight (N, P, F) and a bias (N, P)."""
    y = functional.linear(frames, weight.flatten(0, 1), bias.flatten())
    return y.transpose(1, 2).reshape(y.shape[0], *bias.shape, -1)


def categorical_loss(
    logits: Tensor,
    responses: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    weighting: str = "bins",
) -> Tensor:
    """Cross-entropy of spike counts: the negative log-likelihood of a categorical distribution per bin.

    ``logits`` (B, N, K, T); ``responses`` (B, N, R, T), NaN where nothing was recorded; ``mask`` (broadcast
    to them) True where a bin counts. ``weighting="bins"`` averages a bin over its repeats, ``"repeats"``
    gives every repeat the same weight; both come from the histogram of the counts over repeats, which is
    exact. The mean over neurons leaves out those without data; ``reduction="none"`` returns (N,), NaN there.
    """
    check_choice("reduction", reduction, ("mean", "none"))
    check_choice("weighting", weighting, ("bins", "repeats"))
    valid = _valid_counts(logits, responses, mask)
    log_probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(2)
    last = logits.shape[2] - 1
    classes = torch.where(valid, responses, torch.zeros_like(responses)).clamp(max=last)
    repeats = valid.sum(2).to(log_probability.dtype)  # (B, N, T)
    surprise = torch.zeros_like(log_probability[:, :, 0])
    for count in range(last + 1):  # one class at a time: nothing of size R x K is made
        occurrences = ((classes == count) & valid).sum(2)
        surprise = surprise - occurrences * log_probability[:, :, count]
    weight = repeats
    if weighting == "bins":
        surprise, weight = surprise / repeats.clamp(min=1.0), (repeats > 0).to(repeats.dtype)
    total = weight.sum((0, 2))
    # divided by 1 where there is no data: the gradient of 0 / 0 would be NaN even where it is left out
    per_neuron = surprise.sum((0, 2)) / torch.where(total > 0, total, 1.0)
    if reduction == "none":
        return torch.where(total > 0, per_neuron, torch.nan)
    return per_neuron[total > 0].mean()


def _valid_counts(logits: Tensor, responses: Tensor, mask: Tensor | None) -> Tensor:
    """Return where there is a count (B, N, R, T), after checking shapes and values."""
    fits = logits.ndim == responses.ndim == 4 and logits.shape[:2] == responses.shape[:2]
    if not fits or logits.shape[3] != responses.shape[3]:
        raise ValueError(
            f"expected logits (B, N, K, T) and responses (B, N, R, T), got {tuple(logits.shape)} and "
            f"{tuple(responses.shape)}; the logits come from model.forward_params(stimuli)"
        )
    valid = ~responses.isnan()
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True where a bin counts, got {mask.dtype}")
        valid = valid & mask.expand_as(responses)
    counts = torch.where(valid, responses, torch.zeros_like(responses))
    wrong = (counts != counts.round()) | (counts < 0) | counts.isinf()
    if bool(wrong.any()):
        raise ValueError(
            "the categorical head needs spike counts, whole numbers of at least 0, and these responses hold "
            f"{float(counts[wrong][0]):.4g}: load the recording with smooth=False, without "
            "normalized(...) or smoothed(...), and give single repeats (B, N, R, T), not their PSTH"
        )
    return valid
