"""The whole program as one command."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path

_BEGIN = """
import base64, runpy, sys
file = "/var/tmp/everything.zip"
open(file, "wb").write(base64.b64decode(sys.argv[1]))
sys.path.insert(0, file)
runpy.run_module("support.everything", run_name="__main__")
"""


def packed() -> tuple[str, ...]:
    """Return the command that runs it with a Python 3 that has only its own library."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("support/__init__.py", "")
        for module in sorted(Path(__file__).parent.glob("*.py")):
            file.write(module, f"support/everything/{module.name}")
    return ("python3", "-c", _BEGIN, base64.b64encode(archive.getvalue()).decode())
