"""Instance segmentation: each object of a class by itself."""

from medseg.tasks.instance.task import Instance

__all__ = ["Instance"]
