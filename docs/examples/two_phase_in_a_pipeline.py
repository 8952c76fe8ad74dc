"""The two-phase update under TorchRec's own training pipeline and combined optimizer.

``python docs/examples/two_phase_in_a_pipeline.py`` runs it in one process;
``torchrun --nproc-per-node 2 docs/examples/two_phase_in_a_pipeline.py`` in two.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.streamable import Pipelineable

from dlrm_mtl import ClippyRowWiseAdagrad, TwoPhaseOptimizer, two_phase_sharders


@dataclass
class Clicks(Pipelineable):
    """A batch as TorchRec's pipelines want it."""

    ids: KeyedJaggedTensor
    labels: torch.Tensor  # [B]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Clicks":
        """Copy to ``device``."""
        return Clicks(self.ids.to(device, non_blocking), self.labels.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until ``stream`` has used it."""
        self.ids.record_stream(stream)
        self.labels.record_stream(stream)


class Model(torch.nn.Module):
    """A table, a linear layer and the loss."""

    def __init__(self) -> None:
        super().__init__()
        user = EmbeddingBagConfig(name="user", num_embeddings=1000, embedding_dim=16, feature_names=["user"])
        self.tables = EmbeddingBagCollection([user], device=torch.device("meta"))
        self.head = torch.nn.Linear(16, 1)

    def forward(self, batch: Clicks) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, which a pipeline differentiates, and what it hands back, here the loss as well."""
        logits = self.head(self.tables(batch.ids).to_dict()["user"]).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        return loss, loss.detach()


def batches(steps: int) -> Iterator[Clicks]:
    """Yield batches in which users of even numbers click."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(steps):
        users = torch.randint(0, 1000, (256,), generator=generator)
        ids = KeyedJaggedTensor(keys=["user"], values=users, lengths=torch.ones(256, dtype=torch.int32))
        yield Clicks(ids, (users % 2 == 0).float())


def train(pipelined: bool, steps: int = 50) -> list[float]:
    """Return the loss of every step, with TorchRec's pipeline or with a loop written out."""
    torch.manual_seed(0)
    device = torch.device("cuda", dist.get_node_local_rank(0)) if torch.cuda.is_available() else torch.device("cpu")
    model = DistributedModelParallel(Model(), device=device, sharders=two_phase_sharders())
    tables = TwoPhaseOptimizer(model, ClippyRowWiseAdagrad(learning_rate=1.0))
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())),  # all but the tables
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    )
    optimizer = CombinedOptimizer([("tables", tables), ("dense", dense)])
    if pipelined:
        pipeline = TrainPipelineSparseDist(model, optimizer, device)
        coming = batches(steps)
        return [float(pipeline.progress(coming)) for _ in range(steps)]
    losses = []
    for batch in batches(steps):
        optimizer.zero_grad()
        loss, shown = model(batch.to(device))
        loss.backward()
        optimizer.step()
        losses.append(float(shown))
    return losses


def main() -> tuple[list[float], list[float]]:
    """Return the losses of the pipeline and of the loop."""
    return train(pipelined=True), train(pipelined=False)


if __name__ == "__main__":
    if dist.is_torchelastic_launched():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with_pipeline, with_loop = main()
    if dist.get_rank() == 0:
        print(
            f"loss {with_pipeline[0]:.3f} -> {with_pipeline[-1]:.3f} in the pipeline, {with_loop[-1]:.3f} in the loop"
        )
    dist.destroy_process_group()
