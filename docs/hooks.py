"""Pages of the site that are made from the code: the API, and the keys of a configuration; and the tutorial, a notebook."""

from __future__ import annotations

import inspect
import json
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
    """The names that the package exports, with signature and docstring."""
    lines = ["# API", "", "Everything here is imported from `dlrm_mtl`, and promised; see CONTRIBUTING.md.", ""]
    for name in sorted(dlrm_mtl.__all__, key=str.lower):
        value = getattr(dlrm_mtl, name)
        lines += [f"## {name}", ""]
        if callable(value):
            lines += ["```python", f"{name}{_signature(value)}", "```", ""]
        lines += [*_text(inspect.getdoc(value) or ""), ""]
        if inspect.isclass(value):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and not method.startswith("_") and inspect.getdoc(function):
                    lines += [f"**{method}**`{_signature(function)}`", "", *_text(inspect.getdoc(function) or ""), ""]
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
        lines += [f"## {heading}", "", *_text(section.get("description", "")), ""]
        lines += ["| key | type | default | |", "| --- | --- | --- | --- |"]
        for key, value in section["properties"].items():
            default = "required" if key in section.get("required", []) else _cell(repr(value.get("default", "none")))
            lines.append(
                f"| `{key}` | {_type(value)} | {default} | {_cell(value.get('description', ''), code=False)} |"
            )
        lines.append("")
    return "\n".join(lines)


def _signature(value: Any) -> str:
    try:
        return str(inspect.signature(value)).replace("'", "")
    except (TypeError, ValueError):
        return "(...)"


def _text(docstring: str) -> list[str]:
    """Markdown of a docstring: sections become bold, their entries a list."""
    result: list[str] = []
    for line in docstring.splitlines():
        if line.strip() in ("Args:", "Returns:", "Raises:", "Yields:"):
            result += ["", f"**{line.strip()[:-1]}**", ""]
        elif line.startswith("    ") and ": " in line and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            result.append(f"- `{name}`: {text}")
        else:
            result.append(line.strip() if line.startswith("     ") else line)
    return [line.replace("``", "`") for line in result]


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
