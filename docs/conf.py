"""Builds the documentation: `sphinx-build -W --keep-going -b html docs OUT`."""

import inspect

from docutils import nodes
from math_core import LatexToMathML
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

import optax_heavytail

project = "optax_heavytail"
version = release = optax_heavytail.__version__
html_title = f"{project} {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "substitution"]
myst_heading_anchors = 3


def _all_transforms() -> str:
    """A table of every transform, in the words of its docstring."""
    rows = ["| transform | what it does |", "|---|---|"]
    for name in optax_heavytail.__all__:
        function = getattr(optax_heavytail, name)
        if not inspect.isfunction(function):
            continue
        if "GradientTransformation" in str(inspect.signature(function)):
            summary = (inspect.getdoc(function) or "").split("\n\n")[0]
            link = f"{{py:func}}`{name} <optax_heavytail.{name}>`"
            rows.append(f"| {link} | {' '.join(summary.split())} |")
    return "\n".join(rows)


myst_substitutions = {"all_transforms": _all_transforms()}

# Single backticks in docstrings name something of ours, or the build fails.
default_role = "py:obj"
nitpicky = True
# Of other projects' documentation nothing is fetched.
nitpick_ignore = [("py:class", "numpy.ndarray")]
# The docstrings say what each argument is; the spelled-out unions hide them.
autodoc_preserve_defaults = True
autodoc_typehints = "none"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_show_copyright = False
html_copy_source = False
html_math_renderer = "mathml"

# MathML: browsers draw it by themselves, so pages work offline and without JavaScript.
_converter = LatexToMathML(fancy_error=False)


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))


def _visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def _visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    latex = node.astext()
    if r"\\" in latex and r"\begin{" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    self.body.append(_mathml(latex, displaystyle=True) + "</div>\n")
    raise nodes.SkipNode


def _mathml(latex: str, *, displaystyle: bool) -> str:
    return _converter.convert_with_local_state(latex, displaystyle=displaystyle)
