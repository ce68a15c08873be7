"""The ranks of a run as grids: who shares a pack, who shares experts, who shards parameters with whom."""

from __future__ import annotations

from functools import cached_property

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from keyekit.distributed.part_plan import PartPlan, RankError

__all__ = ["RankGrid"]


class RankGrid:
    """All ranks of a run, arranged as each kind of parallelism needs them.

    Groups are of consecutive ranks, so that those who talk most sit in one machine: ranks ``0 … s-1`` share a pack under
    sequence parallelism of degree ``s``, ranks ``0 … e-1`` hold one copy of all experts under expert parallelism of degree
    ``e``. Parameters are sharded over all ranks of the run, whatever they share, because every rank has a part of the
    gradient.

    Args:
        world_size: Number of ranks.
        sequence_parallel: Ranks that share a pack.
        expert_parallel: Ranks that share a copy of the experts.

    Raises:
        RankError: If a degree does not divide the ranks.

    Example:
        >>> RankGrid(8, sequence_parallel=2).data_rank(5), RankGrid(8, sequence_parallel=2).data_ranks
        (2, 4)
    """

    def __init__(self, world_size: int, sequence_parallel: int = 1, expert_parallel: int = 1) -> None:
        for name, degree in (("sequence_parallel", sequence_parallel), ("expert_parallel", expert_parallel)):
            _check_divides(name, degree, world_size)
        self.world_size = world_size
        self.sequence_parallel = sequence_parallel
        self.expert_parallel = expert_parallel
        self.device_type = "cpu"
        self._grids: dict[tuple[int, tuple[str, str]], DeviceMesh] = {}

    def connect(self, device_type: str) -> None:
        """Say which devices the ranks have, once they can talk to each other; meshes exist from here on."""
        self.device_type = device_type

    @property
    def data_ranks(self) -> int:
        """Packs that are read at the same time."""
        return self.world_size // self.sequence_parallel

    def data_rank(self, rank: int) -> int:
        """Which of these packs a rank works on."""
        return rank // self.sequence_parallel

    @cached_property
    def everyone(self) -> DeviceMesh:
        """All ranks in a row."""
        return init_device_mesh(self.device_type, (self.world_size,), mesh_dim_names=("shard",))

    @property
    def sequence(self) -> DeviceMesh:
        """The ranks that share this rank's pack."""
        return self._grid(self.sequence_parallel, ("data", "sequence"))["sequence"]

    @property
    def experts(self) -> DeviceMesh:
        """The ranks that share a copy of the experts with this one."""
        return self._grid(self.expert_parallel, ("expert_shard", "expert"))["expert"]

    @property
    def expert_shards(self) -> DeviceMesh:
        """The ranks that hold the same experts as this one, and shard them among each other."""
        return self._grid(self.expert_parallel, ("expert_shard", "expert"))["expert_shard"]

    def check(self, plan: PartPlan, part: str) -> None:
        """See that a part's plan fits the number of ranks.

        Raises:
            RankError: If the group of ranks that share its parameters does not divide them.
        """
        if plan.shard_group is not None:
            _check_divides(f"{part}.shard_group", plan.shard_group, self.world_size)

    def shards(self, plan: PartPlan) -> DeviceMesh:
        """The mesh on which FSDP2 shards a part: a row, or rows of copies."""
        if plan.sharding == "full" or plan.shard_group == self.world_size:
            return self.everyone
        return self._grid(plan.shard_group or 1, ("copy", "shard"))

    def _grid(self, columns: int, names: tuple[str, str]) -> DeviceMesh:
        """All ranks in rows of so many consecutive ones; made once, for every grid opens channels of its own."""
        key = columns, names
        if key not in self._grids:
            shape = (self.world_size // columns, columns)
            self._grids[key] = init_device_mesh(self.device_type, shape, mesh_dim_names=names)
        return self._grids[key]


def _check_divides(name: str, degree: int, world_size: int) -> None:
    if degree < 1 or world_size % degree:
        divisors = ", ".join(str(size) for size in range(1, world_size + 1) if world_size % size == 0)
        raise RankError(
            f"{name}={degree} does not divide the {world_size} ranks of this run (devices x num_nodes): choose one of "
            f"{divisors}, or another number of devices"
        )
