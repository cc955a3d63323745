"""Where enhanced multi-frame objects keep what classic ones say once: functional groups, shared and per frame."""

from __future__ import annotations

from typing import Any

from pydicom import Dataset


def find(header: Dataset, index: int | None, keyword: str, *groups: str) -> Any:
    """The value of an element for a frame: from its own functional group, the shared one, or the file itself; None where it is nowhere.

    Args:
        header: the file.
        index: the frame; None in files of one image.
        keyword: of the element.
        groups: keywords of the functional groups that may hold it.
    """
    if index is not None:
        for holder in _holders(header, index):
            for group in groups:
                items = holder.get(group)
                if items:
                    value = items[0].get(keyword)
                    if value is not None and value != "":
                        return value
    value = header.get(keyword)
    return None if value == "" else value


def _holders(header: Dataset, index: int) -> list[Dataset]:
    holders = []
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if frames and index < len(frames):
        holders.append(frames[index])
    shared = header.get("SharedFunctionalGroupsSequence")
    if shared:
        holders.append(shared[0])
    return holders
