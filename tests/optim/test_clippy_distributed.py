"""One factor per whole parameter, however it is spread over processes."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from dlrm_mtl.optim.clippy_adagrad import ClippyAdagrad
from tests.processes import run_processes

STEPS = 4
LR = 0.5


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3), nn.LayerNorm(3), nn.Linear(3, 1))


def data(step: int, rank: int, world: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(8, 7, generator=generator) * 100).chunk(world)[rank]


def train(net: nn.Module, optimizer: ClippyAdagrad, rank: int, world: int) -> dict[str, Any]:
    factors, skipped = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = net(data(step, rank, world)).square().mean()
        (loss * math.nan if step == 2 else loss).backward()
        optimizer.step()
        factors.append([float(factor) for factor in optimizer.clipping_factors().values()])
        skipped.append(int(optimizer.skipped_steps))
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]
    sums = [optimizer.state[p]["sum"] for p in net.parameters()]
    return {
        "weights": [p.detach().clone() for p in whole],
        "sums": [s.full_tensor() if isinstance(s, DTensor) else s for s in sums],
        "factors": factors,
        "skipped": skipped,
    }


def alone() -> dict[str, Any]:
    net = model()
    return train(net, ClippyAdagrad(net.parameters(), LR), 0, 1)


def assert_like_alone(results: list[dict[str, Any]]) -> None:
    expected = alone()
    assert min(expected["factors"][0]) < 0.9
    assert expected["skipped"] == [0, 0, 1, 1]
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)
        assert result["factors"] == results[0]["factors"]


def ddp(rank: int) -> dict[str, Any]:
    net = DistributedDataParallel(model())
    return train(net, ClippyAdagrad(net.parameters(), LR), rank, 2)


def test_ddp_equals_one_process() -> None:
    assert_like_alone(run_processes(2, ddp))


def fsdp(rank: int, foreach: bool | None) -> dict[str, Any]:
    net = model()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    reductions = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda *args, **kwargs: (reductions.append(1), all_reduce(*args, **kwargs))[1]
    optimizer = ClippyAdagrad(net.parameters(), LR, foreach=foreach)
    result = train(net, optimizer, rank, 2)
    dist.all_reduce = all_reduce
    assert len(reductions) == STEPS, "one all-reduce a step"
    return result


def test_fsdp_equals_one_process() -> None:
    # Shapes 5, 3 and 1 over two processes: uneven parts, and an empty one.
    assert_like_alone(run_processes(2, fsdp, None))
    assert_like_alone(run_processes(2, fsdp, True))


def mixed(rank: int) -> list[tuple[torch.Tensor, int, list[str], list[bool]]]:
    """Plain, replicated and sharded parameters side by side, on one and two mesh dimensions."""
    line = init_device_mesh("cpu", (4,))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    torch.manual_seed(0)
    values = [torch.randn(6, 4) for _ in range(5)]
    gradients = [torch.randn(6, 4) * 5 for _ in range(5)]
    places: list[Any] = [
        None,
        (line, [Replicate()]),
        (line, [Shard(0)]),
        (grid, [Replicate(), Shard(1)]),
        (grid, [Shard(0), Shard(1)]),
    ]
    parameters = [
        nn.Parameter(v if place is None else distribute_tensor(v, *place))
        for v, place in zip(values, places, strict=True)
    ]
    optimizer = ClippyAdagrad(parameters, LR)
    for parameter, gradient, place in zip(parameters, gradients, places, strict=True):
        parameter.grad = gradient if place is None else distribute_tensor(gradient, *place)
    # As after a layer whose gradient comes out placed otherwise than its parameter.
    parameters[2].grad = distribute_tensor(gradients[2], line, [Replicate()])
    optimizer.step()
    bad = parameters[4].grad.to_local()
    if rank == 3:
        bad[0, 0] = math.nan
    before = [p.full_tensor() if isinstance(p, DTensor) else p.clone() for p in parameters]
    optimizer.step()
    after = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
    skipped = int(optimizer.skipped_steps)
    names = optimizer.nonfinite_parameters()
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    return [(p.detach().clone(), skipped, names, same) for p in before]


def test_mixed_placements_equal_one_process() -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(6, 4)) for _ in range(5)]
    for parameter in parameters:
        parameter.grad = torch.randn(6, 4) * 5
    optimizer = ClippyAdagrad(parameters, LR)
    optimizer.step()
    assert max(float(factor) for factor in optimizer.clipping_factors().values()) < 1
    for result in run_processes(4, mixed):
        for (weight, skipped, names, same), expected in zip(result, parameters, strict=True):
            torch.testing.assert_close(weight, expected.detach())
            assert (skipped, names, all(same)) == (1, ["0.4"], True)


def checkpoint(rank: int, folder: str) -> bool:
    """Save with two processes through torch.distributed.checkpoint, load into a fresh optimizer."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    mesh = init_device_mesh("cpu", (2,))
    nets = [fully_shard(model(), mesh=mesh) for _ in range(2)]
    optimizers = [ClippyAdagrad(net.parameters(), LR) for net in nets]
    train(nets[0], optimizers[0], rank, 2)
    dcp.save({"optimizer": get_optimizer_state_dict(nets[0], optimizers[0])}, checkpoint_id=folder)
    loaded = {"optimizer": get_optimizer_state_dict(nets[1], optimizers[1])}
    dcp.load(loaded, checkpoint_id=folder)
    set_optimizer_state_dict(nets[1], optimizers[1], loaded["optimizer"])
    pairs = zip(optimizers[0].state.values(), optimizers[1].state.values(), strict=True)
    return all(
        torch.equal(one["sum"].to_local(), other["sum"].to_local()) and torch.equal(one["step"], other["step"])
        for one, other in pairs
    )


def test_distributed_checkpoint(tmp_path: Any) -> None:
    assert run_processes(2, checkpoint, str(tmp_path / "state")) == [True, True]
