"""A training step that runs out of memory is taken in portions: with the memory of a few windows, and the gradient of the whole batch.

The loss of a batch need not be the mean of its windows' losses (Dice over all of them is not), so the gradients of smaller batches may not
simply be added up. Instead the network runs twice: at first without keeping what a backward pass needs, for the outputs of all windows, from
which the loss and its gradient are taken at once; then portion by portion, and that gradient is carried on through each. So every objective
has the gradient that more memory would have given it, for one more forward pass.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (gradient cache).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from medseg.models.base import Outputs


class Portions:
    """One step of a network on a batch, `size` windows at once."""

    def __init__(self, run: Callable[[slice], Outputs], windows: int, size: int, seed: int) -> None:
        """From a batch.

        Args:
            run: some of the windows through the network in training mode; each window's output depends on this window alone (see `independent`).
            windows: in the batch.
            size: windows at once; the last portion may be smaller.
            seed: what a network draws at random (dropout), it draws alike in both passes.
        """
        self._run, self._windows, self._size, self._seed = run, windows, size, seed
        self._outputs: Outputs = {}

    def forward(self) -> Outputs:
        """The outputs of the whole batch, as leaves that collect the gradient of whatever is computed from them."""
        with torch.no_grad():
            parts = [outputs for outputs, _ in self._runs()]
        for name in parts[0]:
            levels = zip(*(part[name] for part in parts), strict=True)
            joined = [torch.cat(maps) for maps in levels]
            self._outputs[name] = [values.requires_grad_(values.is_floating_point()) for values in joined]
        return self._outputs

    def backward(self) -> None:
        """Carry the gradient of the outputs on to the weights. Call it in the autocast context of `forward`."""
        for outputs, rows in self._runs():
            levels = [(part, whole.grad) for name, maps in outputs.items() for part, whole in zip(maps, self._outputs[name], strict=True)]
            pairs = [(part, gradient[rows]) for part, gradient in levels if gradient is not None and part.requires_grad]
            torch.autograd.backward([part for part, _ in pairs], [gradient for _, gradient in pairs])

    def _runs(self) -> Iterator[tuple[Outputs, slice]]:
        for number, start in enumerate(range(0, self._windows, self._size)):
            rows = slice(start, start + self._size)
            torch.manual_seed((self._seed + number) % 2**63)
            yield self._run(rows), rows


def independent(network: nn.Module) -> bool:
    """Whether each window's output depends on this window alone, as far as one can tell: nothing is normalised over the batch."""
    return not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
