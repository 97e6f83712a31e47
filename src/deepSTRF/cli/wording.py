"""The library's advice is a call in Python; whoever typed a command is told the flag."""

from __future__ import annotations

import re

from deepSTRF.experiments.config import FLAGS

__all__ = ["in_words_of_the_command"]

#: A value as Python prints it.
_LITERAL = r"(?:'[^']*'|True|False|None|\.\.\.|[-+\w.]+)"
#: Fields whose names are no words of a sentence: they are flags wherever they stand.
_UNMISTAKABLE = [name for name in FLAGS if "_" in name and not name.endswith("_options")] + ["wav2spec"]
#: Other names that open the sentence in which a value is refused.
_REFUSED = [*(name for name in FLAGS if name not in _UNMISTAKABLE), "clips", "neurons"]
#: The keys of a TOML file are the fields.
_OF_A_FILE = "] has no key "
#: Advice that is no field and its value: what the library says, what the command line offers.
_ADVICE = (
    (r" or pass grad_clip=\d+(?:\.\d+)?", ""),
    (r"\. The best weights so far are back in the model, the epochs so far in fitter\.history", ""),
    (r"get it with \w+\(.*?download=True\)", "let deepstrf fetch it (leave out --no-download)"),
    (r"NeuralDataset\.load", "--dataset"),
    (
        r"build the model with out_neurons=\d+ \(dataset\.N_neurons\), or select (\d+) neurons with "
        r"dataset\.select\(neurons=\.\.\.\)",
        r"the run has \1 neurons: give a recording of the same ones, or fit a model to this one",
    ),
    (r", or leave the clip out with dataset\.select", ""),
    (
        r" \(return_waveform=True, or from_arrays with audio_fs=\.\.\.\)",
        ": from_arrays(..., audio_fs=...) in Python",
    ),
    (r"(?:make|write) one with (ds\.save\(.*?\))", r"write one in Python: \1"),
    (r"save it with (ds\.save\(.*?\)) and", r"save it in Python with \1 and"),
)


def in_words_of_the_command(text: str) -> str:
    """Put an error of the library into the words of the command line.

    Examples
    --------
    >>> in_words_of_the_command("learning_rate must be a number of at least 0, got -1.0")
    '--lr must be a number of at least 0, got -1.0'
    >>> in_words_of_the_command("leave out loss='poisson', or load waveforms with return_waveform=True")
    'leave out --loss poisson, or load waveforms with -o return_waveform=true'
    """
    if _OF_A_FILE in text:
        return text
    for pattern, instead in _ADVICE:
        text = re.sub(pattern, instead, text)
    fields = "|".join(name for name in FLAGS if not name.endswith("_options"))
    text = re.sub(rf"(?<![-\w])({fields})=({_LITERAL})", _flag_and_value, text)
    text = re.sub(rf"(?<![-\w])({'|'.join(_UNMISTAKABLE)})(?![-\w=])", lambda found: FLAGS[found[1]], text)
    text = re.sub(rf"^({'|'.join(_REFUSED)})(?= must )", r"--\1", text)
    text = re.sub(r"(?<!-o )(?<![-\w])(return_waveform)=", r"-o \1=", text)
    return re.sub(r"(?<!-)\b([a-z_]\w*)=(True|False|None)\b", _typed, text)


def _flag_and_value(found: re.Match[str]) -> str:
    flag, value = FLAGS[found[1]], found[2].strip("'")
    if value in ("True", "False"):
        return flag if value == "True" else flag.replace("--", "--no-")
    return f"{flag} {value}"


def _typed(found: re.Match[str]) -> str:
    return f"{found[1]}={found[2].lower()}"
