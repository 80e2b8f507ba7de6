"""Golden descriptions of tools: what transformers makes of the functions in tests/tool_functions.py.

Needs ``pip install transformers jinja2``. Run it as

    python make_tools.py

It writes ``tool_schemas.json`` beside itself: by name, what ``transformers.utils.get_json_schema`` gives. That it
refuses what it should is checked on the way.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tool_functions import FUNCTIONS, REFUSED  # noqa: E402
from transformers.utils import get_json_schema  # noqa: E402
from transformers.utils.chat_template_utils import (  # noqa: E402
    DocstringParsingException,
    TypeHintParsingException,
)


def main() -> None:
    """Describe every function."""
    for function in REFUSED:
        try:
            get_json_schema(function)
        except (DocstringParsingException, TypeHintParsingException):
            continue
        raise ValueError(f"transformers describes {function.__name__}")
    schemas = {name: get_json_schema(function) for name, function in FUNCTIONS.items()}
    (HERE / "tool_schemas.json").write_text(json.dumps(schemas, indent=1) + "\n")


if __name__ == "__main__":
    main()
