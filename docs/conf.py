"""The documentation site: `make docs` builds docs/_build/html, offline and with warnings as errors.

Pages are Markdown that GitHub shows too: links to files outside docs/ are rewritten here. Those that begin
with a kernel (``file_format: mystnb``) are run, and can be downloaded as notebooks. The API reference is
written anew at each build, one page per exported name.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any
from weakref import WeakSet

import nbformat
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from matplotlib.figure import Figure
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx_gallery.scrapers import figure_rst

import deepSTRF

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
API = DOCS / "api"
REPOSITORY = "https://github.com/deepSTRF/deepSTRF"
#: Pages of the site whose text stands elsewhere in the repository.
INCLUDED = {
    "results": "benchmarks/RESULTS.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
}

project = "deepSTRF"
author = "The deepSTRF developers"
project_copyright = author
version = release = deepSTRF.__version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_nb",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery", "**.ipynb", "**sg_execution_times.rst"]
templates_path = ["_templates"]
default_role = "py:obj"  # `Fitter` in a docstring is a link
# sphinx-gallery's settings hold functions; a cell that is not run is read as Python, where "!" is none
suppress_warnings = ["config.cache", "misc.highlighting_failure"]

# -- Pages and notebooks -------------------------------------------------------------------------------------
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS / "_build" / ".jupyter_cache")
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the kernels and the gallery share the cores
os.environ.setdefault("PYTHONWARNINGS", "default")

# -- API reference -------------------------------------------------------------------------------------------
autosummary_generate = False  # `write_api` does
autodoc_typehints = "none"  # the docstrings name types, shapes and units
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
maximum_signature_line_length = 88
add_module_names = False

# -- Gallery -------------------------------------------------------------------------------------------------
SAVED: WeakSet[Figure] = WeakSet()


def save_figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the new figures of a block: those of `deepSTRF.plots` are unknown to pyplot."""
    files = []
    for value in block_vars["example_globals"].values():
        if isinstance(value, Figure) and value not in SAVED:
            SAVED.add(value)
            files.append(next(block_vars["image_path_iterator"]))
            value.savefig(files[-1], dpi=160, facecolor="white")
    return figure_rst(files, gallery_conf["src_dir"])


sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "image_scrapers": (save_figures,),
    "reset_modules": (),
    "capture_repr": (),
    "doc_module": ("deepSTRF",),
    "reference_url": {"deepSTRF": None},
    "first_notebook_cell": "%matplotlib inline",
    "min_reported_time": 1e9,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "abort_on_example_error": True,
    "thumbnail_size": (480, 336),
}

# -- Looks ---------------------------------------------------------------------------------------------------
html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathml"
html_title = "deepSTRF"
html_logo = "_static/logo.svg"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "deepSTRF"},
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "navbar_persistent": ["search-button"],
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "icon_links": [{"name": "Source", "url": REPOSITORY, "icon": "fa-brands fa-github"}],
    "article_header_end": ["notebook-download"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def faces() -> dict[str, list[str]]:
    """Module -> names it exports, each name at the first module that exports it; constants included."""
    seen: set[int] = set()
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "src" / "deepSTRF").rglob("__init__.py"), key=lambda path: str(path.parent)):
        module = ".".join(path.parent.relative_to(ROOT / "src").parts)
        face = importlib.import_module(module)
        for name in sorted(getattr(face, "__all__", ()), key=str.lower):
            value = getattr(face, name)
            if module != "deepSTRF" and not inspect.ismodule(value) and id(value) not in seen:
                seen.add(id(value))
                found.setdefault(module, []).append(name)
    return found


FACES = faces()
#: Exported name -> the module that it is described with.
HOMES = {name: module for module, names in reversed(FACES.items()) for name in names}


def summary(module: str) -> str:
    """First line of a module's docstring."""
    return (inspect.getdoc(importlib.import_module(module)) or "").split("\n", maxsplit=1)[0]


def heading(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def write_api(app: Sphinx) -> None:
    """Write docs/api/: a folder per part of the package, with a page per exported name."""
    wanted: dict[Path, str] = {}
    for module, names in FACES.items():
        face = importlib.import_module(module)
        parent, _, own = module.rpartition(".")
        taken = own in FACES.get(parent, ())  # `interpret.dstrf` is a function, too
        options = "   :no-members:\n" + "   :no-index:\n" * taken
        listed = "".join(f"   {name}\n" for name in names)
        wanted[API / module / "index.rst"] = (
            f"{heading(module)}.. automodule:: {module}\n{options}\n.. currentmodule:: {module}\n\n"
            f".. autosummary::\n\n{listed}\n.. toctree::\n   :hidden:\n\n{listed}"
        )
        for name in names:
            value = getattr(face, name)
            kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"
            options = "   :members:\n" if kind == "class" else ""
            wanted[API / module / f"{name}.rst"] = (
                f"{heading(name)}.. currentmodule:: {module}\n\n.. auto{kind}:: {name}\n{options}"
            )
    for path in API.rglob("*.rst"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # Sphinx reads again what changed
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def linked(text: str, folder: Path) -> str:
    """The text of a page from ``folder``, with its relative links as the site has them."""
    pages = {ROOT / file: f"{page}.md" for page, file in INCLUDED.items()}

    def target(found: re.Match[str]) -> str:
        path, anchor = found["path"], found["anchor"] or ""
        file = (folder / path).resolve()
        if not file.exists():  # no link, or one that Sphinx reports
            return found[0]
        if file in pages:
            return f"]({pages[file]}{anchor})"
        if file.is_relative_to(DOCS):
            return f"]({file.relative_to(DOCS).as_posix()}{anchor})"
        kind = "tree" if file.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{file.relative_to(ROOT).as_posix()}{anchor})"

    return re.sub(r"\]\((?!\w+:|#|/)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)", target, text)


def read_page(app: Sphinx, docname: str, content: list[str]) -> None:
    """Fill in pages that stand elsewhere, and links to files outside docs/."""
    if docname in INCLUDED:
        file = ROOT / INCLUDED[docname]
        content[0] = linked(file.read_text(encoding="utf-8"), file.parent)
        app.env.note_dependency(str(file))
    elif docname == "api":
        head = content[0].split("<!-- table: api -->")[0]
        rows = "\n".join(f"| [`{module}`](api/{module}/index.rst) | {summary(module)} |" for module in FACES)
        parts = "\n".join(f"{module} <api/{module}/index>" for module in FACES)
        content[0] = (
            f"{head}| part | what is in it |\n|---|---|\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{parts}\n```\n"
        )
    elif (DOCS / f"{docname}.md").is_file():
        content[0] = linked(content[0], DOCS)


def exported(text: str) -> str | None:
    """The exported name that a piece of code in a sentence means, if it means one."""
    called, dotted = text.endswith("()"), text.startswith("deepSTRF.")
    name = text.removesuffix("()").rpartition(".")[2] if dotted else text.removesuffix("()")
    plain = name.isalpha() and name.islower() and not (called or dotted)  # `pcen` may be a registered name
    return name if name in HOMES and not plain else None


def resolve_name(app: Sphinx, env: Any, node: pending_xref, contnode: nodes.Element) -> nodes.Element | None:
    """Link an exported name to its page wherever it is named."""
    name = exported(str(node.get("reftarget", "")))
    if name is None or node.get("refdomain") != "py":
        return None
    page = f"api/{HOMES[name]}/{name}"
    uri = app.builder.get_relative_uri(node.get("refdoc", env.docname), page)
    return nodes.reference("", "", contnode, internal=True, refuri=f"{uri}#{HOMES[name]}.{name}")


class NamesInPages(SphinxTransform):
    """Exported names in the text of Markdown pages become links to their reference."""

    default_priority = 500

    def apply(self) -> None:
        if not (DOCS / f"{self.env.docname}.md").is_file():
            return
        for literal in list(self.document.findall(nodes.literal)):
            name = exported(literal.astext())
            if name and not isinstance(literal.parent, nodes.reference | nodes.title):
                xref = pending_xref(
                    "", literal.deepcopy(), refdomain="py", reftype="obj", reftarget=f"{HOMES[name]}.{name}",
                    refdoc=self.env.docname,
                )  # fmt: skip
                literal.replace_self(xref)


def mathml(translator: Any, node: nodes.math) -> None:
    """A formula as MathML, which browsers show without a script from elsewhere."""
    text = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    translator.body.append(text)
    raise nodes.SkipNode


def offer_notebook(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Put the executed notebook of a page where its template offers it."""
    source = Path(app.outdir).parent / "jupyter_execute" / f"{pagename}.ipynb"
    if not (source.is_file() and (DOCS / f"{pagename}.md").is_file()):
        return
    found = nbformat.read(source, as_version=4)
    for cell in found.cells:
        if cell.cell_type == "markdown":  # a notebook stands alone: its links lead to the repository
            cell.source = re.sub(r"\]\((?=[\w-]+\.md)", f"]({REPOSITORY}/blob/main/docs/", cell.source)
    target = Path(app.outdir) / "_downloads" / source.name
    target.parent.mkdir(exist_ok=True)
    nbformat.write(found, target)
    context["notebook"] = f"_downloads/{source.name}"


def setup(app: Sphinx) -> None:
    """Join the functions above to the build."""
    app.connect("builder-inited", write_api, priority=100)
    app.connect("source-read", read_page)
    app.connect("missing-reference", resolve_name)
    app.connect("html-page-context", offer_notebook)
    app.add_transform(NamesInPages)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
