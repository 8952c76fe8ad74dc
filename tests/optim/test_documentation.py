"""The code in docs/clippy.md runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import torch


def test_code_of_the_clippy_page(repository: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (repository / "docs" / "clippy.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert isinstance(names["optimizer"].skipped_steps, torch.Tensor)
