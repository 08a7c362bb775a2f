"""The names that appear in more than one part: API group, annotations, labels, accounts, paths on a node."""

GROUP = "containermigration.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

MIGRATIONS = "containermigrations"
CHECKPOINTS = "containercheckpoints"
NODES = "migrationnodes"

RUNTIME_HANDLER = "migratable"
"""The RuntimeClass of target pods and the name of the handler in the container runtime's configuration."""

ANNOTATION_MIGRATION = f"{GROUP}/migration"
"""On a target pod: the UID of its migration. The interposer starts no container of such a pod without permission."""

LABEL_MIGRATION = f"{GROUP}/migration-uid"
"""On a target pod, so that the operator finds it; the same value as the annotation."""

LABEL_CLONE = f"{GROUP}/clone"
"""On a clone, which has no label of its source: what a NetworkPolicy can select. Value: "true"."""

LABEL_MOUNT = f"{GROUP}/mount"
"""On a pod that does nothing but mount a claim on a node, for the node's agent. Value: "true"."""

ANNOTATION_MOUNT_NODE = f"{GROUP}/mount-node"
"""On such a pod: the node that it is for, also before it is scheduled."""

MOUNT_CONTAINER = "mount"
"""The container of such a pod."""

MOUNT_PATH = "/claim"
"""Where the claim is mounted in it."""

ANNOTATION_PLACEMENT = f"{GROUP}/original-placement"
"""On a target pod: where its first source pod was allowed to run, as JSON, so that no move narrows the next one."""

ANNOTATION_OWNER = f"{GROUP}/owner"
"""On a target pod: by what its source's ReplicaSet knows its pods, as JSON; it is handed over in the end."""

LABEL_REVISION = "controller-revision-hash"
"""On a pod of a StatefulSet: the revision of the template that it was made from."""

LABEL_POD_NAME = "statefulset.kubernetes.io/pod-name"
"""On a pod of a StatefulSet: its name."""

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""The taint by which an admin says that a node is off; Kubernetes gives its pods up then."""

FINALIZER = f"{GROUP}/migration"
"""On a ContainerMigration from before anything is touched until nothing is left to do."""

CHECKPOINT_FINALIZER = f"{GROUP}/checkpoint"
"""On a ContainerCheckpoint until what is stored of it is removed."""

LABEL_TARGET_NODE = f"{GROUP}/target"
"""On a node whose agent reports everything in order; the RuntimeClass's scheduling selector. Value: "true"."""

AGENT_AUDIENCE = "container-migration-agent"
"""The audience of the token that the operator shows to agents."""

NODE_NAME_CLAIM = "authentication.kubernetes.io/node-name"
"""Extra user info of a token bound to a pod: the node that the pod runs on."""

INSTALL_DIR = "/opt/container-migration"
STATE_DIR = "/var/lib/container-migration"
RUN_DIR = "/run/container-migration"
IMAGES_DIR = f"{RUN_DIR}/images"
