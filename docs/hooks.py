"""Pages of the site that are made from the code: the API, and the keys of a configuration; and the tutorial, a notebook."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import dlrm_mtl
from dlrm_mtl.config.load import json_schema


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/api.md", content=api()))
    files.append(File.generated(config, "reference/configuration.md", content=configuration()))
    files.append(File.generated(config, "tutorial.md", content=tutorial()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the notebook, which stand for themselves in the repository, lead to its page."""
    return markdown.replace("(tutorial.ipynb)", "(tutorial.md)")


def on_page_content(html: str, **_: Any) -> str:
    """Roles of docstrings are dropped; what they name stays."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>[~.]?", "<code>", html)


def tutorial() -> str:
    """The notebook with the outputs that are stored in it."""
    lines: list[str] = []
    for cell in json.loads((Path(__file__).parent / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        lines += ["```python", source, "```", ""] if cell["cell_type"] == "code" else [source, ""]
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                lines += ["```text", "".join(output["text"]).rstrip(), "```", ""]
            elif "image/png" in output.get("data", {}):
                picture = "".join(output["data"]["image/png"]).replace("\n", "")
                lines += [f"![Output of the cell above](data:image/png;base64,{picture})", ""]
    return "\n".join(lines)


def api() -> str:
    """The names that the package exports, by subject as in its list of them; mkdocstrings fills in what each is."""
    lines = ["# API", "", "Everything here is imported from `dlrm_mtl`, and promised; see CONTRIBUTING.md.", ""]
    listed = inspect.getsource(dlrm_mtl).partition("__all__ = [")[2].partition("\n]")[0]
    for subject, name in re.findall(r'^    (?:# (.+)|"([A-Za-z]\w*)",)$', listed, flags=re.MULTILINE):
        lines += [f"## {subject}", ""] if subject else [f"::: dlrm_mtl.{name}", ""]
    return "\n".join(lines)


def configuration() -> str:
    """Every key of a configuration file, by section."""
    schema = json.loads(json_schema())
    sections = {"Configuration": schema, **schema.get("$defs", {})}
    lines = ["# Configuration", "", "`dlrm-mtl config schema` prints the same as a JSON schema, for editors.", ""]
    for title, section in sections.items():
        if "properties" not in section:
            continue
        heading = section["properties"].get("name", {}).get("const") or title
        lines += [f"## {heading}", "", section.get("description", "").replace("``", "`"), ""]
        lines += ["| key | type | default | |", "| --- | --- | --- | --- |"]
        for key, value in section["properties"].items():
            default = "required" if key in section.get("required", []) else _cell(repr(value.get("default", "none")))
            lines.append(
                f"| `{key}` | {_type(value)} | {default} | {_cell(value.get('description', ''), code=False)} |"
            )
        lines.append("")
    return "\n".join(lines)


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return value["$ref"].rpartition("/")[2]
    if "const" in value:
        return _cell(repr(value["const"]))
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "anyOf" in value or "oneOf" in value:
        kinds = dict.fromkeys(_type(choice) for choice in value.get("anyOf", value.get("oneOf", [])))
        return _cell(" or ".join(kinds), code=False) if len(kinds) < 6 else "a part, by name or with options"
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}))}"
    return str(value.get("type", "any"))


def _cell(text: str, code: bool = True) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    if len(flat) > 60 and code:
        return "see there"
    return f"`{flat}`" if code else flat
