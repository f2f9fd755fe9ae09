"""How the site is built: ``python -m sphinx docs build/site``."""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

import metagrad

project = "metagrad"
copyright = "the metagrad authors, Apache-2.0"
release = version = metagrad.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["*.py"]

html_theme = "furo"
html_title = f"metagrad {release}"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "auto"  # notebooks are kept without their outputs
nb_execution_timeout = 300
nb_merge_streams = True
nb_execution_raise_on_error = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them; the texts give shapes and units
autoclass_content = "class"
napoleon_google_docstring = False
napoleon_use_rtype = False
# Docstrings are written for readers of the source too: attributes are described once, in their class.
suppress_warnings = ["ref.python"]


def _inline(self, node):
    self.body.append(convert(node.astext()))
    raise SkipNode


def _block(self, node):
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app):
    """Write equations as MathML, which browsers draw by themselves: no script, nothing fetched."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
