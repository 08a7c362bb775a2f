"""What can stand against a migration before anything is touched, with what each means and what to do: their one home.

docs/conditions.md is generated from this module, too.
"""

from __future__ import annotations

from migration_api.conditions import Explained, explained


class PreflightReason(Explained):
    """What can stand against a migration before anything is touched."""

    POD_NOT_FOUND = explained(
        "PodNotFound",
        "There is no pod of that name in the namespace of the ContainerMigration.",
        "correct spec.podName, or create the ContainerMigration in the pod's namespace",
    )
    POD_REPLACED = explained(
        "PodReplaced",
        "The pod of that name is another one than `spec.podUID` pins.",
        "create a new ContainerMigration for the pod of today",
    )
    POD_NOT_RUNNING = explained(
        "PodNotRunning",
        "The pod, or one of its containers, does not run.",
        "wait until the pod runs, then create a new ContainerMigration",
    )
    POD_OWNED = explained(
        "PodOwned",
        "A controller owns the pod and would not accept another one in its place.",
        "move a pod of a Deployment or StatefulSet, or one without a controller; others cannot be moved yet",
    )
    CHECKPOINT_NOT_FOUND = explained(
        "CheckpointNotFound",
        "There is no ContainerCheckpoint of that name in the namespace of the ContainerMigration.",
        "correct spec.checkpointName (kubectl get ccp)",
    )
    CHECKPOINT_NOT_READY = explained(
        "CheckpointNotReady",
        "The ContainerCheckpoint is not Ready, is being deleted, or holds no description of its pod.",
        "wait until it is Ready (kubectl wait --for=condition=Ready ccp/NAME), or choose another one",
    )
    CHECKPOINT_KEY_UNUSABLE = explained(
        "CheckpointKeyUnusable",
        "The Secret with the checkpoint's key is missing or is not what it must be.",
        "create it anew from your copy, as docs/checkpoints.md says; without the key nobody can read the checkpoint",
    )
    CONTAINER_NOT_FOUND = explained(
        "ContainerNotFound",
        "`spec.containers` names a container that the pod does not have.",
        "correct spec.containers, or leave it out to move all",
    )
    POST_START_HOOK = explained(
        "PostStartHook",
        "A container that `spec.containers` leaves out has a postStart hook, which would run before the commit; or the "
        "pod is of a StatefulSet, whose new pod would run it once more.",
        "move it too, or make it the pod's last container; of a StatefulSet, do without the hook",
    )
    PRIVILEGED_INIT_CONTAINER = explained(
        "PrivilegedInitContainer",
        "An init container may have changed the pod's network (iptables of a service mesh, sysctls), which does not "
        "move, and init containers do not run again.",
        "let the node do it (the mesh's CNI plugin), or move a pod without such an init container",
    )
    EPHEMERAL_CONTAINERS = explained(
        "EphemeralContainers",
        "Somebody attached ephemeral containers (kubectl debug); no new pod can be created with them.",
        "they stay for the life of the pod: move a pod that was not debugged, or recreate it first",
    )
    SIDECAR_WITH_PROBES = explained(
        "SidecarWithProbes",
        "A native sidecar has a startup or liveness probe, which the kubelet would run against a frozen process.",
        "remove the sidecar's startup and liveness probes",
    )
    HOST_NAMESPACE = explained(
        "HostNamespace",
        "The pod shares the node's network, PID or IPC namespace: it is tied to its node.",
        "run the pod in namespaces of its own",
    )
    SHARED_PID_NAMESPACE = explained(
        "SharedPIDNamespace",
        "The pod's containers share one PID namespace, which cannot be rebuilt container by container.",
        "set shareProcessNamespace to false",
    )
    VOLUME_CANNOT_MOVE = explained(
        "VolumeCannotMove",
        "A volume's data is on the source node only, or cannot be copied.",
        "keep the data in memory, in an emptyDir volume, or in a claim that many nodes can mount (ReadWriteMany)",
    )
    SHARED_WRITERS = explained(
        "SharedWriters",
        "`spec.leaveSourceRunning` is set, and source and clone would write to the same claim, each as if it were "
        "alone.",
        "mount the claim read-only, keep what is written in an emptyDir volume, of which the clone gets a copy, or "
        "move the pod instead",
    )
    HOSTS_FILE_MOUNTED = explained(
        "HostsFileMounted",
        "The pod mounts its own /etc/hosts, so a frozen source could not be kept from being started again.",
        "use hostAliases instead",
    )
    RUNTIME_CLASS = explained(
        "RuntimeClassUnsupported",
        "The pod has another RuntimeClass than none or `migratable`.",
        "run the pod with the default runtime (runc) or the RuntimeClass migratable",
    )
    CONNECTIONS_OPEN = explained(
        "ConnectionsOpen",
        "The pod has TCP connections with others, and `spec.tcpConnections` is Refuse.",
        "wait until its clients are gone, or let them be closed: set spec.tcpConnections to Close",
    )
    ALREADY_MIGRATING = explained(
        "AlreadyMigrating",
        "Another migration moves the same pod.",
        "wait for its end, or cancel it",
    )
    TARGET_IS_SOURCE = explained(
        "TargetIsSource",
        "The pod already runs on the node that was asked for.",
        "name another node, or leave spec.target.nodeName out",
    )
    TARGET_NODE_NOT_FOUND = explained(
        "TargetNodeNotFound",
        "There is no node of that name.",
        "correct spec.target.nodeName (kubectl get nodes)",
    )
    TARGET_NAME_TAKEN = explained(
        "TargetNameTaken",
        "Another pod has the name that the target pod should get.",
        "set spec.target.podName to a free name, or leave it out",
    )
    TARGET_NODE_UNFIT = explained(
        "TargetNodeUnfit",
        "The pod that the StatefulSet creates again could not be scheduled to the target node, or its claims not be "
        "mounted there.",
        "choose another node, or change what keeps the pod from it",
    )
    NODE_NOT_READY = explained(
        "NodeNotReady",
        "The source or target node is not Ready, or the target is cordoned.",
        "repair or uncordon the node, or choose another target",
    )
    NODE_NOT_CAPABLE = explained(
        "NodeNotCapable",
        "The node's agent is missing, silent, or reports what the node lacks.",
        "do what the agent reports (kubectl get migrationnodes -o wide), or choose another node",
    )
    NO_SUITABLE_NODE = explained(
        "NoSuitableNode",
        "No target was named, and no other node could take the pod.",
        "make one of these nodes fit",
    )
    CPU_MISMATCH = explained(
        "CPUMismatch",
        "The target's CPU lacks features of the source's: the process may use instructions that are not there.",
        "choose a node whose CPU has at least the same features",
    )
    KERNEL_MISMATCH = explained(
        "KernelMismatch",
        "The target's kernel lacks features for restoring that the source's has.",
        "choose a node whose kernel is as able, or update the target's kernel",
    )
    CRIU_MISMATCH = explained(
        "CRIUMismatch",
        "Source and target have different versions of CRIU.",
        "wait until the agents on both nodes have the same version",
    )
    NO_ROOM = explained(
        "NoRoom",
        "The checkpoint may be larger than the room for it on a node: in its memory (/run/container-migration/images) "
        "and, where that is allowed, on its disk.",
        "free memory or disk of that node, or choose another node",
    )
    PATH_NOT_ALLOWED = explained(
        "PathNotAllowed",
        "The shared volume's path is not one that the cluster's admin allows: agents may write anywhere on a node.",
        "choose an allowed path, or add it to the chart's value transport.sharedVolume.allowedPaths",
    )
    CLAIM_NOT_FOUND = explained(
        "ClaimNotFound",
        "There is no PersistentVolumeClaim of the name that `sharedVolume.claim` gives in the namespace of the "
        "ContainerMigration, or it is being deleted.",
        "create it there, or correct sharedVolume.claim",
    )
    CLAIM_NOT_SHARED = explained(
        "ClaimNotShared",
        "Source and target could not mount the claim that `sharedVolume.claim` names at the same time.",
        "choose a claim with the access mode ReadWriteMany and the volume mode Filesystem, or another transport",
    )
    CLAIM_NOT_MOUNTED = explained(
        "ClaimNotMounted",
        "The pod that mounts the claim on a node did not get ready; the message has its own reason.",
        "remove that cause, or choose another node or transport",
    )
    ENDPOINT_NOT_ALLOWED = explained(
        "EndpointNotAllowed",
        "The object store's endpoint is not one that the cluster's admin allows agents to be led to.",
        "leave it out for the provider's own, or add it to the chart's value transport.objectStore.allowedEndpoints",
    )
    STORE_SECRET_NOT_FOUND = explained(
        "StoreSecretNotFound",
        "There is no Secret of the name that `secretRef` gives in the namespace of the ContainerMigration.",
        "create it there, with the type containermigration.io/object-store, or correct secretRef.name",
    )
    STORE_SECRET_INVALID = explained(
        "StoreSecretInvalid",
        "The Secret that `secretRef` names has another type, or lacks a key.",
        "create it anew with the type containermigration.io/object-store and the keys that the bucket's kind needs "
        "(kubectl explain cmig.spec.transport.objectStore.secretRef)",
    )
    STORE_UNUSABLE = explained(
        "StoreUnusable",
        "A node tried the volume or bucket and could not put, fetch and remove there; the message says why.",
        "make it reachable and writable from that node, or choose another transport",
    )
    STORE_NOT_SHARED = explained(
        "StoreNotShared",
        "What the source's node put into the volume or bucket is not there for the target's: they do not see the same.",
        "mount the same volume at that path on both nodes, or choose another transport",
    )
    POST_COPY_NOT_POSSIBLE = explained(
        "PostCopyNotPossible",
        "The memory cannot follow the container: a node's kernel cannot fill it in later, or a network liveness probe "
        "would kill the frozen source before all of it has moved.",
        "use the strategy StopAndCopy, or remove what stands against it",
    )
    PRE_COPY_NOT_POSSIBLE = explained(
        "PreCopyNotPossible",
        "The memory cannot be filled in from the copy while the container runs: a node's kernel cannot do that.",
        "use the strategy StopAndCopy, or nodes with userfaultfd",
    )
    FREEZE_TOO_LONG = explained(
        "FreezeTooLong",
        "The container would stand still for longer than `spec.freezeBudgetSeconds` or its liveness probes allow.",
        "raise what limits it, if the workload tolerates that, or make the container smaller",
    )
    PODMAN_NAMESPACE = explained(
        "PodmanNamespace",
        "`spec.podman` is allowed only in the namespace that the operator runs in: containers that nodes run by "
        "themselves belong to no other.",
        "let a cluster admin create the ContainerMigration in the operator's namespace",
    )
    PODMAN_UNUSABLE = explained(
        "PodmanUnusable",
        "A node has no Podman, its Podman does not answer, or it finds no CRIU of the same version as the other's.",
        "install podman and the same release of criu on both nodes (the agent's own CRIU is not used by Podman)",
    )
    PODMAN_CONTAINER_NOT_FOUND = explained(
        "PodmanContainerNotFound",
        "root's Podman on that node has no container of that name or ID; those of other users are not seen.",
        "correct spec.podman (podman ps, as root, on that node)",
    )
    PODMAN_CONTAINER_NOT_RUNNING = explained(
        "PodmanContainerNotRunning",
        "The container does not run, or is paused.",
        "start or unpause it, then create a new ContainerMigration",
    )
    PODMAN_VOLUMES = explained(
        "PodmanVolumes",
        "The container has volumes, whose data is in the source node's Podman.",
        "keep the data in the container's root file system, /dev/shm or memory, or bind a directory into it that both "
        "nodes mount",
    )
    PODMAN_BIND_MISSING = explained(
        "PodmanBindMissing",
        "A file or directory that is mounted in the container is not on the target node.",
        "make it there, or mount the file system that holds it",
    )
    PODMAN_DEPENDENCIES = explained(
        "PodmanDependencies",
        "The container is in a Podman pod, or shares the namespaces of others.",
        "run it by itself",
    )
    PODMAN_STARTED_AGAIN = explained(
        "PodmanStartedAgain",
        "Podman or systemd would start the container again by itself, beside its moved copy.",
        "podman update --restart=no, or run it without a unit and without a health check that restarts it",
    )
    PODMAN_REMOVED = explained(
        "PodmanRemoved",
        "The container was started with --rm: stopped for its checkpoint it would be removed, and could not go back.",
        "run it without --rm",
    )
    PODMAN_NO_CGROUP = explained(
        "PodmanNoCgroup",
        "The container has no cgroup of its own, so nobody could be sure that all of it has ended.",
        "run it without --cgroups=disabled or split",
    )
    PODMAN_IMAGE_MISSING = explained(
        "PodmanImageMissing",
        "The target node's Podman does not have the container's image, or has another one under its name.",
        "podman pull the image on the target node, or podman save it on the source and podman load it there",
    )
    PODMAN_NAME_TAKEN = explained(
        "PodmanNameTaken",
        "The target node's Podman has a container of that name or ID already.",
        "podman rename or podman rm it, if it is not needed",
    )
    PODMAN_CONNECTIONS = explained(
        "PodmanConnections",
        "The container has TCP connections with others, which Podman can restore only under the same address.",
        "wait until its clients are gone, or end those connections",
    )
