"""Rules of src/deepSTRF, checked from the syntax tree: `python tools/rules.py [PATH ...]`.

Each rule is one function that yields (file, line, message). The test suite runs them all; a developer can run
them on one file. Rules: file and function length, forbidden statements, docstring completeness, one-letter
constructor arguments, one-way imports between folders, and no heavy package imported at import time.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "deepSTRF"

MAX_FILE_LINES = 1000
MAX_FUNCTION_LINES = 80
LETTERS_OF_THE_FIELD = set("BNRTF")

#: Which folders a folder may import. Leaves are open to everybody.
LEAVES = {
    "registry", "protocols", "_optional", "_files", "_text", "_validation", "_moved", "__version__",
}  # fmt: skip
CORE = {"dsp", "models", "metrics", "datasets"}
ARROWS: dict[str, set[str]] = {
    "dsp": set(),
    "models": {"dsp"},
    "metrics": {"dsp"},
    "datasets": {"dsp"},
    "plots": set(),
    "training": CORE,
    "baselines": CORE | {"training"},
    "crossval": CORE | {"training", "baselines"},
    "experiments": CORE | {"training", "baselines", "crossval"},
    "interpret": CORE | {"training", "baselines", "crossval", "plots"},
    "streaming": CORE | {"training", "baselines", "crossval"},
    "report": CORE | {"training", "baselines", "crossval", "experiments", "plots", "interpret", "streaming"},
    "cli": CORE
    | {"training", "baselines", "crossval", "experiments", "plots", "interpret", "streaming", "report"},
    "utils": CORE | {"plots", "training", "interpret"},
}
#: Packages that a module may import only inside the function that uses them.
HEAVY = {
    "matplotlib", "jinja2", "typer", "rich", "soundfile", "soxr", "pooch", "joblib", "safetensors",
    "huggingface_hub", "tensorboard", "wandb", "pynwb", "optuna", "lightning_fabric", "dask", "onnx",
}  # fmt: skip
#: Rooms whose whole purpose is such a package may import it at the top: they are themselves imported late.
HEAVY_AT_HOME = {"cli": {"typer", "rich"}}

Finding = tuple[Path, int, str]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(tree: ast.AST) -> Iterator[FunctionNode]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def check_lengths(path: Path, tree: ast.Module, text: str) -> Iterator[Finding]:
    """No file over 1,000 lines, no function over 80 (its docstring not counted)."""
    lines = text.count("\n") + 1
    if lines > MAX_FILE_LINES:
        yield path, lines, f"file has {lines} lines, the limit is {MAX_FILE_LINES}"
    for node in _functions(tree):
        doc = ast.get_docstring(node, clean=False)
        length = (node.end_lineno or node.lineno) - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
        if length > MAX_FUNCTION_LINES:
            yield path, node.lineno, f"{node.name} has {length} lines, the limit is {MAX_FUNCTION_LINES}"


def check_forbidden(path: Path, tree: ast.Module, text: str) -> Iterator[Finding]:
    """No assert, no print, no bare except: errors are exceptions, output is returned or logged."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield path, node.lineno, "assert (raise ValueError or TypeError: asserts vanish under python -O)"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield path, node.lineno, "bare except"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield path, node.lineno, "print"


def _public(node: FunctionNode | ast.ClassDef) -> bool:
    return not node.name.startswith("_")


def _needs_parameters(node: FunctionNode) -> bool:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return bool([n for n in names if n not in ("self", "cls")])


def _returns_something(node: FunctionNode) -> bool:
    annotation = node.returns
    return annotation is not None and not (isinstance(annotation, ast.Constant) and annotation.value is None)


def _missing_sections(node: FunctionNode | ast.ClassDef) -> list[str]:
    doc = ast.get_docstring(node) or ""
    wanted = ["Examples"]
    if isinstance(node, ast.ClassDef):
        init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
        if init is not None and _needs_parameters(init):
            wanted.append("Parameters")
    else:
        if _needs_parameters(node):
            wanted.append("Parameters")
        if _returns_something(node):
            wanted.append("Returns")
    underlined = {
        a.strip()
        for a, b in zip(doc.splitlines(), doc.splitlines()[1:], strict=False)
        if set(b.strip()) == {"-"}
    }
    if isinstance(node, ast.ClassDef) and "Attributes" in underlined:
        wanted = [w for w in wanted if w != "Parameters"]  # a dataclass documents its fields
    if "Yields" in underlined:
        wanted = [w for w in wanted if w != "Returns"]
    return [w for w in wanted if w not in underlined]


def _exported(path: Path) -> set[str]:
    """Names that the face of any folder above the file exports."""
    names: set[str] = set()
    for folder in path.parents:
        face = folder / "__init__.py"
        if not face.is_file():
            break
        for node in ast.parse(face.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names |= set(ast.literal_eval(node.value))
    return names


def check_docstrings(path: Path, tree: ast.Module, text: str) -> Iterator[Finding]:
    """Everything has a docstring; what a folder's face exports has its numpydoc sections."""
    if ast.get_docstring(tree) is None and text.strip():
        yield path, 1, "module without a docstring"
    exported = _exported(path)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or not _public(node):
            continue
        if ast.get_docstring(node) is None:
            yield path, node.lineno, f"{node.name} has no docstring"
            continue
        if node.name not in exported:
            continue
        private_base = isinstance(node, ast.ClassDef) and any(
            isinstance(b, ast.Name) and (b.id == "Protocol" or b.id.endswith(("Error", "Warning")))
            for b in node.bases
        )
        if not private_base:
            for section in _missing_sections(node):
                yield path, node.lineno, f"{node.name}: docstring has no {section} section"
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if (
                    isinstance(member, ast.FunctionDef)
                    and _public(member)
                    and ast.get_docstring(member) is None
                ):
                    decorators = {d.attr for d in member.decorator_list if isinstance(d, ast.Attribute)}
                    if not decorators & {"setter", "overload"}:
                        yield path, member.lineno, f"{node.name}.{member.name} has no docstring"


def check_argument_names(path: Path, tree: ast.Module, text: str) -> Iterator[Finding]:
    """Constructor arguments are full words; single letters only for B, N, R, T, F."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and _public(node):
            for init in node.body:
                if isinstance(init, ast.FunctionDef) and init.name == "__init__":
                    for argument in (*init.args.args, *init.args.kwonlyargs):
                        if len(argument.arg) == 1 and argument.arg not in LETTERS_OF_THE_FIELD:
                            yield (
                                path,
                                init.lineno,
                                f"{node.name}: constructor argument {argument.arg!r} is no word",
                            )


def _imported_modules(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            base = package[: len(package) - node.level + 1]
            return [".".join([*base, *((node.module or "").split(".") if node.module else [])])]
        if node.module == "deepSTRF":
            return [f"deepSTRF.{alias.name}" for alias in node.names]
        return [node.module or ""]
    return []


def check_arrows(path: Path, tree: ast.Module, text: str) -> Iterator[Finding]:
    """Imports between folders point one way, also inside functions."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    folder = parts[0] if len(parts) > 1 else ""
    if folder not in ARROWS:
        if parts[0] in LEAVES:
            for node in ast.walk(tree):
                for module in _imported_modules(node, ["deepSTRF", *parts[:-1]]):
                    if (
                        module.startswith("deepSTRF")
                        and module.split(".")[1:2]
                        and module.split(".")[1] not in LEAVES
                    ):
                        yield path, getattr(node, "lineno", 0), f"the leaf {parts[0]} imports {module}"
        elif folder and folder != "__init__":
            yield path, 1, f"unknown folder {folder!r}: add it to ARROWS in tools/rules.py"
        return
    allowed = ARROWS[folder] | LEAVES | {folder}
    for node in ast.walk(tree):
        for module in _imported_modules(node, ["deepSTRF", *parts[:-1]]):
            pieces = module.split(".")
            if pieces[0] == "deepSTRF" and len(pieces) > 1 and pieces[1] not in allowed:
                yield path, getattr(node, "lineno", 0), f"the folder {folder} must not import {module}"


def check_light_imports(path: Path, tree: ast.Module, text: str) -> Iterator[Finding]:
    """Heavy packages are imported where they are used, never when a module is imported."""
    parts = path.relative_to(SOURCE).parts
    at_home = HEAVY_AT_HOME.get(parts[0], set()) if len(parts) > 1 else set()
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                pending += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            pending += node.body
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for module in _imported_modules(node, []):
                top = module.split(".")[0]
                if top in HEAVY and top not in at_home:
                    yield (
                        path,
                        node.lineno,
                        f"{top} is imported at import time; import it inside the function",
                    )


RULES = [
    check_lengths,
    check_forbidden,
    check_docstrings,
    check_argument_names,
    check_arrows,
    check_light_imports,
]


def findings(paths: list[Path]) -> list[Finding]:
    """All findings in the given files or folders."""
    files = sorted({f for p in paths for f in (p.rglob("*.py") if p.is_dir() else [p])})
    found: list[Finding] = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(path))
        for rule in RULES:
            found.extend(rule(path, tree, text))
    return found


def main(arguments: list[str]) -> int:
    """Print every finding; exit status 1 when there is one."""
    paths = [Path(a).resolve() for a in arguments] or [SOURCE]
    found = findings(paths)
    for path, line, message in found:
        print(f"{path.relative_to(ROOT)}:{line}: {message}")
    print(f"rules: {len(found)} finding(s)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
