"""Interpretation of fitted models: receptive fields, tuning, attribution, probes and sounds.

`dstrf` estimates dynamic STRFs (more of them in `deepSTRF.interpret.dstrf`), `contributions`, `occlusion` and
`smooth_dstrf` attribute responses to the stimulus. `strf_tuning` summarises STRFs in a table,
`strf_confidence` gives their bands, `waveform_fields` are receptive fields in the sound.
`front_end_response` measures the channels of a front-end, `compare_wav2spec` correlates its output with a
reference. `exciting_spectrogram` and `exciting_sound` search the best stimulus, `write_wav` and `sonify_strf`
make patterns audible, and `deepSTRF.interpret.probes` plays synthetic sounds to a model. `ClosedLoop` holds
neurons that answer chunk by chunk (a stream, a rig), to which probes are played, and for which `search_sound`
searches an exciting sound of a `SoundFamily` trial by trial. Figures are in
`deepSTRF.plots`; plain gradients are methods of the models (``STRF_gradmap``, ``waveform_gradmap``).

The attribute ``dstrf`` is the function; import from the sub-package of that name with ``from
deepSTRF.interpret.dstrf import ...``.
"""

from deepSTRF.interpret import filter_statistics, probes
from deepSTRF.interpret.attribution import contributions, occlusion, smooth_dstrf
from deepSTRF.interpret.closed_loop import ClosedLoop
from deepSTRF.interpret.dstrf import (
    DynamicSTRF,
    dstrf,
    measure_receptive_field,
    measure_window,
    stimulus_frames,
)
from deepSTRF.interpret.exciting import exciting_sound, exciting_spectrogram
from deepSTRF.interpret.front_ends import (
    compare_wav2spec,
    compare_wav2spec_to_groundtruth,
    front_end_response,
    initial_front_end,
)
from deepSTRF.interpret.sonify import sonify_spectrogram, sonify_strf, write_wav
from deepSTRF.interpret.sound_search import SoundFamily, search_sound
from deepSTRF.interpret.strf import (
    NeuronTable,
    WaveformField,
    fit_gabor,
    modulation_transfer,
    rf_duration_ms,
    separability_index,
    strf_confidence,
    strf_tuning,
    waveform_fields,
)

__all__ = [
    "ClosedLoop",
    "DynamicSTRF",
    "NeuronTable",
    "SoundFamily",
    "WaveformField",
    "compare_wav2spec",
    "compare_wav2spec_to_groundtruth",
    "contributions",
    "dstrf",
    "exciting_sound",
    "exciting_spectrogram",
    "filter_statistics",
    "fit_gabor",
    "front_end_response",
    "initial_front_end",
    "measure_receptive_field",
    "measure_window",
    "modulation_transfer",
    "occlusion",
    "probes",
    "rf_duration_ms",
    "search_sound",
    "separability_index",
    "smooth_dstrf",
    "sonify_spectrogram",
    "sonify_strf",
    "stimulus_frames",
    "strf_confidence",
    "strf_tuning",
    "waveform_fields",
    "write_wav",
]
