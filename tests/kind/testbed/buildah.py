"""The image builder and its store: buildah with chroot isolation, which needs neither a daemon nor namespaces."""

import os
from functools import cache as once
from pathlib import Path

from . import host
from .places import cache, scratch
from .progress import note

INPUTS_LABEL = "containermigration.io/inputs"

FROM_THE_HOST = ("SSL_CERT_FILE", "PIP_CERT", "PIP_INDEX_URL", "GOPROXY", "GONOSUMDB", "GOFLAGS")
"""Build arguments that say how this machine reaches the package registries; passed to Dockerfiles that declare them."""

MOUNTED = ("/etc/ssl/certs", "/etc/pip.conf")
"""The same for what is configured by files, mounted where SSL_CERT_FILE is declared: none of it gets into an image."""


def buildah(*arguments: str) -> str:
    return host.run(command(*arguments), env=environment())


def command(*arguments: str) -> list[str]:
    store = cache("buildah", "any").parent
    return ["buildah", "--root", f"{store}/storage", "--runroot", f"{store}/run", *arguments]


def environment() -> dict[str, str]:
    """Without a cluster's DOCKER_CONFIG, which whoever is in a cluster's environment has: nobody logs in anywhere, and
    buildah demands that the file is there."""
    return {"STORAGE_DRIVER": driver(), "BUILDAH_ISOLATION": "chroot", "DOCKER_CONFIG": ""}


@once
def driver() -> str:
    """overlay where the cache's file system takes it: vfs copies the whole root for every layer."""
    with scratch() as work:
        for name in ("lower", "upper", "work", "merged"):
            (work / name).mkdir()
        options = f"lowerdir={work}/lower,upperdir={work}/upper,workdir={work}/work"
        mount = host.contained("mount", "-t", "overlay", "overlay", "-o", options, f"{work}/merged")
        return "overlay" if host.succeeds(mount) else "vfs"


def image_id(tag: str) -> str | None:
    """The digest of the image's configuration, or None when it is not in the store."""
    try:
        return buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", tag).strip()
    except host.CommandError:
        return None


def inputs(tag: str) -> str | None:
    """The hash that the image was built from."""
    form = f'{{{{index .OCIv1.Config.Labels "{INPUTS_LABEL}"}}}}'
    try:
        return buildah("inspect", "--type", "image", "--format", form, tag).strip()
    except host.CommandError:
        return None


def build(tag: str, dockerfile: Path, context: Path, key: str) -> None:
    """Builds with the host's network and Go build cache, in Docker's format: its id survives the export."""
    options = ["--format", "docker", "--pull-never", "--layers", "--label", f"{INPUTS_LABEL}={key}"]
    options += [word for volume in volumes(dockerfile.read_text()) for word in ("--volume", volume)]
    options += [word for argument in arguments(dockerfile.read_text()) for word in ("--build-arg", argument)]
    bud = command("bud", *options, "--tag", tag, "--file", str(dockerfile), str(context))
    with scratch() as work:
        host.run(host.contained(*bud), env={**environment(), "TMPDIR": str(work)})
    forget_the_unnamed()


def forget_the_unnamed() -> None:
    """Remove what tags named before, and what killed builds left: with vfs every layer is a copy of the whole root.

    Whoever builds holds the lock of all images, so nobody works with it. What cannot be removed only takes room.
    """
    for arguments in (("rm", "--all"), ("rmi", "--prune")):
        if not host.succeeds(command(*arguments), env=environment()):
            note(f"the image store could not be tidied: buildah {' '.join(arguments)} failed")


def volumes(dockerfile: str) -> list[str]:
    """The mounts are read-only, so a Dockerfile whose packages write certificates must not ask for them."""
    go_cache = host.run(["go", "env", "GOCACHE"]).strip()
    asked = MOUNTED if "ARG SSL_CERT_FILE" in dockerfile else ()
    return [*(f"{path}:{path}:ro" for path in asked if Path(path).exists()), f"{go_cache}:/root/.cache/go-build"]


def arguments(dockerfile: str) -> list[str]:
    words = [line.split()[1].partition("=")[0] for line in dockerfile.splitlines() if line.startswith("ARG ")]
    return [
        f"{name}={os.environ[name]}" for name in dict.fromkeys(words) if name in FROM_THE_HOST and name in os.environ
    ]


def export(tag: str, archive: Path) -> None:
    """A docker archive with uncompressed layers: it is read at once, on this machine."""
    host.run(command("push", "--quiet", tag, f"docker-archive:{archive}:{tag}"), env=environment())
