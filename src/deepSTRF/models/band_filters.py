"""Recurrent band filters: one small gated network along time that all bands share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_positive_int, checked
from deepSTRF.models.backbones.gated import GRU
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import PREFILTERS

__all__ = ["BandFilters", "make_band_filters"]


class BandFilters(nn.Module, Configurable):
    """Learned temporal filters with gates, the same ones for every frequency band.

    One `GRU` of ``n_filters`` units runs along time in every band; it sees the band and ``n_neighbours`` on
    either side (zeros beyond the edges). Adaptation, onset and offset responses and sidebands are things that
    it can learn; sharing it over the bands makes that a few hundred parameters.

    Parameters
    ----------
    n_bands : int
        Bands, F.
    n_filters : int
        Units, which become the channels C of the output.
    n_neighbours : int
        Bands on either side that a band's filters see.
    in_channels : int
        Channels of the input, such as ON and OFF, which the filters see together.

    Attributes
    ----------
    out_channels : int
        C.

    Raises
    ------
    TypeError, ValueError
        For illegal numbers.

    References
    ----------
    Cho et al. 2014, doi 10.3115/v1/D14-1179 (the unit).

    Examples
    --------
    >>> import torch
    >>> filters = BandFilters(34, n_filters=8, n_neighbours=2)
    >>> filters(torch.zeros(1, 1, 34, 100)).shape
    torch.Size([1, 8, 34, 100])
    >>> sum(parameter.numel() for parameter in filters.parameters())
    360
    """

    #: The memory of the units is unbounded.
    receptive_field = None

    @checked
    def __init__(self, n_bands: int, n_filters: int = 8, n_neighbours: int = 2, in_channels: int = 1) -> None:
        super().__init__()
        self.F = check_positive_int("n_bands", n_bands)
        self.out_channels = check_positive_int("n_filters", n_filters)
        self.n_neighbours = check_positive_int("n_neighbours", n_neighbours) if n_neighbours else 0
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.rnn = GRU(self.in_channels * (2 * self.n_neighbours + 1), self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, F, T) to (B, C, F, T)."""
        return self.step(x, self.init_state(x.shape[0], device=x.device, dtype=x.dtype))[0]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame: zeros."""
        return self.rnn.init_state(batch * self.F, device=device, dtype=dtype)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, in_channels, F, T') to (B, C, F, T')."""
        if chunk.ndim != 4 or chunk.shape[1:3] != (self.in_channels, self.F) or chunk.shape[3] < 1:
            raise ValueError(
                f"expected spectrograms (B, {self.in_channels}, {self.F}, T) with T of at least 1, got "
                f"{tuple(chunk.shape)}; build BandFilters with the number of frequency bands"
            )
        edge = self.n_neighbours
        padded = functional.pad(chunk.permute(0, 3, 1, 2), (edge, edge))  # (B, T', C_in, F + 2 edge)
        windows = padded.unfold(-1, 2 * edge + 1, 1)  # (B, T', C_in, F, 2 edge + 1)
        windows = windows.permute(0, 3, 1, 2, 4).flatten(3)  # (B, F, T', C_in (2 edge + 1))
        y, following = self.rnn.step(windows.flatten(0, 1), state)
        return y.view(chunk.shape[0], self.F, -1, self.out_channels).permute(0, 3, 1, 2), following


@PREFILTERS.register("bandfilters")
def make_band_filters(n_frequency_bands: int, n_filters: int = 8, n_neighbours: int = 2) -> BandFilters:
    """Small gated networks along time, shared by all bands (`BandFilters`)."""
    return BandFilters(n_frequency_bands, n_filters, n_neighbours)
