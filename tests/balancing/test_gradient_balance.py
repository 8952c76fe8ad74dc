"""Balancing in a trainer of plain PyTorch, against gradients made by hand."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlrm_mtl.balancing import BalancingConfig, NoBalancingConfig
from dlrm_mtl.balancing.famo import FAMOConfig
from dlrm_mtl.balancing.gradient_balance import GradientBalance
from dlrm_mtl.balancing.metabalance import MetaBalanceConfig
from dlrm_mtl.balancing.pcgrad import PCGradConfig
from dlrm_mtl.balancing.surgery import SurgeryConfig
from tests.processes import run_processes

TASKS = ["buy", "cart"]


class Net(nn.Module):
    """An embedding and two layers that are shared, one layer that only cart uses, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.ModuleDict({"ids": nn.Embedding(10, 4), "deep": nn.Linear(4, 3), "cart_only": nn.Linear(3, 3)})
        self.heads = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])

    def forward(self, ids: Tensor) -> list[Tensor]:
        deep = torch.tanh(self.shared["deep"](self.shared["ids"](ids)))
        return [self.heads[0](deep).squeeze(1), self.heads[1](torch.tanh(self.shared["cart_only"](deep))).squeeze(1)]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, (16,), generator=generator), (torch.rand(16, 2, generator=generator) < 0.4).float()


def losses_of(net: Net, rows: slice = slice(None)) -> list[Tensor]:
    ids, labels = batch()
    return [
        nn.functional.binary_cross_entropy_with_logits(logits, labels[rows, task])
        for task, logits in enumerate(net(ids[rows]))
    ]


def by_task() -> list[dict[str, Tensor]]:
    """Each task's gradients from a model of its own."""
    result = []
    for task in range(2):
        net = Net()
        losses_of(net)[task].backward()
        result.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    return result


def balanced(config: BalancingConfig, net: Net) -> dict[str, Tensor]:
    GradientBalance(config, shared=net.shared.parameters(), tasks=TASKS).backward(losses_of(net))
    return {name: p.grad for name, p in net.named_parameters()}


def test_without_balancing_it_is_the_plain_sum() -> None:
    found, net = balanced(NoBalancingConfig(), Net()), Net()
    sum(losses_of(net)).backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_metabalance_tensor_by_tensor() -> None:
    buy, cart = by_task()
    found = balanced(MetaBalanceConfig(target="buy", relax=1, beta=0), Net())
    for name, gradient in found.items():
        if name in buy and name in cart:
            wanted = buy[name] + cart[name] * buy[name].norm() / cart[name].norm()
        else:
            wanted = buy.get(name, cart.get(name))
        torch.testing.assert_close(gradient, wanted, msg=name)


def test_surgery_and_pcgrad_take_only_shared_parameters_into_account() -> None:
    gradients = by_task()
    names = [name for name, _ in Net().named_parameters() if name.startswith("shared")]
    zeros = {name: torch.zeros_like(p) for name, p in Net().named_parameters()}
    sides = [torch.cat([{**zeros, **g}[name].flatten() for name in names]).double() for g in gradients]
    # Make the tasks conflict, whatever the random weights are: turn cart's loss round if need be.
    sign = -1.0 if sides[0] @ sides[1] > 0 else 1.0
    buy, cart = sides[0], sign * sides[1]
    off_buy = cart - (cart @ buy) / (buy @ buy) * buy
    off_cart = buy - (buy @ cart) / (cart @ cart) * cart
    cases = [(SurgeryConfig(target="buy"), buy + off_buy), (PCGradConfig(), off_buy + off_cart)]
    for config, wanted in cases:
        net = Net()
        first, second = losses_of(net)
        balance = GradientBalance(config, shared=net.shared.named_parameters(), tasks=TASKS)
        report = balance.backward([first, sign * second])
        found = torch.cat([dict(net.named_parameters())[name].grad.flatten() for name in names])
        torch.testing.assert_close(found, wanted.float())
        assert report.conflicting_pairs > 0
        torch.testing.assert_close(net.heads[1].weight.grad, sign * gradients[1]["heads.1.weight"])


def test_gradients_add_up_like_those_of_backward() -> None:
    net = Net()
    balance = GradientBalance(PCGradConfig(), shared=net.shared.parameters(), tasks=TASKS)
    balance.backward(losses_of(net))
    once = [p.grad.clone() for p in net.parameters()]
    balance.backward(losses_of(net))
    for before, parameter in zip(once, net.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * before)


def test_a_task_without_rows() -> None:
    net = Net()
    balance = GradientBalance(MetaBalanceConfig(target="buy"), shared=net.shared.parameters(), tasks=TASKS)
    first, _ = losses_of(net)
    balance.backward([first, torch.tensor(0.0)])
    buy = by_task()[0]
    for name, parameter in net.named_parameters():
        if name in buy:
            torch.testing.assert_close(parameter.grad, buy[name])
        else:
            assert parameter.grad is None


def test_gradients_that_are_not_finite_reach_the_trainer_and_no_state() -> None:
    net = Net()
    balance = GradientBalance(MetaBalanceConfig(target="buy"), shared=net.shared.parameters(), tasks=TASKS)
    assert balance.backward(losses_of(net)) is not None
    before = {name: value.clone() for name, value in balance.state_dict().items()}
    net.zero_grad()
    first, second = losses_of(net)
    assert balance.backward([first, second * float("inf")]) is None
    assert not all(torch.isfinite(p.grad).all() for p in net.shared.parameters())
    for name, value in balance.state_dict().items():
        assert torch.equal(value, before[name])


def test_training_goes_on_alike_from_a_saved_state() -> None:
    def train(net: Net, balance: GradientBalance, steps: int) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        for _ in range(steps):
            optimizer.zero_grad()
            balance.backward(losses_of(net))
            optimizer.step()
            with torch.no_grad():
                balance.after(losses_of(net))

    for config in [MetaBalanceConfig(target="buy"), FAMOConfig()]:
        nets = [Net(), Net()]
        one, other = (GradientBalance(config, shared=n.shared.parameters(), tasks=TASKS) for n in nets)
        assert all(value.requires_grad is False for value in one.state_dict().values())
        assert list(one.parameters()) == []
        train(nets[0], one, 3)
        nets[1].load_state_dict(nets[0].state_dict())
        other.load_state_dict(one.state_dict())
        train(nets[0], one, 3)
        train(nets[1], other, 3)
        for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            assert torch.equal(a, b)


def test_mistakes() -> None:
    net = Net()
    balance = GradientBalance(PCGradConfig(), shared=net.shared.parameters(), tasks=TASKS)
    with pytest.raises(ValueError, match=r"there are 1 losses for 2 tasks \(buy, cart\)"):
        balance.backward(losses_of(net)[:1])
    sparse = nn.Embedding(5, 2, sparse=True)
    balance = GradientBalance(PCGradConfig(), shared=[("user ids", sparse.weight)], tasks=TASKS)
    with pytest.raises(
        ValueError, match=r"the parameter user ids has sparse gradients; build its embedding with sparse=False"
    ):
        balance.backward([sparse(torch.tensor([1])).sum(), sparse(torch.tensor([2])).sum()])
    net.shared["deep"].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"the shared parameter 'deep.weight' does not require a gradient"):
        GradientBalance(PCGradConfig(), shared=net.shared.named_parameters(), tasks=TASKS)


def on_processes(rank: int) -> tuple[list[Tensor], list[float]]:
    """Two steps on this process's half of the rows; in the second only process 0 has rows for cart."""
    world = dist.get_world_size()
    net = Net()
    balance = GradientBalance(
        MetaBalanceConfig(target="buy", relax=0.8),
        shared=net.shared.parameters(),
        tasks=TASKS,
        process_group=dist.group.WORLD,
        own=net.parameters(),
    )
    mine = slice(rank * 16 // world, (rank + 1) * 16 // world)
    report = balance.backward(losses_of(net, mine))
    assert report is not None
    ids, labels = batch()
    buy, cart = net(ids[mine])
    losses = [nn.functional.binary_cross_entropy_with_logits(buy, labels[mine, 0])]
    if rank == 0:  # a global mean over 8 rows, of which all are here
        part = nn.functional.binary_cross_entropy_with_logits(cart[:8], labels[mine, 1][:8], reduction="sum")
        losses.append(part / 8 * world)
    else:
        losses.append(torch.tensor(0.0))
    balance.backward(losses)
    return [parameter.grad for parameter in net.parameters()], report.norms.tolist()


def test_two_processes_give_what_one_gives() -> None:
    ((wanted, norms),) = run_processes(1, on_processes)
    for found, other in run_processes(2, on_processes):
        assert other == pytest.approx(norms, rel=1e-5)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


def needs_own(rank: int) -> str:
    with pytest.raises(ValueError, match="own is missing") as found:
        GradientBalance(PCGradConfig(), shared=Net().shared.parameters(), tasks=TASKS, process_group=dist.group.WORLD)
    return str(found.value)


def test_several_processes_need_all_parameters_by_name() -> None:
    assert "own=model.parameters()" in run_processes(2, needs_own)[0]
