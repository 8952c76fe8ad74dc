"""Draw how each multitask architecture routes two tasks: one SVG per architecture, written without any package.

``python docs/figures/draw_architectures.py`` draws; with ``--costs`` it prints the figures of docs/architectures.md instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FOLDER = Path(__file__).parent / "architectures"
COLOURS = {"input": "#e6e6e6", "shared": "#cfe0f5", "a": "#fbdcb8", "b": "#cdebcb", "mix": "#ffffff", "gate": "#ffffff"}
LINES = {"shared": "#3b6ea8", "a": "#c26a00", "b": "#2f8a2b", "": "#666666"}
STEP, ROW, WIDE, HIGH = 84, 68, 72, 30


class Figure:
    """Boxes on a grid, the input at the bottom, and lines between them."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.boxes: dict[str, tuple[float, float, str, str]] = {}
        self.lines: list[tuple[str, str, str, bool]] = []

    def box(self, name: str, column: float, row: float, text: str, kind: str) -> str:
        self.boxes[name] = (column, row, text, kind)
        return name

    def line(self, start: str, end: str, kind: str = "", dashed: bool = False) -> None:
        self.lines.append((start, end, kind, dashed))

    def svg(self) -> str:
        columns = [box[0] for box in self.boxes.values()]
        rows = [box[1] for box in self.boxes.values()]
        width = (max(columns) - min(columns)) * STEP + WIDE + 24
        height = (max(rows) - min(rows)) * ROW + HIGH + 24

        def place(name: str) -> tuple[float, float]:
            column, row, _, _ = self.boxes[name]
            return 12 + WIDE / 2 + (column - min(columns)) * STEP, 12 + HIGH / 2 + (max(rows) - row) * ROW

        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="12">',
            f"<title>{self.title}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
        ]
        for start, end, kind, dashed in self.lines:
            (x1, y1), (x2, y2) = place(start), place(end)
            if y1 == y2:  # a gate beside what it weighs
                side = 1 if x2 > x1 else -1
                x1, x2 = x1 + side * WIDE * 0.4, x2 - side * 12
            else:
                y1, y2 = y1 - self._reach(start), y2 + self._reach(end)
            dash = ' stroke-dasharray="4 3"' if dashed else ""
            parts.append(
                f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{LINES[kind]}" '
                f'stroke-width="1.3"{dash}/>'
            )
        for name, (_, _, text, kind) in self.boxes.items():
            x, y = place(name)
            border = LINES.get(kind, LINES[""])
            if kind == "mix":
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="12" fill="#ffffff" stroke="{border}"/>')
            else:
                wide = WIDE * (0.8 if kind == "gate" else 1)
                dash = ' stroke-dasharray="4 3"' if kind == "gate" else ""
                parts.append(
                    f'<rect x="{x - wide / 2:.1f}" y="{y - HIGH / 2:.1f}" width="{wide:.1f}" height="{HIGH}" rx="5" '
                    f'fill="{COLOURS[kind]}" stroke="{border}"{dash}/>'
                )
            small = ' font-size="10"' if text == "g+v" else ""
            parts.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle"{small}>{text}</text>')
        return "\n".join([*parts, "</svg>", ""])

    def _reach(self, name: str) -> float:
        return 12 if self.boxes[name][3] == "mix" else HIGH / 2


def towers(figure: Figure, row: float, a: tuple[str, float], b: tuple[str, float]) -> Figure:
    for (below, column), kind, text in ((a, "a", "tower 1"), (b, "b", "tower 2")):
        figure.line(below, figure.box(text, column, row, text, kind), kind)
    return figure


def mixed(
    figure: Figure,
    level: str,
    row: float,
    column: float,
    text: str,
    kind: str,
    experts: list[str],
    reads: str,
    sign: str = "+",
) -> str:
    """A gate and the sum that it weighs."""
    mix = figure.box(f"mix {level} {text}", column, row, sign, "mix")
    gate = figure.box(f"gate {level} {text}", column - 0.75, row, f"gate {text}", "gate")
    figure.line(gate, mix, kind, dashed=True)
    figure.line(reads, gate, kind, dashed=True)
    for expert in experts:
        figure.line(expert, mix, kind)
    return mix


def experts_row(
    figure: Figure, level: str, row: float, spec: list[tuple[str, str, str, float]]
) -> dict[str, list[str]]:
    """Experts (text, kind, what they read, column) of a level; their names by kind."""
    names: dict[str, list[str]] = {"a": [], "b": [], "shared": []}
    for number, (text, kind, reads, column) in enumerate(spec):
        name = figure.box(f"expert {level} {number}", column, row, text, kind)
        figure.line(reads, name, kind)
        names[kind].append(name)
    return names


def shared_bottom() -> Figure:
    figure = Figure("shared-bottom")
    figure.box("x", 0.5, 0, "x", "input")
    figure.line("x", figure.box("bottom", 0.5, 1, "layers", "shared"))
    return towers(figure, 2, ("bottom", 0), ("bottom", 1))


def single_task() -> Figure:
    figure = Figure("single-task")
    figure.box("x", 0.5, 0, "x", "input")
    names = experts_row(figure, "1", 1, [("layers 1", "a", "x", 0), ("layers 2", "b", "x", 1)])
    return towers(figure, 2, (names["a"][0], 0), (names["b"][0], 1))


def omoe() -> Figure:
    figure = Figure("one-gate mixture of experts")
    figure.box("x", 1, 0, "x", "input")
    names = experts_row(figure, "1", 1, [(f"expert {e + 1}", "shared", "x", e) for e in range(3)])["shared"]
    mix = mixed(figure, "1", 2, 1, "", "shared", names, "x")
    return towers(figure, 3, (mix, 0.5), (mix, 1.5))


def mmoe() -> Figure:
    figure = Figure("multi-gate mixture of experts")
    figure.box("x", 1, 0, "x", "input")
    names = experts_row(figure, "1", 1, [(f"expert {e + 1}", "shared", "x", e) for e in range(3)])["shared"]
    a = mixed(figure, "1", 2, 0.4, "1", "a", names, "x")
    b = mixed(figure, "1", 2, 2.2, "2", "b", names, "x")
    return towers(figure, 3, (a, 0.4), (b, 2.2))


def multi_level_mmoe() -> Figure:
    figure = Figure("multi-level MMoE")
    figure.box("x", 1, 0, "x", "input")
    first = experts_row(figure, "1", 1, [(f"expert {e + 1}", "shared", "x", 2 * e) for e in range(2)])["shared"]
    slots = [mixed(figure, "1", 2, 2 * e, str(e + 1), "shared", first, "x") for e in range(2)]
    second = [(f"expert {e + 1}", "shared", slots[e], 2.0 * e) for e in range(2)]
    names = experts_row(figure, "2", 3, second)["shared"]
    a = mixed(figure, "2", 4, 0, "1", "a", names, "x")
    b = mixed(figure, "2", 4, 2, "2", "b", names, "x")
    return towers(figure, 5, (a, 0), (b, 2))


def units(title: str, levels: int, sees_all: bool, shared: bool) -> Figure:
    """PLE and AdaTT: experts of task 1, shared ones, of task 2, on levels; the gates read their own slot."""
    figure = Figure(title)
    columns = {"a": 0.0, "shared": 2.0, "b": 4.0} if shared else {"a": 0.0, "b": 2.2}
    sign = "g+v" if sees_all else "+"  # AdaTT adds the native weights v to the gate
    labels = {"a": "task 1", "shared": "shared", "b": "task 2"}
    slots = dict.fromkeys(columns, figure.box("x", sum(columns.values()) / len(columns), 0, "x", "input"))
    for level in range(1, levels + 1):
        row = 2 * level - 1
        names = experts_row(
            figure, str(level), row, [(labels[kind], kind, slots[kind], column) for kind, column in columns.items()]
        )
        fused = {}
        for kind, column in columns.items():
            if kind == "shared" and level == levels:
                continue
            every = sees_all or kind == "shared"
            seen = [name for other in columns for name in names[other] if every or other in (kind, "shared")]
            text = {"a": "1", "b": "2", "shared": "s"}[kind]
            fused[kind] = mixed(figure, str(level), row + 1, column, text, kind, seen, slots[kind], sign)
        slots = fused
    return towers(figure, 2 * levels + 1, (slots["a"], columns["a"]), (slots["b"], columns["b"]))


def cross_stitch() -> Figure:
    figure = Figure("cross-stitch")
    figure.box("x", 0.75, 0, "x", "input")
    slots = {"a": "x", "b": "x"}
    for level in (1, 2):
        names = experts_row(
            figure,
            str(level),
            2 * level - 1,
            [("layers 1", "a", slots["a"], 0), ("layers 2", "b", slots["b"], 1.5)],
        )
        for kind, column in (("a", 0), ("b", 1.5)):
            slots[kind] = figure.box(f"mix {level} {kind}", column, 2 * level, "+", "mix")
            for other in ("a", "b"):
                figure.line(names[other][0], slots[kind], other)
    return towers(figure, 5, (slots["a"], 0), (slots["b"], 1.5))


def aitm() -> Figure:
    figure = Figure("AITM")
    figure.box("x", 1, 0, "x", "input")
    names = experts_row(figure, "1", 1, [("layers 1", "a", "x", 0), ("layers 2", "b", "x", 2)])
    handed = figure.box("transfer", 1, 2, "transfer", "shared")
    mix = figure.box("attention", 2, 3, "attention", "shared")
    figure.line(names["a"][0], handed, "a")
    figure.line(handed, mix, "a")
    figure.line(names["b"][0], mix, "b")
    return towers(figure, 4, (names["a"][0], 0), (mix, 2))


def figures() -> dict[str, Figure]:
    """Every figure by the name of its file."""
    return {
        "shared_bottom": shared_bottom(),
        "single_task": single_task(),
        "omoe": omoe(),
        "mmoe": mmoe(),
        "multi_level_mmoe": multi_level_mmoe(),
        "cgc": units("CGC", 1, sees_all=False, shared=True),
        "ple": units("PLE", 2, sees_all=False, shared=True),
        "cross_stitch": cross_stitch(),
        "adatt_sp": units("AdaTT-sp", 2, sees_all=True, shared=False),
        "adatt": units("AdaTT", 2, sees_all=True, shared=True),
        "aitm": aitm(),
    }


def costs(width: int = 256, tasks: int = 4) -> dict[str, tuple[int, int]]:
    """Multiply-adds per sample and parameters of the configurations in configs/, counted by PyTorch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dlrm_mtl.config.load import load_config
    from dlrm_mtl.models.multitask import build_multitask

    counted = {}
    for name in figures():
        config = load_config(Path(__file__).parents[2] / "configs" / f"kuairand_{name}.yaml").model.multitask
        module = build_multitask(config, width, tasks).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.randn(10, width))
        parameters = sum(parameter.numel() for parameter in module.parameters())
        counted[name] = (counter.get_total_flops() // 20, parameters)
    return counted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the architectures.")
    parser.add_argument("--costs", action="store_true", help="print multiply-adds per sample instead")
    if parser.parse_args().costs:
        for name, (products, parameters) in costs().items():
            print(f"{name:20}{products:>12,}{parameters:>12,}")
    else:
        for name, figure in figures().items():
            (FOLDER / f"{name}.svg").write_text(figure.svg())
