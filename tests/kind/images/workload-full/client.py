"""Runs a shell command again and again, with the word NUMBER counted up, until FILE.stop is there.

Usage: client.py FILE COMMAND. FILE gets a line with each number for which it ended with 0, FILE.state in the end what
happened besides, as JSON: {"failed": N, "longest_gap_seconds": S}. Then it waits to be killed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

log, command = Path(sys.argv[1]), sys.argv[2]
n, failed, gap, last = 0, 0, 0.0, time.monotonic()
with log.open("w", buffering=1) as file:
    while not Path(f"{log}.stop").exists():
        n += 1
        words = ("bash", "-c", command.replace("NUMBER", str(n)))
        if subprocess.run(words, capture_output=True, check=False).returncode:
            failed += 1
            continue
        file.write(f"{n}\n")
        gap, last = max(gap, time.monotonic() - last), time.monotonic()
new = Path(f"{log}.new")
new.write_text(json.dumps({"failed": failed, "longest_gap_seconds": round(gap, 3)}))
new.rename(f"{log}.state")
signal.pause()
