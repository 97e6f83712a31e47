"""Long sounds go through a front-end in pieces where nothing is trained, with the numbers of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepSTRF.models.audio import Linear
from deepSTRF.models.prediction import PIECE_S, front_end_frames
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.models.wav2spec.base import WaveformFrontEnd

FS, SECONDS = 4000, 2 * PIECE_S + 2.37
KINDS = ["mel", "gammatone", "gammatonegram", "sincnet", "leaf"]


def sound(batch: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(batch, 1, round(SECONDS * FS), generator=generator, dtype=dtype)


@pytest.fixture
def steps(monkeypatch):
    """How many samples each step of a front-end was given."""
    seen: list[int] = []

    def watch(front_end):
        step = type(front_end).step

        def counted(self, chunk, state):
            seen.append(chunk.shape[-1])
            return step(self, chunk, state)

        monkeypatch.setattr(type(front_end), "step", counted)
        return seen

    return watch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_pieces_give_the_numbers_of_the_whole(kind, dtype, tolerance, steps):
    front_end = make_wav2spec(kind, audio_fs=FS, dt_ms=10.0, n_filters=8, f_min=200.0).eval().to(dtype)
    x = sound(2, dtype)
    with torch.no_grad():
        whole = front_end(x)
    seen = steps(front_end)
    with torch.no_grad():
        pieces = front_end_frames(front_end, x)
    assert len(seen) == 3
    assert max(seen) == PIECE_S * FS
    span = float(whole.max() - whole.min())
    assert float((pieces - whole).abs().max()) <= tolerance * span
    assert pieces.shape == whole.shape


def test_with_gradients_in_training_and_below_two_pieces_it_is_called_whole(steps):
    front_end = make_wav2spec("sincnet", audio_fs=FS, dt_ms=10.0, n_filters=8, f_min=200.0).eval()
    seen = steps(front_end)
    front_end_frames(front_end, sound()).sum().backward()
    with torch.no_grad():
        front_end_frames(front_end, sound()[..., : round(PIECE_S * FS)])
        front_end_frames(front_end.train(), sound())
        front_end.eval().register_forward_hook(lambda *given: None)
        front_end_frames(front_end, sound())
    assert seen == []


class Level(WaveformFrontEnd):
    """A front-end of a user's own: mean power of each frame, relative to the loudest of the sound."""

    def __init__(self):
        super().__init__(FS, 1, 10.0)

    def transform(self, padded):
        power = padded.unfold(-1, self.hop, self.hop).square().mean(-1).unsqueeze(2)
        return power / power.amax()


class Plain(nn.Module):
    """One without ``step``."""

    audio_fs, hop, hop_ms, out_channels, n_filters = FS, 40, 10.0, 1, 1

    def forward(self, x):
        return x.unfold(-1, 40, 40).abs().amax(-1).unsqueeze(2)


@pytest.mark.parametrize("made", [Level, Plain])
def test_a_front_end_of_ones_own_is_called_whole(made):
    front_end = made().eval()
    with torch.no_grad():
        assert torch.equal(front_end_frames(front_end, sound()), front_end(sound()))


def test_a_wrong_length_is_the_front_ends_own_error():
    front_end = make_wav2spec("mel", audio_fs=FS, dt_ms=10.0, n_filters=8, f_min=200.0).eval()
    with torch.no_grad(), pytest.raises(ValueError, match="not a multiple of hop"):
        front_end_frames(front_end, sound()[..., :-1])


def test_a_model_predicts_a_long_sound_as_before(steps):
    torch.manual_seed(0)
    front_end = make_wav2spec("gammatone", audio_fs=FS, dt_ms=10.0, n_filters=8, f_min=200.0)
    model = Linear(8, 5, 3, wav2spec=front_end).eval()
    expected = model.respond(front_end(sound())).detach()
    seen = steps(front_end)
    with torch.no_grad():
        torch.testing.assert_close(model(sound()), expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 3
