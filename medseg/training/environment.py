"""What Lightning must know of the processes that `medseg.training.ranks` started."""

from __future__ import annotations

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment


class LocalRanks(ClusterEnvironment):
    """Tells Lightning that the processes exist already, and which one this is."""

    def __init__(self, rank: int, ranks: int, port: int) -> None:
        self._rank, self._ranks, self._port = rank, ranks, port

    @property
    def creates_processes_externally(self) -> bool:
        """True: see `medseg.training.ranks.run_ranks`."""
        return True

    @property
    def main_address(self) -> str:
        """This machine."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Where the ranks meet."""
        return self._port

    @staticmethod
    def detect() -> bool:
        """Never chosen by Lightning itself."""
        return False

    def world_size(self) -> int:
        """Number of processes."""
        return self._ranks

    def set_world_size(self, size: int) -> None:
        """Lightning repeats what it was told."""

    def global_rank(self) -> int:
        """Number of this process."""
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Lightning repeats what it was told."""

    def local_rank(self) -> int:
        """Number of this process on this machine."""
        return self._rank

    def node_rank(self) -> int:
        """One machine only."""
        return 0
