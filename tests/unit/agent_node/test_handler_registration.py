"""The agent registers the handler: what it writes, what it refuses to do, and that it puts everything back."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from migration_agent.containerd_config import handler_problems
from migration_agent.handler_registration import HEADER, HandlerRegistration
from support.fake_host import Call, FakeHost, fails, write

CRI = "io.containerd.cri.v1.runtime"
MAIN = f"""version = 3
[plugins."{CRI}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = "/etc/containerd/cri-base.json"
  [plugins."{CRI}".containerd.runtimes.runc.options]
    SystemdCgroup = true
"""
UNIT = "ExecStart={ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd ; ignore_errors=no }"
DROP_IN = "/etc/containerd/conf.d/container-migration.toml"


def merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    both = {k: merged(a[k], b[k]) if isinstance(b[k], dict) and k in a else b[k] for k in b}
    return {**a, **both}


@dataclass
class Node:
    """A node whose containerd merges files as the real one does: tables into tables."""

    root: Path
    unit: str = UNIT
    plugins: str = "io.containerd.grpc.v1                     cri                       -              ok\n"
    merge: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = merged
    restart: Callable[[], None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        self.host = FakeHost(self.root, answer=self._answer)
        self.state = self.root / "state"
        self.state.mkdir(exist_ok=True)

    def file(self, path: str) -> Path:
        return self.host.host_file(path)

    def configure(self, text: str = MAIN) -> None:
        write(self.file("/etc/containerd/config.toml"), text)

    def ensure(self) -> str | None:
        """As a new life of the agent does."""
        return HandlerRegistration(self.host, self.state).ensure()

    @property
    def restarts(self) -> int:
        return sum(call.argv[:2] == ("systemctl", "restart") for call in self.host.calls)

    def files(self) -> dict[str, str]:
        below = self.file("/etc/containerd")
        return {str(path.relative_to(below)): path.read_text() for path in below.rglob("*") if path.is_file()}

    def _answer(self, call: Call) -> str:
        match call.argv:
            case ("systemctl", "show", *_):
                return self.unit
            case ("/usr/bin/containerd", "--config", "/etc/containerd/config.toml", "config", "dump"):
                return self._dump(call)
            case ("ctr", *_):
                return self.plugins
            case ("systemctl", "restart", "containerd"):
                self.restart()
                return ""
            case _:
                raise AssertionError(call)

    def _dump(self, call: Call) -> str:
        main = tomllib.loads(self.file("/etc/containerd/config.toml").read_text())
        whole = main
        for path in main.get("imports", []):
            for file in sorted(self.file("/").glob(str(path).lstrip("/"))):
                try:
                    whole = self.merge(whole, tomllib.loads(file.read_text()))
                except ValueError as error:
                    raise fails(call, str(error)) from error
        return as_toml(whole)


def as_toml(table: dict[str, Any], path: str = "") -> str:
    tables = {key: cast("dict[str, Any]", value) for key, value in table.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if key not in tables]
    text = "\n".join([*([f"[{path}]"] if path else []), *lines, ""])
    return text + "".join(as_toml(value, f"{path}.'{key}'".lstrip(".")) for key, value in tables.items())


@pytest.fixture
def node(tmp_path: Path) -> Node:
    it = Node(tmp_path)
    it.configure()
    return it


def test_a_drop_in_and_one_line_when_nothing_is_imported(node: Node) -> None:
    assert handler_problems(node.host)
    assert node.ensure() is None
    assert handler_problems(node.host) == ()
    assert node.restarts == 1
    first, rest = node.file("/etc/containerd/config.toml").read_text().split("\n", 1)
    assert first == f'imports = ["{DROP_IN}"]  # added by the node agent of container-migration'
    assert rest == MAIN
    handler = tomllib.loads(node.file(DROP_IN).read_text())["plugins"][CRI]["containerd"]["runtimes"]["migratable"]
    assert handler == {
        "runtime_type": "io.containerd.runc.v2",
        "base_runtime_spec": "/etc/containerd/cri-base.json",
        "pod_annotations": ["containermigration.io/*"],
        "options": {"BinaryName": "/opt/container-migration/bin/runc-migratable", "SystemdCgroup": True},
    }
    assert node.ensure() is None
    assert node.restarts == 1, "what is right is left alone"


@pytest.mark.parametrize("imports", ["/etc/containerd/conf.d/*.toml", "/opt/containerd/*.toml"])
def test_only_a_drop_in_where_a_directory_is_imported(node: Node, imports: str) -> None:
    text = f'imports = ["{imports}"]\n{MAIN}'
    node.configure(text)
    assert node.ensure() is None
    assert node.file("/etc/containerd/config.toml").read_text() == text
    assert node.file(imports.replace("*", "container-migration")).read_text().startswith(HEADER)
    assert handler_problems(node.host) == ()


def test_its_own_drop_in_follows_the_runc_handler(node: Node) -> None:
    assert node.ensure() is None
    main = node.file("/etc/containerd/config.toml")
    main.write_text(main.read_text().replace("SystemdCgroup = true", "SystemdCgroup = false"))
    assert "SystemdCgroup" in handler_problems(node.host)[0]
    assert node.ensure() is None
    assert handler_problems(node.host) == ()
    assert node.restarts == 2
    assert main.read_text().count("imports") == 1


def test_an_admins_own_handler_is_not_touched(node: Node) -> None:
    text = f'{MAIN}[plugins."{CRI}".containerd.runtimes.migratable]\n  runtime_type = "other"\n'
    node.configure(text)
    assert node.ensure() is None
    assert handler_problems(node.host), "but it is said that it is wrong"
    assert node.files() == {"config.toml": text}
    assert node.restarts == 0


def test_a_containerd_that_replaces_whole_sections_is_left_alone(node: Node) -> None:
    node.merge = lambda a, b: {**a, **b}
    before = node.files()
    assert "would lose other settings" in str(node.ensure())
    assert node.files() == before
    assert node.restarts == 0


def break_unit(node: Node) -> None:
    node.unit = "ExecStart={ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd --config /etc/k3s/c.toml ; }"


def break_no_unit(node: Node) -> None:
    node.unit = "ExecStart="


def break_imports(node: Node) -> None:
    node.configure(f'imports = ["/etc/containerd/one.toml"]\n{MAIN}')


def break_link(node: Node) -> None:
    main = node.file("/etc/containerd/config.toml")
    main.rename(main.with_name("real.toml"))
    main.symlink_to("real.toml")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_unit, "/etc/k3s/c.toml, not /etc/containerd/config.toml"),
        (break_no_unit, "no unit containerd"),
        (break_imports, "do not name /etc/containerd/conf.d"),
        (break_link, "not a plain file"),
    ],
)
def test_what_is_not_understood_is_left_alone(node: Node, spoil: Callable[[Node], None], message: str) -> None:
    spoil(node)
    before = node.files()
    assert message in str(node.ensure())
    assert node.files() == before
    assert node.restarts == 0


def test_what_does_not_come_up_is_put_back_and_not_tried_again(node: Node) -> None:
    before = node.files()
    node.plugins = "io.containerd.grpc.v1                     cri                       -              error\n"
    assert "CRI plugin did not come up" in str(node.ensure())
    assert node.files() == before
    assert node.restarts == 2, "once with the drop-in, once without"
    assert "CRI plugin did not come up" in str(node.ensure())
    assert node.restarts == 2, "not again: nothing has changed"
    node.configure(MAIN + "\nroot = '/var/lib/containerd'\n".replace("root", "[debug]\nlevel"))
    node.plugins = "io.containerd.grpc.v1   cri   -   ok\n"
    assert node.ensure() is None
    assert handler_problems(node.host) == ()


def test_a_life_that_ended_before_the_restart_is_made_up_for(node: Node) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    node.restart = killed
    with pytest.raises(KeyboardInterrupt):
        node.ensure()
    assert handler_problems(node.host) == (), "on disk all is there, but containerd has not read it"
    node.restart = lambda: None
    assert node.ensure() is None
    assert node.restarts == 2
    assert node.ensure() is None
    assert node.restarts == 2


@pytest.mark.parametrize("act", range(6), ids=["note", "drop-in", "main", "dump", "restart", "list"])
def test_killed_anywhere_the_next_life_makes_it_whole(node: Node, monkeypatch: pytest.MonkeyPatch, act: int) -> None:
    """Three files are written, then three commands are run; containerd must read what lies there in the end."""
    left = [act]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                left[0] -= 1
                raise KeyboardInterrupt
            left[0] -= 1
            return call(*args, **kwargs)

        return counting

    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    answer = node.host.answer
    first = [True]

    def killed(call: Call) -> str:
        if call.argv[:2] == ("systemctl", "show") or (call.argv[-1] == "dump" and first[0]):
            first[0] = first[0] and call.argv[-1] != "dump"
            return answer(call)
        return counted(answer)(call)

    node.host.answer = killed
    with pytest.raises(KeyboardInterrupt):
        node.ensure()
    node.host.answer = answer
    node.host.calls.clear()
    assert node.ensure() is None
    assert handler_problems(node.host) == ()
    assert node.file("/etc/containerd/config.toml").read_text().count("imports") == 1
    assert node.restarts == 1, "containerd has not read what lies there"
    assert node.ensure() is None
    assert node.restarts == 1


def test_what_an_admin_has_changed_since_is_not_put_back(node: Node) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    node.restart = killed
    with pytest.raises(KeyboardInterrupt):
        node.ensure()
    main = node.file("/etc/containerd/config.toml")
    main.write_text(main.read_text() + "# the admin's\n")
    node.restart = lambda: None
    assert node.ensure() is None
    assert "# the admin's" in main.read_text()
    assert handler_problems(node.host) == ()
    assert node.restarts == 2
