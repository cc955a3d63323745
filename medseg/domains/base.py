"""Where data lives: the contract of a domain. The engine sees only this class.

The inverse law holds for every domain: what `prepare` does to a label map, `restore` undoes on the native grid, to the voxel where no
resampling took place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from medseg import registry
from medseg.case import Batch, Case, PreparedCase, Window
from medseg.dataset import Labels
from medseg.device import Machine
from medseg.errors import PlanError
from medseg.fingerprint import CaseStats, Fingerprint
from medseg.geometry import Grid, Shape, Step
from medseg.models.base import Head
from medseg.plans import Plan, SpaceSection
from medseg.prediction import FoundObjects, Stitched
from medseg.scratch import IN_MEMORY, Scratch

if TYPE_CHECKING:  # worker processes measure and prepare cases without torch, which takes seconds to import
    from torch import Generator, Tensor

Run = Callable[[Batch], "Mapping[str, Tensor]"]
"""Windows `(N, C, *window)`, with their priors, to outputs per head: `(N, channels, *window)`, or `(N, views, slots, channels)` of an
`ObjectHead`, with as many slots as are filled in the fullest view of a window."""


@dataclass(frozen=True)
class Draft:
    """A configuration that a domain proposes: everything but network, batch and memory.

    Attributes:
        name: name of the configuration, for example `3d`.
        space: the domain's section of the plan.
        windows: candidate windows, largest first; the planner takes the first that fits the machine.
        spacing: mm of a window voxel along each window axis.
        axes: the canonical axis of a case that each window axis is.
        shape: median shape of the prepared cases along each window axis.
        samples: median number of windows' worth of data: prepared voxels of all cases together.
        mirror: window axes along which mirroring leaves every class what it is.
        overlap: overlap of neighbouring windows in inference.
        reasons: dotted plan field -> reason, for every field of `space`, for `window`, `inference.overlap` and `inference.mirror`.
        because: why this configuration is offered at all.
        preference: the draft with the highest value is recommended, if it fits.
        previous: name of the draft whose prediction is a further input of the network, or empty.
    """

    name: str
    space: SpaceSection
    windows: tuple[Shape, ...]
    spacing: tuple[float, ...]
    axes: tuple[int, ...]
    shape: Shape
    samples: int
    mirror: tuple[int, ...]
    overlap: float
    reasons: dict[str, str]
    because: str
    preference: float
    previous: str = ""


class Domain(ABC):
    """A domain, registered in `medseg.domains`."""

    Settings: ClassVar[type[SpaceSection]]
    configurations: ClassVar[Mapping[str, int]]
    """Names of all drafts that it may make, at least one, with the number of axes of their windows; which of them depends on the data.
    `find_domain` checks that they are there."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    # Before there is a plan.

    @staticmethod
    @abstractmethod
    def measure(case: Case, labels: Labels, digest: str) -> CaseStats:
        """One case's share of the fingerprint."""

    @staticmethod
    @abstractmethod
    def drafts(fingerprint: Fingerprint, machine: Machine) -> tuple[Draft, ...]:
        """The configurations this dataset asks for."""

    @staticmethod
    @abstractmethod
    def like(draft: Draft, fingerprint: Fingerprint, machine: Machine, model: Plan, because: str) -> Draft:
        """A draft with everything that a trained model's weights depend on as in its plan, of which the data have as many dimensions and
        the window as many axes; `because` is the reason for all of it. `windows` is the model's alone."""

    @staticmethod
    @abstractmethod
    def check(plan: Plan) -> str:
        """What is impossible in a plan of this domain; empty when nothing is."""

    # With a plan.

    @abstractmethod
    def prepare(self, case: Case, scratch: Scratch = IN_MEMORY) -> Case:
        """Bring a case to the grid and the intensities a network sees; each step goes on the trail. Works without a label.

        Where a dataset is prepared, the plan's `network` and `target` say their kind only.

        Large arrays come from `scratch`; with a bounded one memory does not grow with the image (which may itself lie in a file).
        """

    def prepares_like(self, other: Domain, grid: Grid) -> bool:
        """Whether a case on this native grid comes out of `prepare` exactly as it does of `other`'s, a domain of the same kind with another plan
        of the same data; then it is prepared once for both."""
        return False

    @abstractmethod
    def locations(self, label: NDArray[Any]) -> tuple[NDArray[np.int32], ...]:
        """Where windows of a prepared label map may be centred: at most a few thousand voxel indices `(n, d)` per entry, chosen by a fixed rule.

        One entry for each foreground class, in order, in which every one of its separate objects is represented (as long as there is room),
        then, where labels have an ignore value, one for annotated voxels.
        """

    @abstractmethod
    def sample(self, case: PreparedCase, rng: np.random.Generator, focus: int | None) -> Window:
        """One training window; `focus` is the entry of `locations` to centre on.

        `source` is the plan's window plus whatever margin `augment` needs around it, the same for every call.
        Reads no more of the (memory-mapped) case than the window. Where the case is smaller than the window the image is padded with
        zeros, label and prior with 0 (background).
        """

    @abstractmethod
    def augment(self, batch: Batch, generator: Generator) -> Batch:
        """Random spatial and intensity changes, batched, on the batch's device; parameters drawn from `generator` (a CPU generator).

        Takes windows as `sample` gives them and returns windows of exactly the plan's size.
        """

    @abstractmethod
    def extent(self, grid: Grid) -> Shape:
        """Spatial shape of a prepared case that lies on this native grid; where cases are cropped it may be less."""

    @abstractmethod
    def footprint(self, shape: Shape, head: Head) -> int:
        """Bytes of what `stitch` sums up for one head over a prepared case of this spatial shape."""

    @abstractmethod
    def windows(self, shape: Shape) -> int:
        """How many windows `stitch` runs over a prepared case of this spatial shape."""

    @abstractmethod
    def stitch(self, case: PreparedCase, run: Run, heads: tuple[Head, ...], batch_size: int, memory: float) -> dict[str, Stitched]:
        """Run windows over a case and blend them, or merge the objects that they show, one for each; what takes more than `memory` bytes lives on
        disk. `run` gets windows on the CPU, float32."""

    @property
    @abstractmethod
    def blends_each_network(self) -> bool:
        """Whether each network of an ensemble is stitched on its own, then `mean` taken; otherwise the mean of their outputs is stitched, which
        is quicker and the same but for rounding."""

    @abstractmethod
    def mean(self, maps: Sequence[Mapping[str, Stitched]], memory: float) -> dict[str, Stitched]:
        """The mean of what `stitch` gave for several networks of one plan and case; new arrays of all heads may take `memory` bytes, and lie
        in temporary files beyond."""

    @abstractmethod
    def native(self, maps: Mapping[str, Stitched], trail: tuple[Step, ...], heads: tuple[Head, ...]) -> dict[str, Stitched]:
        """Maps and objects of these heads on the prepared grid to lazily resampled maps and to objects at native spacing (cropping and
        orientation stay for `restore`)."""

    @abstractmethod
    def restore(self, array: NDArray[Any], trail: tuple[Step, ...], fill: float = 0, scratch: Scratch = IN_MEMORY) -> NDArray[Any]:
        """An array `(..., *shape)` at native spacing to the native grid: orientation and cropping undone exactly, outside is `fill`."""

    @abstractmethod
    def restore_objects(self, found: FoundObjects, trail: tuple[Step, ...]) -> FoundObjects:
        """Objects at native spacing to the native grid, as `restore` brings arrays there."""


def find_domain(name: str) -> type[Domain]:
    """The domain registered as `name`.

    Raises:
        PlanError: nothing is registered under this name, or a domain that does not say which configurations it makes.
    """
    found = cast(type[Domain], registry.domains.get(name))
    names: object = getattr(found, "configurations", None)
    if not isinstance(names, Mapping) or not names or not all(isinstance(n, str) and n and isinstance(a, int) for n, a in names.items()):
        raise PlanError.of(
            "the domain does not say which configurations it makes",
            where=f"domain '{name}', {found.__module__}.{found.__qualname__}.configurations",
            found="nothing" if names is None else repr(names),
            expected="names with the axes of their windows, for example {'3d': 3, '2d': 2}",
            fix="Mend the package that provides the domain: set the class attribute to the names of all drafts that it may make.",
        )
    return found
