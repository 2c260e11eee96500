"""The tables of README.md that the code has the words of: settings, errors.

`python -m ops.readme` writes them anew; `--check` says which differ, and ends with 1 then.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic_settings import BaseSettings

from supervisor import config, errors, settings
from supervisor.errors import CATALOGUE
from worker.job import sync

README = Path(__file__).parent.parent / "README.md"
_SECTION = re.compile(r"(<!-- made by ops/readme.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def of_settings() -> str:
    """Return the table of every setting, in the order of the models."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    models: tuple[type[BaseSettings], ...] = (settings.Settings, *sync.settings)  # type: ignore[attr-defined]
    for model in models:
        for variable, about in settings.variables(model).items():
            in_words = (about.json_schema_extra or {}).get("shown")
            default = in_words or (f"`{value}`" if (value := config.shown(about.default)) else "")
            lines.append(f"| `{variable}` | {default} | {_cell(str(about.description))} |")
    return "\n".join(lines)


def of_errors() -> str:
    """Return the table of every code: the supervisor's, then the sync's."""
    known: Mapping[str, tuple[str, str]] = errors.catalogue(["worker.job:sync"])
    lines = ["| code | what it means | what to do |", "| --- | --- | --- |"]
    first = [code for code in known if code in CATALOGUE]
    for code in [*first, *(code for code in known if code not in CATALOGUE)]:
        meaning, remedy = known[code]
        lines.append(f"| `{code}` | {_cell(meaning)} | {_cell(remedy)} |")
    return "\n".join(lines)


def made(text: str) -> str:
    """Return the README with the tables as they must be."""
    tables = {"settings": of_settings, "errors": of_errors}
    return _SECTION.sub(lambda found: f"{found[1]}{tables[found[2]]()}\n{found[3]}", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write, or check."""
    text = README.read_text(encoding="utf-8")
    new = made(text)
    if "--check" in sys.argv:
        before = text.splitlines()
        wrong = [line for line in new.splitlines() if line not in before]
        print("\n".join(wrong) or "README.md is as the code has it")
        return 1 if new != text else 0
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
