"""Datasets as they lie on disk: one layout per convention, detected."""

from medseg.io.layouts.base import Layout, LayoutOptions, open_dataset

__all__ = ["Layout", "LayoutOptions", "open_dataset"]
