"""MetaBalance in a trainer of plain PyTorch: clicks, beside an auxiliary task in seconds whose gradients drown them.

python docs/examples/gradient_balance.py
"""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from dlrm_mtl import GradientBalance, MetaBalanceConfig, NoBalancingConfig


class Model(nn.Module):
    """A narrow shared layer and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(20, 2), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of a click and the seconds watched, [B] each."""
        shared = self.shared(x)
        return [head(shared).squeeze(1) for head in self.heads]


def train(config: NoBalancingConfig | MetaBalanceConfig, seed: int = 0, steps: int = 300) -> float:
    """Train on both tasks; return the click's loss on new rows."""
    torch.manual_seed(seed)
    rows, truth = torch.randn(20_000, 20), torch.randn(2, 20)
    click = (rows @ truth[0] > 0).float()
    seconds = (10 * rows @ truth[1]).abs()
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    balance = GradientBalance(config, shared=model.shared.parameters(), tasks=["click", "watch"])
    for step in range(steps):
        some = slice(step % 50 * 256, step % 50 * 256 + 256)
        logits, watched = model(rows[some])
        optimizer.zero_grad()
        balance.backward([binary_cross_entropy_with_logits(logits, click[some]), mse_loss(watched, seconds[some])])
        optimizer.step()
    with torch.no_grad():
        return binary_cross_entropy_with_logits(model(rows[-5000:])[0], click[-5000:]).item()


def main(seed: int = 0) -> tuple[float, float]:
    """Return the click's loss with the plain sum and with MetaBalance."""
    return train(NoBalancingConfig(), seed), train(MetaBalanceConfig(target="click", relax=1), seed)


if __name__ == "__main__":
    plain, balanced = main()
    print(f"the click's loss: {plain:.4f} with the plain sum, {balanced:.4f} with MetaBalance")
