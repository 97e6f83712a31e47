"""``deepstrf serve``: a fitted model as a websocket service of live streams, until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType

from deepSTRF.cli.errors import say, usage
from deepSTRF.cli.fitted import load_for_streams
from deepSTRF.streaming import Server, ServerLimits

__all__ = ["serve_and_print"]


def serve_and_print(
    run: str,
    seed: int | None,
    host: str,
    port: int,
    token: str | None,
    origins: Sequence[str],
    clients: int,
    *,
    quiet: bool,
) -> None:
    """Serve a fitted model until Ctrl-C or the signal to terminate; both end it in order."""
    model = load_for_streams(run, seed)
    with usage():
        server = Server(
            model, host=host, port=port, token=token, origins=origins, limits=ServerLimits(clients=clients)
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    server.start()
    say(server.url)
    if not quiet:
        named = "" if token is None else ", who need the token"
        say(f"{server.hello['n_neurons']} neurons, up to {clients} clients{named}. Ctrl-C stops.", err=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        if not quiet:
            say("Stopped.", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
