"""The list of studies, and their pages: every table there is what the stored figures give."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from dlrm_mtl.core.errors import UserError
from studies.__main__ import STUDIES, main, question
from studies.frame import STORED, Study, markdown

ROOT = Path(__file__).parents[2]


def studies_with_figures() -> list[Study]:
    found = []
    for name in STUDIES:
        folder = ROOT / "studies" / name
        if (folder / STORED).is_file():
            module = import_module(f"studies.{name}")
            kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Study)]
            found += [kind(folder) for kind in kinds if kind is not Study]
    return found


@pytest.mark.parametrize("study", studies_with_figures(), ids=lambda study: study.name)
def test_a_page_has_the_tables_of_the_stored_figures(study: Study) -> None:
    page = (ROOT / "docs" / "studies" / f"{study.name}.md").read_text()
    shown = study.show(study.stored())
    for table in shown.tables:
        assert markdown(table).partition("\n\n")[2 if table.caption else 0] in page, table.caption
    for name, svg in shown.plots.items():
        assert svg.startswith("<svg")
        assert f"../figures/studies/{name}.svg" in page
        assert (ROOT / "docs" / "figures" / "studies" / f"{name}.svg").is_file()


def test_every_study_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    listed = capsys.readouterr().out
    readme = (ROOT / "studies" / "README.md").read_text()
    for name in STUDIES:
        assert f"  {name:18} {question(name)}" in listed
        assert question(name).endswith("?") or "?" in question(name)
        assert f"| `{name}` |" in readme


def test_an_unknown_study_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"there is no study 'asignment'; did you mean 'assignment'\?"):
        main(["asignment"])
