"""PortAudio without a sound card: a module in place of ``sounddevice`` whose devices play arrays.

What it does is what `sounddevice` 0.5 documents: `query_devices`, `check_input_settings`, `InputStream`
that calls back from its own thread with blocks (n, channels), a time and flags.
"""

from __future__ import annotations

import threading
import time as clock
from types import SimpleNamespace

import numpy as np


class PortAudioError(Exception):
    pass


def flags(**set_: bool) -> SimpleNamespace:
    return SimpleNamespace(**{"input_overflow": False, **set_})


class FakePortAudio:
    """Devices by name, each a dictionary like those of sounddevice with ``rates`` that it runs at.

    ``sound`` (n, channels) is what they hear; ``script`` maps the number of a callback to what happens then:
    "unplug" ends the stream, "hang" gives no more blocks, ("overflow", n) loses n samples before that block.
    ``pace`` is the speed of callbacks in times real time, 0 as fast as they are taken.
    """

    PortAudioError = PortAudioError

    def __init__(self, devices, sound, script=None, pace=0.0, adc=True):
        self.devices, self.sound, self.script, self.pace, self.adc = devices, sound, script or {}, pace, adc
        self.opened: list[FakeStream] = []

    def query_devices(self, device=None, kind=None):
        if device is None and kind is None:
            return [dict(one, index=number) for number, one in enumerate(self.devices)]
        if device is None:
            if not self.devices:
                raise PortAudioError("Error querying device -1")
            device = 0
        if isinstance(device, int):
            if not 0 <= device < len(self.devices):
                raise PortAudioError(f"Error querying device {device}")
            found = [device]
        else:
            found = [k for k, one in enumerate(self.devices) if device.lower() in one["name"].lower()]
        if len(found) != 1:
            raise ValueError(f"{'No' if not found else 'Multiple'} input device found matching {device!r}")
        return dict(self.devices[found[0]], index=found[0])

    def check_input_settings(self, device, channels, dtype, samplerate):
        if channels > self.devices[device]["max_input_channels"] or channels in self.devices[device].get(
            "not", ()
        ):
            raise PortAudioError("Invalid number of channels [PaErrorCode -9998]")
        if samplerate not in self.devices[device]["rates"]:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def InputStream(self, **settings):
        stream = FakeStream(self, **settings)
        self.opened.append(stream)
        return stream


class FakeStream:
    latency = 0.012

    def __init__(
        self, owner, *, device, channels, dtype, samplerate, blocksize, latency, callback, finished_callback
    ):
        assert dtype == "float32"
        self.owner, self.channels, self.rate, self.block = owner, channels, samplerate, blocksize
        self.callback, self.finished, self.device = callback, finished_callback, device
        self.active, self.closed = False, False
        self.heard = threading.Event()

    def start(self):
        self.active = True
        threading.Thread(target=self._play, daemon=True).start()

    def close(self, ignore_errors=True):
        assert ignore_errors
        self.active, self.closed = False, True

    def _play(self):
        at, number, status = 0, 0, flags()
        while at + self.block <= len(self.owner.sound) and self.active:
            action = self.owner.script.get(number)
            if action == "unplug":
                break
            if action == "hang":
                self.heard.set()
                return
            if isinstance(action, tuple):
                at, status = at + action[1], flags(input_overflow=True)
            if callable(action):
                action()
            moment = SimpleNamespace(inputBufferAdcTime=100.0 + at / self.rate if self.owner.adc else 0.0)
            piece = self.owner.sound[at : at + self.block, : self.channels].astype(np.float32)
            self.callback(piece, self.block, moment, status)
            status, number, at = flags(), number + 1, at + self.block
            if self.owner.pace:
                clock.sleep(self.block / self.rate / self.owner.pace)
        self.active = False
        self.heard.set()
        self.finished()
