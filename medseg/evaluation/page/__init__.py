"""The report as one self-contained HTML page: no script, style, font or picture from elsewhere."""

from medseg.evaluation.page.assemble import render_page

__all__ = ["render_page"]
