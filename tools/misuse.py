"""Misuse by signature: `python tools/misuse.py [ROOM ...] [--quick] [--jobs 2] [--verbose]`.

Calls every name that a room exports, and the public methods of its classes, with wrong types for each
parameter in turn. The valid rest of a call comes from the example in the docstring, which is run once and
watched. A call ends well when an error names the parameter. Printed per room: calls tried, errors that do not
name it, those of them that another package raised, calls that hang, and wrong values accepted without a word.
Ends with status 1 when a room has 3% or more of unnamed errors and hangs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import doctest
import importlib
import inspect
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import types
import typing
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

#: A room has fewer unnamed errors and hangs than this share of its calls.
LIMIT = 0.03
ROOMS = {
    "baselines": ["baselines"],
    "crossval": ["crossval"],
    "datasets": ["datasets", "datasets.audio"],
    "dsp": ["dsp"],
    "experiments": ["experiments"],
    "interpret": ["interpret", "interpret.dstrf", "interpret.filter_statistics", "interpret.probes"],
    "metrics": ["metrics"],
    "models": ["models", "models.audio", "models.backbones", "models.io", "models.wav2spec"],
    "plots": ["plots"],
    "report": ["report"],
    "streaming": ["streaming"],
    "training": ["training"],
}
#: The values of a quick run: one of each kind.
QUICK = (
    "text", "bytes", "half", "none", "object", "dict of texts", "list of none", "list of texts", "lambda",
    "class", "text array", "object array", "complex tensor", "linear",
)  # fmt: skip
#: A call that takes longer hangs.
SECONDS = 10
#: A room that takes longer is stopped.
ROOM_SECONDS = 420
#: What a forward pass, a fit or a loader of weights calls many times, between its own objects.
SKIPPED_METHODS = {
    "build_bank", "check_waveform", "compress", "compute_loss", "convert_public_state", "detect",
    "expected_counts", "forward", "forward_params", "init_compression", "init_state", "lower_baseline",
    "on_batch_end", "on_epoch_end", "on_epoch_start", "on_fit_end", "on_fit_start", "on_gradient", "on_loss",
    "on_train_pass_end", "open", "predict_batch", "public_difference", "register_constant", "respond",
    "set_filters", "set_plan", "spectrogram", "start_output", "step", "transform", "write", "write_final",
}  # fmt: skip


class Hang(BaseException):
    """A call that takes too long."""


class KeptDirectory(contextlib.nullcontext):
    """In place of ``tempfile.TemporaryDirectory``: the files of an example stay for the calls after it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.name = tempfile.mkdtemp(dir=os.getcwd())
        super().__init__(self.name)


# ---- valid calls, from the examples


def exported(faces: list[str]) -> dict[str, object]:
    """Functions and classes that the faces export, each once."""
    found: dict[str, object] = {}
    for face in faces:
        module = importlib.import_module("deepSTRF." + face)
        for name in module.__all__:
            value = getattr(module, name)
            callable_class = inspect.isclass(value) and not issubclass(value, BaseException)
            if inspect.isfunction(value) or callable_class:
                found.setdefault(name, value)
    return found


def code_of(function: object) -> types.CodeType | None:
    return getattr(inspect.unwrap(function), "__code__", None)


def methods(cls: type) -> dict[str, object]:
    """Public methods that a class, or a base of this package, defines in Python."""
    found = {}
    for name in dir(cls):
        raw = inspect.getattr_static(cls, name)
        function = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        if name.startswith("_") or name in SKIPPED_METHODS or not inspect.isfunction(function):
            continue
        if function.__module__.startswith("deepSTRF"):
            found[name] = raw
    return found


class Recorder:
    """The first call of each target while examples run, as target -> arguments by name."""

    def __init__(self, names: dict[str, object]) -> None:
        self.codes: dict[types.CodeType, list[tuple[str, object]]] = {}
        self.calls: dict[str, dict[str, object]] = {}
        self.owners = {name: value for name, value in names.items() if inspect.isclass(value)}
        for name, value in names.items():
            if inspect.isfunction(value):
                self._watch(name, value, None)
                continue
            if inspect.isfunction(inspect.getattr_static(value, "__init__")):
                self._watch(name, value.__init__, value)
            for method, raw in methods(value).items():
                function = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
                self._watch(f"{name}.{method}", function, value)

    def _watch(self, label: str, function: object, owner: type | None) -> None:
        code = code_of(function)
        if code is not None:
            self.codes.setdefault(code, []).append((label, owner))

    def __call__(self, frame: types.FrameType, event: str, argument: object) -> None:
        if event != "call" or frame.f_code not in self.codes:
            return
        code = frame.f_code
        count = code.co_argcount + code.co_kwonlyargcount
        names = [*code.co_varnames[: count + bool(code.co_flags & 4) + bool(code.co_flags & 8)]]
        values = {name: frame.f_locals[name] for name in names if name in frame.f_locals}
        for label, owner in self.codes[code]:
            if label in self.calls:
                continue
            if owner is not None:
                bound = values.get(names[0]) if names else None
                made = bound if inspect.isclass(bound) else type(bound)
                exact = made is owner if "." not in label else owner in getattr(made, "__mro__", ())
                static = isinstance(inspect.getattr_static(owner, label.split(".")[-1], None), staticmethod)
                if not exact and not static:
                    continue
            self.calls[label] = values


def record(names: dict[str, object]) -> dict[str, dict[str, object]]:
    """Run the examples of every name and of its methods; return the calls that were seen."""
    recorder = Recorder(names)
    finder = doctest.DocTestFinder(recurse=False, exclude_empty=True)
    sources = list(names.items())
    for name, value in names.items():
        if inspect.isclass(value):
            sources += [(f"{name}.{method}", getattr(value, method)) for method in methods(value)]
    for name, value in sources:
        module = sys.modules[inspect.unwrap(value).__module__]
        for test in finder.find(value, name, module=module):
            if not test.examples:
                continue
            runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
            sys.setprofile(recorder)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    runner.run(test, out=lambda text: None, clear_globs=False)
            finally:
                sys.setprofile(None)
    return recorder.calls


# ---- wrong values


def bank() -> dict[str, object]:
    """Values of many types; what a parameter's annotation admits is left out for it."""
    import numpy as np
    import torch

    return {
        "text": "text", "bytes": b"x", "three": 3, "half": 2.5, "true": True, "none": None, "complex": 1 + 2j,
        "object": object(), "list": [], "dict": {}, "dict of texts": {"a": "b"}, "set": {1}, "tuple": (),
        "list of none": [None], "list of texts": ["a", "b"], "list of objects": [object()],
        "ragged": [[1.0], [1.0, 2.0]], "lambda": len, "class": int, "module": types, "slice": slice(None, 2),
        "generator": (i for i in range(2)), "text array": np.array(["a"]), "object array": np.array([None]),
        "array": np.zeros((1, 1, 1, 1, 1, 1)), "complex array": np.ones(3, complex), "nan": float("nan"),
        "inf": float("inf"), "tensor": torch.zeros(1, 1, 1, 1, 1, 1), "text path": Path("no") / "such",
        "bool tensor": torch.zeros(2, dtype=torch.bool), "device": torch.device("cpu"),
        "complex tensor": torch.zeros(2, dtype=torch.complex64), "linear": torch.nn.Linear(2, 2),
        "dtype": torch.float32,
    }  # fmt: skip


ARRAYS = ("list", "tuple", "array", "tensor", "three", "half", "nan", "inf", "true", "bool tensor")
SEQUENCES = ("list", "tuple", "array", "tensor")


def admitted(hint: object, values: dict[str, object]) -> set[str]:
    """Keys of the bank that an annotation admits, or that a parameter of its kind may well take."""
    import torch

    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (typing.Any, object, inspect.Parameter.empty) or isinstance(hint, typing.TypeVar | str):
        return set(values)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(admitted(one, values) for one in inner))
    if origin is typing.Annotated:
        return admitted(inner[0], values)
    if origin is typing.Literal:
        return {key for key, value in values.items() if type(value) in {type(one) for one in inner}}
    base = origin or hint
    if base in (None, type(None)):
        return {"none"}
    if base is float:
        return {"three", "half", "nan", "inf"}
    if base is int:
        return {"three"}
    if base is bool:
        return {"true"}
    if base is str:
        return {"text"}
    if "ArrayLike" in repr(hint) or base is torch.Tensor or getattr(base, "__name__", "") == "ndarray":
        return set(ARRAYS)
    if base is collections.abc.Callable:
        return {"lambda", "class", "linear"}
    if base is type:
        return {"class"}
    if not inspect.isclass(base):
        return set(values)
    if issubclass(base, os.PathLike):
        return {"text", "text path"}
    if issubclass(base, collections.abc.Mapping):
        return {"dict"}
    if issubclass(base, collections.abc.Iterable) and base.__module__ in ("collections.abc", "builtins"):
        texts = {"list of texts", "text"} if inner and str in inner else set()
        loose = {"generator", "set", "dict"} if not issubclass(base, collections.abc.Sequence) else set()
        return {*SEQUENCES, "range", *texts, *loose}
    if getattr(base, "_is_protocol", False):
        wanted = {name for name in dir(base) if not name.startswith("_")} or {"__call__"}
        return {key for key, value in values.items() if all(hasattr(value, name) for name in wanted)}
    return {key for key, value in values.items() if isinstance(value, base)}


def hints_of(function: object) -> dict[str, object]:
    """Annotations by parameter; names that only type checkers import are looked up, or stay text."""
    import numpy.typing
    import torch

    bare = inspect.unwrap(function)
    space = {**vars(collections.abc), **vars(typing), "Path": Path, "Tensor": torch.Tensor, "torch": torch}
    space |= {"nn": torch.nn, "NDArray": numpy.typing.NDArray, "ArrayLike": numpy.typing.ArrayLike}
    space |= getattr(bare, "__globals__", {})
    found = {}
    for name, hint in getattr(bare, "__annotations__", {}).items():
        try:
            found[name] = eval(hint, space) if isinstance(hint, str) else hint
            if isinstance(found[name], str):
                found[name] = eval(found[name], space)
        except (NameError, TypeError, AttributeError):
            found[name] = hint
    return found


# ---- one call


def on_alarm(number: int, frame: object) -> None:
    raise Hang


def outcome(call: object, name: str) -> tuple[str, str]:
    """How a call ends: named, unnamed, deep (unnamed, raised in another package), hang or accepted."""
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            call()
    except Hang:
        return "hang", f"more than {SECONDS} s"
    except BaseException as error:  # noqa: BLE001
        signal.alarm(0)
        text = f"{type(error).__name__}: {error}"
        legal = isinstance(error, ValueError | TypeError | IndexError | KeyError | OSError | ImportError)
        if legal and re.search(rf"\b{re.escape(name)}\b", str(error)):
            return "named", text
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        last = trace.tb_frame.f_code.co_filename if trace is not None else ""
        return "deep" if f"{os.sep}deepSTRF{os.sep}" not in last else "unnamed", text
    finally:
        signal.alarm(0)
    return "accepted", ""


def fresh(arguments: dict[str, object]) -> dict[str, object]:
    """Copies of arguments, where they can be copied."""
    made = {}
    for name, value in arguments.items():
        try:
            made[name] = copy.deepcopy(value)
        except Exception:  # noqa: BLE001
            made[name] = value
    return made


def caller(target: object, signature: inspect.Signature, arguments: dict[str, object]) -> object:
    """The call, positional where a signature asks for it."""
    positional, keywords = [], {}
    for name, parameter in signature.parameters.items():
        if name not in arguments:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += arguments[name]
        elif parameter.kind is parameter.VAR_KEYWORD:
            keywords |= arguments[name]
        elif parameter.kind is parameter.POSITIONAL_ONLY or (
            any(one.kind is one.VAR_POSITIONAL for one in signature.parameters.values())
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            positional.append(arguments[name])
        else:
            keywords[name] = arguments[name]
    return lambda: target(*positional, **keywords)


def misuse(label: str, value: object, recorded: dict[str, object], values: dict[str, object]) -> list[dict]:
    """Every wrong value for every parameter of one target."""
    rows = []
    _, _, method = label.partition(".")
    receiver = None
    # the default of a field that is made anew for each instance cannot be passed
    unset = [name for name, one in recorded.items() if type(one).__name__ == "_HAS_DEFAULT_FACTORY_CLASS"]
    recorded = {name: one for name, one in recorded.items() if name not in unset}
    arguments = dict(recorded)
    function = value
    if inspect.isclass(value):
        receiver = arguments.pop(next(iter(arguments)))
        raw = inspect.getattr_static(value, method or "__init__")
        function = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        if isinstance(raw, staticmethod):
            arguments = dict(recorded)
    signature = inspect.signature(inspect.unwrap(function))
    hints = hints_of(function)
    pristine = fresh({"": receiver, **arguments})
    for name, parameter in signature.parameters.items():
        if name not in (*arguments, *unset) or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        legal = admitted(hints.get(name, parameter.annotation), values)
        for key, wrong in values.items():
            if key in legal and key not in ("nan", "inf"):
                continue
            if parameter.default is wrong:
                continue
            now = fresh(pristine)
            bound = now.pop("")
            target = (value if not method else getattr(bound, method)) if inspect.isclass(value) else value
            ended, text = outcome(caller(target, signature, {**now, name: wrong}), name)
            rows.append(
                {"call": label, "parameter": name, "value": key, "ended": ended, "text": text[:300],
                 "legal": key in legal}
            )  # fmt: skip
    return rows


def misuse_room(room: str, folder: str, quick: bool) -> None:
    """One room in this process, which works in a folder: rows as JSON lines."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGALRM, on_alarm)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network here")

    socket.socket.connect = refuse
    with os.fdopen(out, "w") as stream:
        os.chdir(folder)
        tempfile.TemporaryDirectory = KeptDirectory
        names = exported(ROOMS[room])
        calls = record(names)
        for label, recorded in calls.items():
            value = names[label.partition(".")[0]]
            values = {key: one for key, one in bank().items() if not quick or key in QUICK}
            for row in misuse(label, value, recorded, values):
                stream.write(json.dumps(row, default=repr) + "\n")
            stream.flush()
        missing = [name for name in names if name not in calls]
        stream.write(json.dumps({"missing": missing, "targets": len(calls)}) + "\n")


# ---- all rooms


def run(rooms: list[str], jobs: int, folder: Path, quick: bool = False) -> dict[str, tuple[list[dict], dict]]:
    """Rows of each room, each in its own process."""
    with ThreadPoolExecutor(jobs) as pool:
        return dict(
            zip(rooms, pool.map(lambda room: run_room(room, folder / room, quick), rooms), strict=True)
        )


def run_room(room: str, folder: Path, quick: bool) -> tuple[list[dict], dict]:
    """Rows of one room, and the names that no example calls."""
    folder.mkdir()
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "MISUSE_FOLDER": str(folder)}
    command = [sys.executable, __file__, "--inside", room, *["--quick"] * quick]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, env=environment, text=True, timeout=ROOM_SECONDS
        )
        lines = done.stdout
    except subprocess.TimeoutExpired as late:
        lines = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
    rows = [json.loads(line) for line in lines.splitlines() if line.endswith("}")]
    end = rows.pop() if rows and "missing" in rows[-1] else {"missing": ["(stopped)"], "targets": 0}
    return rows, end


def report(found: dict[str, tuple[list[dict], dict]], verbose: bool) -> bool:
    """Print the table and the worst; True when a room is over the limit."""
    print("| room | calls of | tried | named | unnamed | of these deep | hang | accepted |\n|" + "---|" * 8)
    over = False
    for room, (rows, end) in found.items():
        count = Counter(row["ended"] for row in rows)
        total = max(1, len(rows))
        bad = count["unnamed"] + count["deep"] + count["hang"]
        accepted = sum(row["ended"] == "accepted" and not row["legal"] for row in rows)
        over |= not rows or bad / total >= LIMIT or "(stopped)" in end["missing"]
        print(
            f"| {room} | {end['targets']} | {len(rows)} | {count['named']} | {bad - count['hang']} "
            f"({bad / total:.1%}) | {count['deep']} | {count['hang']} | {accepted} ({accepted / total:.1%}) |"
        )
    for room, (rows, end) in found.items():
        if end["missing"]:
            print(f"\n{room}: no example calls {', '.join(end['missing'])}")
        bad_rows = [row for row in rows if row["ended"] in ("unnamed", "deep", "hang")]
        worst = Counter((row["call"], row["parameter"]) for row in bad_rows).most_common(
            None if verbose else 8
        )
        if worst:
            print(f"\n{room}, worst:")
        for (call, parameter), n in worst:
            rest = [row for row in bad_rows if (row["call"], row["parameter"]) == (call, parameter)]
            print(f"  {n:3d} {call}({parameter}=)")
            for row in rest if verbose else rest[:1]:
                print(f"        {row['value']}: {row['text'][:180]!r}")
        if verbose:
            print(f"\n{room}, accepted:")
            silent = [row for row in rows if row["ended"] == "accepted" and not row["legal"]]
            for call, parameter in dict.fromkeys((row["call"], row["parameter"]) for row in silent):
                kinds = [
                    row["value"] for row in silent if (row["call"], row["parameter"]) == (call, parameter)
                ]
                print(f"      {call}({parameter}=): {', '.join(kinds)}")
    return over


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help="default: all")
    parser.add_argument("--quick", action="store_true", help="fewer values, one of each kind")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--verbose", action="store_true", help="list every bad call")
    parser.add_argument("--inside", metavar="ROOM", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        misuse_room(options.inside, os.environ["MISUSE_FOLDER"], options.quick)
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return report(
            run(options.rooms or list(ROOMS), options.jobs, Path(folder), options.quick), options.verbose
        )


if __name__ == "__main__":
    sys.exit(main())
