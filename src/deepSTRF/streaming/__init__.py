"""Live streams: sound in, chunk by chunk, and the rates of a fitted model out, bin by bin.

`Stream` runs a model on one stream or on a batch of independent ones; its numbers are those of a prediction
of the whole sound. `FileSource`, `DeviceSource` and `RawSource` give sound in chunks at the rate of a model.
`Server` offers streams to other programs. Both run a model, or its exported graph (`ExportedModel`).
"""

from deepSTRF.streaming.exported import ExportedModel
from deepSTRF.streaming.server import Server, ServerLimits
from deepSTRF.streaming.sources import DeviceSource, FileSource, RawSource, sound_devices
from deepSTRF.streaming.stream import Stream, StreamTiming

__all__ = [
    "DeviceSource",
    "ExportedModel",
    "FileSource",
    "RawSource",
    "Server",
    "ServerLimits",
    "Stream",
    "StreamTiming",
    "sound_devices",
]
