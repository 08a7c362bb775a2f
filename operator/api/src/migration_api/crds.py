"""Writes the CustomResourceDefinitions: `python -m migration_api.crds DIRECTORY`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

from migration_api.checkpoint import CheckpointSpec, CheckpointStatus
from migration_api.migration import MigrationSpec, MigrationStatus
from migration_api.names import CHECKPOINTS, GROUP, MIGRATIONS, NODES, VERSION
from migration_api.node import MigrationNodeStatus
from migration_api.structural import structural


def _rule(rule: str, message: str) -> dict[str, str]:
    return {"rule": rule, "message": message}


def write_once(*path: str) -> str:
    """Return a CEL transition rule for the root of the schema: once set, `path` keeps its value.

    It must stand at the root: at the level of `status`, a patch that removes the whole status is accepted by a real
    API server, and the register with it.
    """

    def has(root: str) -> str:
        return " && ".join(f"has({'.'.join((root, *path[: i + 1]))})" for i in range(len(path)))

    old, new = ".".join(("oldSelf", *path)), ".".join(("self", *path))
    return f"!({has('oldSelf')}) || ({has('self')} && {new} == {old})"


def _unchanged(path: str) -> str:
    new, old = f"self.{path}", f"oldSelf.{path}"
    return f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"


def _spec_is_immutable() -> list[dict[str, str]]:
    names = [field.alias or name for name, field in MigrationSpec.model_fields.items() if name != "cancel"]
    advice = "is immutable; delete the ContainerMigration and create another one (only spec.cancel can change)"
    rules = [_rule(_unchanged(f"spec.{name}"), f"spec.{name} {advice}") for name in names]
    undo = "!(has(oldSelf.spec.cancel) && oldSelf.spec.cancel) || (has(self.spec.cancel) && self.spec.cancel)"
    return [*rules, _rule(undo, "spec.cancel cannot be taken back")]


def _clone_has_a_name_of_its_own() -> dict[str, str]:
    clone = "has(self.spec.leaveSourceRunning) && self.spec.leaveSourceRunning"
    named = "has(self.spec.target) && has(self.spec.target.podName)"
    return _rule(
        f"!({clone} && {named}) || self.spec.target.podName != self.spec.podName",
        "with spec.leaveSourceRunning both pods stay: spec.target.podName must not be spec.podName; it can be left out",
    )


def _registers() -> list[dict[str, str]]:
    paths = [
        ("status", "decision"),
        ("status", "target", "outcome"),
        ("status", "source", "nodeName"),
        ("status", "source", "podUID"),
        ("status", "source", "revision"),
        ("status", "source", "checkpointUID"),
        ("status", "target", "nodeName"),
        ("status", "target", "podName"),
        ("status", "target", "podUID"),
    ]
    once = [_rule(write_once(*p), f"{'.'.join(p)} is write-once") for p in paths]
    committed = "has(self.status.decision) && self.status.decision == 'Commit'"
    outcome = f"!(has(self.status) && has(self.status.target) && has(self.status.target.outcome)) || ({committed})"
    return [*once, _rule(outcome, "status.target.outcome needs status.decision Commit"), _successor_is_known_late()]


def _successor_is_known_late() -> dict[str, str]:
    """Until it has resumed it may be deleted and created again, under another UID."""
    target = "has(self.status) && has(self.status.target)"
    both = "has(self.status.target.podName) && has(self.spec.podName)"
    named = f"{both} && self.status.target.podName == self.spec.podName"
    return _rule(
        f"!({target} && {named} && has(self.status.target.podUID)) || has(self.status.target.outcome)",
        "status.target.podUID of a pod that has its source's name needs status.target.outcome",
    )


def _crd(
    *,
    kind: str,
    plural: str,
    short: str,
    scope: str,
    description: str,
    schema: dict[str, Any],
    columns: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": {"description": description, "type": "object", **schema}},
                }
            ],
        },
    }


def _column(name: str, path: str, *, type_: str = "string", priority: int = 0, description: str = "") -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": type_, "jsonPath": path}
    if priority:
        column["priority"] = priority
    if description:
        column["description"] = description
    return column


_META = {
    "apiVersion": {"type": "string", "description": "The version of this schema."},
    "kind": {"type": "string", "description": "The kind of this object."},
    "metadata": {"type": "object"},
}
_AGE = _column("Age", ".metadata.creationTimestamp", type_="date")


def container_migration() -> dict[str, Any]:
    """Return the CRD of ContainerMigration."""
    return _crd(
        kind="ContainerMigration",
        plural=MIGRATIONS,
        short="cmig",
        scope="Namespaced",
        description="Moves a running container, with its memory, open files and file-system changes, to another node.",
        schema={
            "required": ["spec"],
            "properties": {
                **_META,
                "spec": structural(MigrationSpec),
                # Never equal to a generation: kstatus would take an object without a status for one that is done.
                "status": {**structural(MigrationStatus), "default": {"observedGeneration": -1}},
            },
            "x-kubernetes-validations": [*_spec_is_immutable(), _clone_has_a_name_of_its_own(), *_registers()],
        },
        columns=[
            _column("Pod", ".spec.podName"),
            _column("Checkpoint", ".spec.checkpointName", priority=1),
            _column("Podman", ".spec.podman.container", priority=1),
            _column("From", ".status.source.nodeName"),
            _column("To", ".status.target.nodeName"),
            _column("Phase", ".status.phase"),
            _column(
                "Freeze", ".status.timings.freezeSeconds", description="How long the container stood still, in seconds."
            ),
            _column("Message", ".status.message", priority=1),
            _AGE,
        ],
    )


def container_checkpoint() -> dict[str, Any]:
    """Return the CRD of ContainerCheckpoint."""
    ready = '.status.conditions[?(@.type=="Ready")]'
    names = [field.alias or name for name, field in CheckpointSpec.model_fields.items()]
    return _crd(
        kind="ContainerCheckpoint",
        plural=CHECKPOINTS,
        short="ccp",
        scope="Namespaced",
        description="A checkpoint of a container, with its memory, that lies in a volume or bucket.",
        schema={
            "required": ["spec"],
            "properties": {
                **_META,
                "spec": structural(CheckpointSpec),
                "status": {**structural(CheckpointStatus), "default": {"observedGeneration": -1}},
            },
            "x-kubernetes-validations": [
                _rule(_unchanged(f"spec.{name}"), f"spec.{name} is immutable") for name in names
            ],
        },
        columns=[
            _column("Pod", ".status.source.podName"),
            _column("Ready", f"{ready}.status"),
            _column("Bytes", ".status.sizeBytes", type_="integer"),
            _column("Taken", ".status.createdAt", type_="date"),
            _column("Store", ".spec.transport.type"),
            _column("Message", ".status.message", priority=1),
            _AGE,
        ],
    )


def migration_node() -> dict[str, Any]:
    """Return the CRD of MigrationNode."""
    ready = '.status.conditions[?(@.type=="Ready")]'
    return _crd(
        kind="MigrationNode",
        plural=NODES,
        short="mnode",
        scope="Cluster",
        description="A node as its migration agent sees it: whether it can take part, how to reach and trust it.",
        schema={"properties": {**_META, "status": structural(MigrationNodeStatus)}},
        columns=[
            _column("Ready", f"{ready}.status"),
            _column("CRIU", ".status.facts.criuVersion"),
            _column("Runtime", ".status.facts.runtime.version"),
            _column("Kernel", ".status.facts.kernelVersion"),
            _column("Message", f"{ready}.message", priority=1),
            _AGE,
        ],
    )


def _yaml(value: Any, indent: int = 0) -> str:
    """Return block YAML whose scalars are JSON: valid YAML, and readable in a diff, without a YAML library here."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        fields = cast("dict[str, Any]", value).items()
        return "\n".join(f"{pad}{key}:{_nested(field, indent)}" for key, field in fields)
    if isinstance(value, list) and value:
        items = cast("list[Any]", value)
        return "\n".join(f"{pad}- {_yaml(item, indent + 1).lstrip()}" for item in items)
    return pad + json.dumps(value, ensure_ascii=False)


def _nested(value: Any, indent: int) -> str:
    if isinstance(value, (dict, list)) and value:
        return "\n" + _yaml(value, indent + 1)
    return " " + json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Write one YAML file per CRD into the directory given."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for crd in (container_migration(), container_checkpoint(), migration_node()):
        name = crd["metadata"]["name"]
        text = "# Generated by `make crds` from the models in operator/api; do not edit.\n" + _yaml(crd) + "\n"
        (directory / f"{name}.yaml").write_text(text)


if __name__ == "__main__":
    main()
