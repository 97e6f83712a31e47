"""What a model has learned, as numbers: so far, front-ends against reference spectrograms."""

from deepSTRF.interpret.compare_wav2spec import (
    Wav2specComparison,
    compare_wav2spec,
    compare_wav2spec_to_groundtruth,
)

__all__ = ["Wav2specComparison", "compare_wav2spec", "compare_wav2spec_to_groundtruth"]
