"""The verbs of `cluster`."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from . import (
    engine,
    extras,
    gobuild,
    host,
    images,
    kindcluster,
    loading,
    removal,
    requirements,
    source,
    status,
    versions,
)
from .nodes import environment
from .places import Cluster, lock, recorded
from .plan import Plan
from .progress import step

DEFAULT_NAME = "ctrmig"
VERBATIM = ("kubectl", "helm")
"""Verbs whose arguments belong to the tool, options and all."""
EXTRAS = {"criu": extras.add_criu, "podman": extras.add_podman}


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(guarded(arguments))
    try:
        options.verb(recorded(options.name), options)
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
    top = argparse.ArgumentParser(prog="cluster", description="A kind cluster, also where no image can be pulled.")
    top.add_argument("--name", type=name, default=DEFAULT_NAME, help="the cluster's name (default: %(default)s)")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, run: Callable[[Cluster, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, add_help=name not in VERBATIM, prefix_chars="-")
        added.set_defaults(verb=run)
        return added

    add_up_options(verb("up", up, "bring the cluster up; reuses one that runs, when it is what was asked for"))
    verb("down", down, "remove the cluster and everything it put on this machine, but the cache")
    verb("status", show_status, "nodes, versions, and the work-arounds in force")
    verb("env", show_environment, "print `export` lines for eval")
    for tool in VERBATIM:
        add_rest(verb(tool, tool_inside, f"run {tool} against the cluster")).set_defaults(tool=tool)
    node = verb("node", node_command, "run a command in a node: node worker -- CMD...")
    node.add_argument("node", help="a node's name, or its end: control-plane, worker, worker2")
    add_rest(node)
    add_rest(verb("exec", execute, "run a command in the cluster's network: exec -- CMD..."))
    tool = verb("tool", run_tool, "run a built tool on this machine, without a cluster: tool helm template ...")
    tool.add_argument("--path", action="store_true", help="print where it is instead")
    tool.add_argument("tool")
    add_rest(tool)
    build = verb("build", build_images, "build images where their inputs have changed")
    build.add_argument("images", nargs="+", choices=[*images.names(), "all"], metavar="NAME|all")
    load = verb("load", load_images, "load images into every worker that has not got them")
    load.add_argument("--everywhere", action="store_true", help="into the control plane, too")
    load.add_argument("images", nargs="+", metavar="IMAGE", help="a built image's name, or a docker or OCI archive")
    add = verb("add", add_to_nodes, "put a tool into every node, for experiments: add criu, add podman")
    add.add_argument("extra", choices=EXTRAS)
    verb("s3", start_s3, "start an S3 server that nodes and pods reach; print its address and keys for eval")
    return top


def name(text: str) -> str:
    """It becomes the name of containers, folders and cgroups."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"{text!r}: small letters, digits and hyphens, at most 32")
    return text


def add_up_options(verb: argparse.ArgumentParser) -> None:
    default = Plan()
    verb.add_argument("--workers", type=int, choices=range(1, 10), default=default.workers, metavar="N", help="1 to 9")
    verb.add_argument(
        "--containerd", choices=versions.CONTAINERD, help=f"implies packages; default {default.containerd}"
    )
    verb.add_argument("--from-packages", action="store_true", help="use no engine of this machine, and pull nothing")
    verb.add_argument("--image", default="", help="with an engine that can pull: a node image other than kind's own")
    verb.add_argument("--with-criu", action="store_true", help="put CRIU into the nodes, as `add criu` does")


def add_rest(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
    added.add_argument("rest", nargs=argparse.REMAINDER, metavar="...")
    return added


def up(cluster: Cluster, options: argparse.Namespace) -> None:
    wishes = source.Wishes(options.workers, options.containerd, options.from_packages, options.image)
    if not requirements.is_root():
        source.require(wishes, running=False, packages=True)
    with one_at_a_time(cluster):
        kindcluster.up(recorded(cluster.name), wishes)
        if options.with_criu:
            extras.add_criu(recorded(cluster.name))


def down(cluster: Cluster, _: argparse.Namespace) -> None:
    requirements.require_root()
    with one_at_a_time(cluster), step(f"removing cluster {cluster.name}"):
        removal.remove(recorded(cluster.name))


def one_at_a_time(cluster: Cluster) -> AbstractContextManager[None]:
    return lock(f"cluster-{cluster.name}")


def show_status(cluster: Cluster, _: argparse.Namespace) -> None:
    print(status.report(cluster))


def show_environment(cluster: Cluster, _: argparse.Namespace) -> None:
    """PATH is extended, not replaced, so that the lines stay valid when the caller's PATH changes."""
    require_up(cluster)
    for key, value in {**environment(cluster), "PATH": f"{cluster.tools}:$PATH"}.items():
        print(f'export {key}="{value}"')


def tool_inside(cluster: Cluster, options: argparse.Namespace) -> None:
    become_inside(cluster, [options.tool, *rest_of(options)])


def execute(cluster: Cluster, options: argparse.Namespace) -> None:
    become_inside(cluster, command_of(options))


def become_inside(cluster: Cluster, command: list[str]) -> None:
    require_up(cluster)
    host.replace_process(engine.inside(cluster, *command), env=environment(cluster))


def node_command(cluster: Cluster, options: argparse.Namespace) -> None:
    require_up(cluster)
    wanted = [node for node in cluster.nodes if options.node in (node, node.removeprefix(f"{cluster.name}-"))]
    if not wanted:
        raise host.TestbedError(f"There is no node {options.node!r}; there are: {', '.join(cluster.nodes)}.")
    terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    command = engine.command(cluster, "exec", "-i", *terminal, wanted[0], *command_of(options))
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


def build_images(cluster: Cluster, options: argparse.Namespace) -> None:
    requirements.require_tools(packages=cluster.plan.is_private)
    with lock("images"):
        for image in images.names() if "all" in options.images else options.images:
            images.build(cluster, image)


def load_images(cluster: Cluster, options: argparse.Namespace) -> None:
    require_up(cluster)
    with lock("images"):
        for image in options.images:
            loading.load(cluster, image, cluster.nodes if options.everywhere else cluster.workers)


def add_to_nodes(cluster: Cluster, options: argparse.Namespace) -> None:
    require_up(cluster)
    with one_at_a_time(cluster), lock("prepare"):
        EXTRAS[options.extra](cluster)


def start_s3(cluster: Cluster, _: argparse.Namespace) -> None:
    require_up(cluster)
    with one_at_a_time(cluster), lock("prepare"):
        server = extras.s3(cluster)
    for key, value in server.variables().items():
        print(f'export {key}="{value}"')


def require_up(cluster: Cluster) -> None:
    """A cheap check: tests run kubectl a thousand times."""
    if not (cluster.created.exists() and (cluster.socket.is_socket() or not cluster.plan.is_private)):
        raise host.TestbedError(f"Cluster {cluster.name} is not up: run `cluster up` (as root).")
