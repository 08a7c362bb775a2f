"""The one module that runs commands on the host."""

import os
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

ERROR_TAIL = 30
"""Lines of a failed command's output that are worth showing."""


class TestbedError(Exception):
    """What went wrong, as a sentence for the person at the terminal."""

    __test__ = False  # pytest: the name begins with Test, it is none


class CommandError(TestbedError):
    """A command exited non-zero."""

    def __init__(self, argv: Sequence[str], code: int, output: str) -> None:
        words = argv[len(contained()) :] if list(argv[:1]) == contained()[:1] else argv
        said = tail(output)
        super().__init__(f"`{' '.join(words)}` exited with {code}" + (f":\n{said}" if said else ""))
        self.code = code
        self.output = output


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | IO[bytes] | None = None,
) -> str:
    """Runs a command to its end and returns its standard output; raises CommandError with the tail of both outputs."""
    text = stdin.encode() if isinstance(stdin, str) else None
    source = subprocess.PIPE if isinstance(stdin, str) else stdin or subprocess.DEVNULL
    pipe_end = subprocess.PIPE
    try:
        process = subprocess.Popen(argv, stdin=source, stdout=pipe_end, stderr=pipe_end, env=merged(env), cwd=cwd)
    except FileNotFoundError as error:
        raise TestbedError(f"`{argv[0]}` cannot be run: {error.filename} does not exist.") from error
    with process:
        stdout, stderr = process.communicate(text)
    if process.returncode:
        raise CommandError(argv, process.returncode, (stdout + stderr).decode(errors="replace"))
    return stdout.decode(errors="replace")


def contained(*argv: str) -> list[str]:
    """The command such that its mounts and all its descendants end with it, and it with us, however we end."""
    return [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL", "--"),
        *argv,
    ]


def tail(text: str, lines: int = ERROR_TAIL) -> str:
    """The last lines, indented, for a message."""
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-lines:])


def succeeds(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> bool:
    """Whether a command exits with 0; its output is of no interest."""
    try:
        run(argv, env=env)
    except CommandError:
        return False
    return True


def pipe(*stages: Sequence[str], env: Mapping[str, str] | None = None, output: Path | None = None) -> None:
    """Runs `a | b | c`; any stage's failure is the pipeline's. The last stage's output goes to `output` or nowhere."""
    with open_output(output) as sink:
        processes: list[tuple[Sequence[str], subprocess.Popen[bytes]]] = []
        upstream: IO[bytes] | int = subprocess.DEVNULL
        for position, argv in enumerate(stages, start=1):
            last = position == len(stages)
            stdout = sink if last else subprocess.PIPE
            process = subprocess.Popen(argv, stdin=upstream, stdout=stdout, env=merged(env))
            if not isinstance(upstream, int):
                upstream.close()  # only the child holds it now, so an early exit downstream reaches the producer
            upstream = process.stdout if process.stdout is not None else subprocess.DEVNULL
            processes.append((argv, process))
        codes = [(argv, process.wait()) for argv, process in processes]
    for argv, code in reversed(codes):
        if code:
            raise CommandError(argv, code, "")


@contextmanager
def open_output(path: Path | None) -> Generator[IO[bytes] | int]:
    if path is None:
        yield subprocess.DEVNULL
        return
    with path.open("wb") as file:
        yield file


def replace_process(argv: Sequence[str], *, env: Mapping[str, str]) -> NoReturn:
    """Becomes the command: its stdio, signals and exit code are the caller's."""
    os.execvpe(argv[0], list(argv), merged(env))  # noqa: S606 - no shell is the point


def merged(env: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(env or {})}
