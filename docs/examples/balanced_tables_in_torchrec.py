"""MetaBalance on the sharded tables of a plain TorchRec model: clicks, beside seconds whose gradients drown them.

``python docs/examples/balanced_tables_in_torchrec.py`` runs it in one process;
``torchrun --nproc-per-node 2 docs/examples/balanced_tables_in_torchrec.py`` in two.
"""

import torch
import torch.distributed as dist
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_mtl import (
    MetaBalanceConfig,
    NoBalancingConfig,
    RowWiseAdagrad,
    TaskGradients,
    TensorInfo,
    TwoPhaseOptimizer,
    build_balancing,
    two_phase_sharders,
)

TASKS = ["click", "watch"]
SIZES = {"user": 200, "item": 500}


class Tables(torch.nn.Module):
    """Two tables of two columns, which both tasks read: the vectors side by side, [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=4, feature_names=[name])
            for name, rows in SIZES.items()
        ]
        self.tables = EmbeddingBagCollection(configs, device=torch.device("meta"))

    def forward(self, ids: KeyedJaggedTensor) -> torch.Tensor:
        """Return the vectors of users and items, [B, 8]."""
        vectors = self.tables(ids).to_dict()
        return torch.cat([vectors[name] for name in SIZES], dim=1)


def train(config: NoBalancingConfig | MetaBalanceConfig, steps: int = 300) -> float:
    """Train on both tasks; return the click's mean loss over the last fifty batches."""
    torch.manual_seed(0)
    model = DistributedModelParallel(Tables(), sharders=two_phase_sharders())
    optimizer = TwoPhaseOptimizer(model, RowWiseAdagrad(learning_rate=0.1))
    tasks = TaskGradients(optimizer, len(TASKS))
    balancing = build_balancing(config, TASKS, [TensorInfo(name, is_table=True) for name in tasks.names])
    heads = torch.randn(2, 8) / 8**0.5
    users, items = (torch.randn(rows, 2) for rows in SIZES.values())
    generator = torch.Generator().manual_seed(dist.get_rank())
    found = []
    for step in range(steps):
        user, item = (torch.randint(rows, (256,), generator=generator) for rows in SIZES.values())
        ids = KeyedJaggedTensor(list(SIZES), values=torch.cat([user, item]), lengths=torch.ones(512, dtype=torch.int32))
        click, seconds = (users[user, 0] + items[item, 0] > 0).float(), 20 * (users[user, 1] + items[item, 1])
        with tasks.per_task():
            vectors = model.module(ids)
            logits, watched = heads @ vectors.T
            losses = [binary_cross_entropy_with_logits(logits, click), mse_loss(watched, seconds)]
            gradients = [torch.autograd.grad(loss, vectors, retain_graph=True) for loss in losses]
            tasks.backward([vectors], gradients)
            both = torch.stack([loss.detach().double() for loss in losses])
            grams = tasks.grams()
            dist.all_reduce(grams)
            dist.all_reduce(both)
            tasks.combine(balancing.step(grams, both / dist.get_world_size(), step).coefficients)
        optimizer.step()
        found.append(float(both[0]) / dist.get_world_size())
    return sum(found[-50:]) / 50


def main() -> tuple[float, float]:
    """Return the click's loss with the plain sum and with MetaBalance."""
    return train(NoBalancingConfig()), train(MetaBalanceConfig(target="click", relax=1))


if __name__ == "__main__":
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    plain, balanced = main()
    if dist.get_rank() == 0:
        print(f"the click's loss: {plain:.4f} with the plain sum, {balanced:.4f} with MetaBalance")
    dist.destroy_process_group()
