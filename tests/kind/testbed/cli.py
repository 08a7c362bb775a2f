"""The verbs of `cluster`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from . import debian, engine, gobuild, host, images, kindcluster, loading, status
from .places import Cluster, cache, lock
from .progress import step

DEFAULT_NAME = "ctrmig"
VERBATIM = ("kubectl", "helm")
"""Verbs whose arguments belong to the tool, options and all."""


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(guarded(arguments))
    try:
        options.verb(Cluster(options.name), options)
    except host.TestbedError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def guarded(arguments: Sequence[str]) -> list[str]:
    """Puts `--` behind a verbatim verb, so that argparse takes none of the options that follow for its own."""
    named = 2 if arguments[:1] == ["--name"] else len([word for word in arguments[:1] if word.startswith("--name=")])
    verb = arguments[named : named + 1]
    separator = ["--"] if verb and verb[0] in VERBATIM else []
    return [*arguments[: named + 1], *separator, *arguments[named + 1 :]]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="cluster", description="A kind cluster where no image can be pulled.")
    top.add_argument("--name", default=DEFAULT_NAME, help="the cluster's name (default: %(default)s)")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[Cluster, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, add_help=name not in VERBATIM, prefix_chars="-")
        added.set_defaults(verb=run)
        return added

    verb("up", up, "bring the cluster up; does nothing to one that runs")
    verb("down", down, "remove the cluster and everything it put on this machine, but the cache")
    verb("status", show_status, "nodes, versions, and the work-arounds in force")
    verb("env", environment, "print `export` lines for eval")
    for name in VERBATIM:
        add_rest(verb(name, tool_inside, f"run {name} against the cluster")).set_defaults(tool=name)
    node = verb("node", node_command, "run a command in a node: node worker -- CMD...")
    node.add_argument("node", help="a node's name, or its end: control-plane, worker, worker2")
    add_rest(node)
    add_rest(verb("exec", execute, "run a command in the cluster's network namespace: exec -- CMD..."))
    tool = verb("tool", run_tool, "run a built tool on this machine, without a cluster: tool helm template ...")
    tool.add_argument("--path", action="store_true", help="print where it is instead")
    tool.add_argument("tool")
    add_rest(tool)
    build = verb("build", build_images, "build images where their inputs have changed")
    build.add_argument("images", nargs="+", choices=[*images.names(), "all"], metavar="NAME|all")
    load = verb("load", load_images, "load images into every node that has not got them")
    load.add_argument("images", nargs="+", metavar="IMAGE", help="a built image's name, or a docker or OCI archive")
    return top


def add_rest(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
    added.add_argument("rest", nargs=argparse.REMAINDER, metavar="...")
    return added


def up(cluster: Cluster, _: argparse.Namespace) -> None:
    debian.require_host()
    with one_at_a_time(cluster):
        kindcluster.up(cluster)


def down(cluster: Cluster, _: argparse.Namespace) -> None:
    debian.require_root()
    with one_at_a_time(cluster), step(f"removing cluster {cluster.name}"):
        engine.stop(cluster)


def one_at_a_time(cluster: Cluster) -> AbstractContextManager[None]:
    return lock(cache("locks", f"cluster-{cluster.name}"))


def show_status(cluster: Cluster, _: argparse.Namespace) -> None:
    print(status.report(cluster))


def environment(cluster: Cluster, _: argparse.Namespace) -> None:
    """PATH is extended, not replaced, so that the lines stay valid when the caller's PATH changes."""
    require_up(cluster)
    for key, value in {**kindcluster.environment(cluster), "PATH": f"{cluster.tools}:$PATH"}.items():
        print(f'export {key}="{value}"')


def tool_inside(cluster: Cluster, options: argparse.Namespace) -> None:
    become_inside(cluster, [options.tool, *rest_of(options)])


def execute(cluster: Cluster, options: argparse.Namespace) -> None:
    become_inside(cluster, command_of(options))


def become_inside(cluster: Cluster, command: list[str]) -> None:
    require_up(cluster)
    host.replace_process(engine.inside(cluster, *command), env=kindcluster.environment(cluster))


def node_command(cluster: Cluster, options: argparse.Namespace) -> None:
    require_up(cluster)
    wanted = [node for node in cluster.nodes if options.node in (node, node.removeprefix(f"{cluster.name}-"))]
    if not wanted:
        raise host.TestbedError(f"There is no node {options.node!r}; there are: {', '.join(cluster.nodes)}.")
    terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    command = ["docker", "exec", "-i", *terminal, wanted[0], *command_of(options)]
    host.replace_process(command, env=engine.environment(cluster))


def command_of(options: argparse.Namespace) -> list[str]:
    command = rest_of(options)
    if not command:
        raise host.TestbedError("Which command? Give it after `--`.")
    return command


def rest_of(options: argparse.Namespace) -> list[str]:
    rest: list[str] = options.rest
    return rest[1:] if rest[:1] == ["--"] else rest


def run_tool(_: Cluster, options: argparse.Namespace) -> None:
    path = str(gobuild.tool(options.tool))
    if options.path:
        print(path)
    else:
        host.replace_process([path, *options.rest], env={})


def build_images(_: Cluster, options: argparse.Namespace) -> None:
    debian.require_host()
    with lock(cache("locks", "images")):
        for name in images.names() if "all" in options.images else options.images:
            images.build(name)


def load_images(cluster: Cluster, options: argparse.Namespace) -> None:
    require_up(cluster)
    with lock(cache("locks", "images")):
        for image in options.images:
            loading.load(cluster, image)


def require_up(cluster: Cluster) -> None:
    """A cheap check: tests run kubectl a thousand times."""
    if not (cluster.created.exists() and cluster.socket.is_socket()):
        raise host.TestbedError(f"Cluster {cluster.name} is not up: run `cluster up` (as root).")
