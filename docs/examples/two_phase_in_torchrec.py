"""Row-wise Clippy AdaGrad under a plain TorchRec model: three lines, marked (1) to (3).

``python docs/examples/two_phase_in_torchrec.py`` runs it in one process;
``torchrun --nproc-per-node 2 docs/examples/two_phase_in_torchrec.py`` in two.
"""

import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_mtl import ClippyRowWiseAdagrad, TwoPhaseOptimizer, two_phase_sharders  # (1)


class Model(torch.nn.Module):
    """Two tables and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(name="user", num_embeddings=1000, embedding_dim=16, feature_names=["user"]),
            EmbeddingBagConfig(name="item", num_embeddings=5000, embedding_dim=16, feature_names=["item"]),
        ]
        self.tables = EmbeddingBagCollection(configs, device=torch.device("meta"))
        self.head = torch.nn.Linear(32, 1)

    def forward(self, ids: KeyedJaggedTensor) -> torch.Tensor:
        """Return logits [B]."""
        pooled = self.tables(ids).to_dict()
        return self.head(torch.cat([pooled["user"], pooled["item"]], dim=1)).squeeze(1)


def main(steps: int = 200) -> tuple[float, float]:
    """Learn which users click; return the first and the last loss."""
    torch.manual_seed(0)
    model = DistributedModelParallel(Model(), sharders=two_phase_sharders())  # (2)
    sparse = TwoPhaseOptimizer(model, ClippyRowWiseAdagrad(learning_rate=1.0))  # (3)
    dense = torch.optim.Adam((p for n, p in model.named_parameters() if "embedding_bags" not in n), lr=0.01)
    generator = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for _ in range(steps):
        ids = torch.stack([torch.randint(0, n, (256,), generator=generator) for n in (1000, 5000)])
        lengths = torch.ones(512, dtype=torch.int32)
        batch = KeyedJaggedTensor(keys=["user", "item"], values=ids.flatten(), lengths=lengths)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch), (ids[0] % 2).float())
        loss.backward()
        sparse.step()  # in place of the fused optimizer's, next to the dense one's
        dense.step()
        dense.zero_grad()
        losses.append(loss.item())
    return losses[0], losses[-1]


if __name__ == "__main__":
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    first, last = main()
    if dist.get_rank() == 0:
        print(f"loss {first:.3f} -> {last:.3f}")
    dist.destroy_process_group()
