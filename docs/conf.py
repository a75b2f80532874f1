"""Sphinx configuration of the documentation site: `make docs` builds it into docs/_build/html."""

import re
import sys
from pathlib import Path

import autoopt

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT / "scripts")]

from record_examples import has_title  # noqa: E402 - found by the line above

project = "autoopt"
author = "The autoopt developers"
copyright = "The autoopt developers, Apache-2.0"  # noqa: A001 - Sphinx reads this name
version = release = autoopt.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "generated_text",
]
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py", "gallery/*.json", "example-output"]
highlight_language = "none"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings write code in single backticks.
default_role = "code"
napoleon_use_ivar = True
napoleon_numpy_docstring = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_display_short_literal_types = True


_without_title = [path.name for path in sorted((ROOT / "examples").glob("*.py")) if not has_title(path)]

# The examples train: none of them runs while the site is built. What they print is committed in
# docs/example-output by scripts/record_examples.py.
sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "examples")],
    "gallery_dirs": ["gallery"],
    "plot_gallery": False,
    "notebook_extensions": set(),
    "ignore_pattern": "|".join(re.escape(name) for name in ("__init__.py", *_without_title)),
    "download_all_examples": False,
    "remove_config_comments": True,
    "image_scrapers": (),
    "reset_modules": (),
    "show_memory": False,
    "show_signature": False,
    "within_subsection_order": "FileNameSortKey",
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "autoopt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}
# Pages without pages below them need no sidebar of a section.
html_sidebars = {name: [] for name in ("index", "getting-started", "api", "genindex", "search")}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": True,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
}
