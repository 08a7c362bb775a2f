from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from migration_agent.containerd_config import handler_problems
from migration_agent.host import Host
from support.fake_host import write

V2 = "io.containerd.grpc.v1.cri"
V3 = "io.containerd.cri.v1.runtime"


def runc(plugin: str, *, systemd: bool = True) -> str:
    return f"""
[plugins."{plugin}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."{plugin}".containerd.runtimes.runc.options]
    SystemdCgroup = {str(systemd).lower()}
"""


def handler(
    plugin: str,
    *,
    binary: str = "/opt/container-migration/bin/runc-migratable",
    annotations: str = '["containermigration.io/*"]',
    systemd: bool = True,
) -> str:
    return f"""
[plugins."{plugin}".containerd.runtimes.migratable]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = {annotations}
  [plugins."{plugin}".containerd.runtimes.migratable.options]
    BinaryName = "{binary}"
    SystemdCgroup = {str(systemd).lower()}
"""


def configure(tmp_path: Path, **files: str) -> Host:
    for name, text in files.items():
        write(tmp_path / "proc/1/root/etc/containerd" / name.replace("__", "/").replace("_", "."), text)
    return Host(tmp_path)


@pytest.mark.parametrize(("version", "plugin"), [(2, V2), (3, V3)])
def test_a_registered_handler_is_right(tmp_path: Path, version: int, plugin: str) -> None:
    host = configure(tmp_path, config_toml=f"version = {version}\n" + runc(plugin) + handler(plugin))
    assert handler_problems(host) == ()


@pytest.mark.parametrize("imports", ['["/etc/containerd/conf.d/*.toml"]', '["conf.d/*.toml"]'])
def test_a_drop_in_counts_only_when_it_is_imported(tmp_path: Path, imports: str) -> None:
    drop_in = f"version = 3\n{handler(V3)}"
    host = configure(tmp_path, config_toml=f"version = 3\n{runc(V3)}", conf_d__migratable_toml="x")
    write(host.host_file("/etc/containerd/conf.d/migratable.toml"), drop_in)
    assert "is not in containerd's configuration" in handler_problems(host)[0]
    configure(tmp_path, config_toml=f"version = 3\nimports = {imports}\n{runc(V3)}")
    assert handler_problems(host) == ()


@pytest.mark.parametrize(("version", "plugin"), [(2, V2), (3, V3)])
@pytest.mark.parametrize("systemd", [True, False])
def test_what_to_add_can_be_pasted(tmp_path: Path, version: int, plugin: str, systemd: bool) -> None:
    text = f"version = {version}\n" + runc(plugin, systemd=systemd)
    host = configure(tmp_path, config_toml=text)
    (sentence,) = handler_problems(host)
    pasted = text + sentence.partition("restart containerd:\n")[2]
    tomllib.loads(pasted)
    configure(tmp_path, config_toml=pasted)
    assert handler_problems(host) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (handler(V3, binary="/usr/bin/runc"), "options.BinaryName"),
        (handler(V3, annotations="[]"), r'pod_annotations = \["containermigration.io/\*"\]'),
        (handler(V3, systemd=False), "same options.SystemdCgroup"),
        ("imports = 3", "is not in containerd's configuration"),
        ("plugins = []", "is not in containerd's configuration"),
    ],
)
def test_every_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    plugins = "" if text.startswith("plugins") else runc(V3)
    host = configure(tmp_path, config_toml=f"version = 3\n{text}\n{plugins}")
    (sentence,) = handler_problems(host)
    assert re.search(message, sentence)


def test_a_missing_or_broken_file_is_said(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert "could not be read" in handler_problems(host)[0]
    configure(tmp_path, config_toml="not toml")
    assert "could not be read" in handler_problems(host)[0]


def test_files_that_import_each_other_are_read_once(tmp_path: Path) -> None:
    main = f'version = 3\nimports = ["other.toml"]\n{runc(V3)}'
    host = configure(tmp_path, config_toml=main, other_toml=f'imports = ["config.toml"]\n{handler(V3)}')
    assert handler_problems(host) == ()
