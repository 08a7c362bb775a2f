"""Condition and reasons of a ContainerCheckpoint; docs/conditions.md is generated from this module, too."""

from __future__ import annotations

from migration_api.conditions import Explained, explained


class CheckpointCondition(Explained):
    """The conditions; `meaning`: what it says when it is True."""

    READY = explained("Ready", "The checkpoint lies complete in its store, and a pod can be made from it.")


class CheckpointReason(Explained):
    """Why `Ready` is as it is."""

    IN_PROGRESS = explained("InProgress", "The operator has not finished looking at what lies in the store.")
    COMPLETE = explained("Complete", "It is complete, and marked in its store as one that stays.")
    NOT_COMPLETE = explained(
        "NotComplete",
        "What lies in the store is no complete checkpoint, or its key does not open it; the message says what.",
        "Nothing can be restored from it: delete the ContainerCheckpoint.",
    )
    KEY_SECRET_NOT_FOUND = explained(
        "KeySecretNotFound",
        "The Secret with the checkpoint's key is not there.",
        "Create it anew from your copy (docs/checkpoints.md says how); without the key nobody can read the checkpoint.",
    )
    KEY_SECRET_INVALID = explained(
        "KeySecretInvalid",
        "The Secret with the checkpoint's key has another type or owner label, or holds no key of 32 bytes.",
        "Delete it and create it anew from your copy (docs/checkpoints.md says how).",
    )
    STORE_UNAVAILABLE = explained(
        "StoreUnavailable",
        "Volume or bucket cannot be reached, or no node's agent is there to do it; it is tried again.",
        "Do what the message says.",
    )
    TAKING = explained("Taking", "A running pod's checkpoint is being taken; the message says how far it is.")
    NOT_TAKEN = explained(
        "NotTaken",
        "No checkpoint was taken: something stood against it, or it failed. The pod runs on; the message says why.",
        "Do what the message says, then create another ContainerCheckpoint.",
    )
    REMOVING = explained("Removing", "The object is being deleted: what is stored is being removed.")
    NOT_REMOVED = explained(
        "NotRemoved",
        "The object was deleted, and what is stored could not be removed; the event says where it lies.",
        "Remove the directory or prefix by hand. Without the key, which is gone, nobody can read it.",
    )
