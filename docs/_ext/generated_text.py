"""Puts text that is generated from the code and from the recorded data into the pages that ask for it.

A line `<!-- generated: NAME -->` of a page is replaced by what the function NAME of `TEXTS` returns, while
the page is read. So the pages never disagree with the catalog, the table of features or the trials. A page
of the gallery ends with what its script printed when scripts/record_examples.py ran it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from feature_pages import feature_tables, formula_modules  # noqa: E402
from optimizer_pages import catalog_sections, wins_summary  # noqa: E402

SECTIONS = ("index", "guides", "how-selection-works", "make-it-yours")
"""The pages that list other pages."""


def other_guides() -> str:
    """A list and a toctree of the pages that no section lists yet, so that a new page is never lost."""
    docs = ROOT / "docs"
    listed = "\n".join((docs / f"{name}.md").read_text(encoding="utf-8") for name in SECTIONS)
    lines, names = [], []
    for path in sorted(docs.glob("*.md")):
        if path.stem not in SECTIONS and not re.search(rf"^{re.escape(path.stem)}$", listed, re.MULTILINE):
            title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            lines.append(f"- [{title}]({path.name})")
            names.append(path.stem)
    toctree = ["", "```{toctree}", ":hidden:", "", *names, "```"] if names else []
    return "\n".join([*lines, *toctree])


MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
TEXTS = {
    "catalog_sections": lambda: catalog_sections(ROOT / "meta_data"),
    "feature_tables": lambda: feature_tables(ROOT / "meta_data"),
    "formula_modules": formula_modules,
    "other_guides": other_guides,
    "wins_summary": lambda: wins_summary(ROOT / "meta_data"),
}
"""Name of a mark -> the function that writes its Markdown."""


_FOOT = re.compile(r"^\.\. _sphx_glr_download_gallery_(\w+)\.py:$", re.MULTILINE)
_PRINTED = """What it printed
---------------

.. literalinclude:: /example-output/{name}.txt
   :language: none

"""


def fill(app: Any, name: str, source: list[str]) -> None:
    """Nothing; replaces the marks of a page in place, and shows a script's output above its downloads.

    Raises:
        KeyError: If a page asks for a text that is not in `TEXTS`.
    """
    source[0] = MARK.sub(lambda mark: TEXTS[mark[1]](), source[0])
    foot = _FOOT.search(source[0])
    if foot and (ROOT / "docs" / "example-output" / f"{foot[1]}.txt").exists():
        source[0] = source[0][: foot.start()] + _PRINTED.format(name=foot[1]) + source[0][foot.start() :]


def note_sources(app: Any, env: Any, docnames: list[str]) -> None:
    """Nothing; has the generated pages read again at each build, as what they show lies elsewhere."""
    docnames[:] = list(
        dict.fromkeys(
            [
                *docnames,
                *(n for n in env.found_docs if MARK.search(Path(env.doc2path(n)).read_text(encoding="utf-8"))),
            ]
        )
    )


def setup(app: Any) -> dict[str, Any]:
    """What Sphinx wants to know of an extension."""
    app.connect("source-read", fill)
    app.connect("env-before-read-docs", note_sources)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
