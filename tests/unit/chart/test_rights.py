"""Who may do what: RBAC as exact tables, and the admission policies' frame.

Whether the expressions decide rightly is tested on an API server: test_registers.py and test_reach.py in tests/e2e.
"""

from __future__ import annotations

import re

import pytest
import yaml

from migration_api import names
from support.chart import Helm, Manifest, Render, of_kind

OPERATOR_RIGHTS = {
    "containermigration.io/containermigrations": "delete get list patch watch",
    "containermigration.io/containermigrations/status": "get patch",
    "containermigration.io/containercheckpoints": "create delete get list patch watch",
    "containermigration.io/containercheckpoints/status": "get patch",
    "containermigration.io/migrationnodes": "get list watch",
    "/events": "create list",
    "/nodes": "get list patch watch",
    "/pods": "create delete get list patch watch",
    "/persistentvolumeclaims": "get",
    "/persistentvolumes": "get",
    "/secrets": "create get",
}
AGENT_RIGHTS = {
    "authentication.k8s.io/tokenreviews": "create",
    "containermigration.io/containermigrations": "get",
    "containermigration.io/containermigrations/status": "get patch",
    "containermigration.io/containercheckpoints": "get",
    "containermigration.io/migrationnodes": "create get list",
    "containermigration.io/migrationnodes/status": "get patch update",
    "/pods": "delete get",
}
POLICIES = {
    "container-migration-registers": {"UPDATE containermigrations", "UPDATE containermigrations/status"},
    "container-migration-status": {"UPDATE containermigrations", "UPDATE containermigrations/status"},
    "container-migration-checkpoints": {
        f"{operation} {resource}"
        for operation in ("CREATE", "UPDATE")
        for resource in ("containercheckpoints", "containercheckpoints/status")
    },
    "container-migration-restore": {"CREATE containermigrations"},
    "container-migration-migrationnodes": {
        f"{operation} {resource}"
        for operation in ("CREATE", "UPDATE")
        for resource in ("migrationnodes", "migrationnodes/status")
    },
    "container-migration-pods": {"DELETE pods"},
    "container-migration-ownership": {"UPDATE pods"},
    "container-migration-expiry": {"DELETE containermigrations"},
    "container-migration-nodes": {"UPDATE nodes"},
    "container-migration-secrets": {"CREATE secrets"},
    "container-migration-out-of-service": {"UPDATE containermigrations", "UPDATE containermigrations/status"},
}
"""What each policy looks at."""


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest, manifests: list[Manifest]) -> Manifest:
    return of_kind(manifests, "ValidatingAdmissionPolicy")[request.param]


def expressions(policy: Manifest) -> list[str]:
    spec = policy["spec"]
    parts = [*spec.get("matchConditions", []), *spec.get("variables", []), *spec["validations"]]
    return [part["expression"] for part in parts]


@pytest.mark.parametrize(("component", "rights"), [("operator", OPERATOR_RIGHTS), ("agent", AGENT_RIGHTS)])
def test_rights(manifests: list[Manifest], component: str, rights: dict[str, str]) -> None:
    role = of_kind(manifests, "ClusterRole")[f"container-migration-{component}"]
    granted: dict[str, str] = {}
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for resource in (f"{group}/{name}" for group in rule["apiGroups"] for name in rule["resources"]):
            assert resource not in granted, "one rule per resource"
            granted[resource] = " ".join(sorted(rule["verbs"]))
    assert granted == rights


def test_each_role_goes_to_its_own_account_and_there_are_no_others(render: Render) -> None:
    manifests = render(namespace="elsewhere")
    bindings = of_kind(manifests, "ClusterRoleBinding")
    parts = {"container-migration-operator", "container-migration-agent"}
    assert set(bindings) == set(of_kind(manifests, "ClusterRole")) == set(of_kind(manifests, "ServiceAccount")) == parts
    for name, binding in bindings.items():
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "elsewhere"}]
    assert not {"Role", "RoleBinding"} & {m["kind"] for m in manifests}


def test_each_policy_is_bound_everywhere_and_denies(manifests: list[Manifest]) -> None:
    bindings = of_kind(manifests, "ValidatingAdmissionPolicyBinding")
    assert set(bindings) == set(of_kind(manifests, "ValidatingAdmissionPolicy")) == set(POLICIES)
    for name, binding in bindings.items():
        every_node: Manifest = {"paramRef": {"selector": {}, "parameterNotFoundAction": "Deny"}}
        more: Manifest = every_node if name == "container-migration-out-of-service" else {}
        assert binding["spec"] == {"policyName": name, "validationActions": ["Deny"], **more}


def test_a_policy_looks_at_all_that_it_should(policy: Manifest) -> None:
    seen = {
        f"{operation} {resource}"
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for operation in rule["operations"]
        for resource in rule["resources"]
    }
    assert seen == POLICIES[policy["metadata"]["name"]]


def test_a_policy_fails_closed_and_explains_itself(policy: Manifest) -> None:
    assert policy["spec"]["failurePolicy"] == "Fail"
    for validation in policy["spec"]["validations"]:
        assert validation["reason"] == "Forbidden"
        assert len(validation["message"]) > 20


def test_what_a_stateful_set_creates_is_looked_at_and_nothing_else(manifests: list[Manifest]) -> None:
    """This one changes pods that others create: it must look at few, and a pod that it fails for must not start."""
    [policy] = of_kind(manifests, "MutatingAdmissionPolicy").values()
    [binding] = of_kind(manifests, "MutatingAdmissionPolicyBinding").values()
    spec = policy["spec"]
    assert spec["failurePolicy"] == "Fail"
    assert spec["paramKind"]["kind"] == "ContainerMigration"
    [rule] = spec["matchConstraints"]["resourceRules"]
    assert (rule["operations"], rule["resources"]) == (["CREATE"], ["pods"])
    [label] = spec["matchConstraints"]["objectSelector"]["matchExpressions"]
    assert label == {"key": names.LABEL_POD_NAME, "operator": "Exists"}
    text = str(spec["mutations"])
    assert names.ANNOTATION_MIGRATION.replace("/", "~1") in text
    assert names.LABEL_MIGRATION.replace("/", "~1") in text
    assert f"'{names.RUNTIME_HANDLER}'" in text
    assert binding["spec"]["paramRef"] == {"selector": {}, "parameterNotFoundAction": "Allow"}


def test_where_such_policies_are_not_served_there_is_none(helm: Helm) -> None:
    manifests = list(yaml.safe_load_all(helm("template", "container-migration", ".").stdout))
    assert not of_kind(manifests, "MutatingAdmissionPolicy")


def test_policies_are_type_checked(policy: Manifest) -> None:
    """The API server checks expressions against the schema only where versions and resources have no wildcard."""
    for rule in policy["spec"]["matchConstraints"]["resourceRules"]:
        assert "*" not in "".join([*rule["apiGroups"], *rule["apiVersions"], *rule["resources"]])


def test_registers_and_status_hold_for_every_writer(manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "ValidatingAdmissionPolicy")
    for name in ("registers", "status", "migrationnodes", "checkpoints"):
        assert "matchConditions" not in policies[f"container-migration-{name}"]["spec"]


def test_policies_know_the_accounts_of_the_release_namespace(render: Render) -> None:
    policies = of_kind(render(namespace="elsewhere"), "ValidatingAdmissionPolicy")
    accounts = {
        name: set(re.findall(r"system:serviceaccount:[\w:-]+", " ".join(expressions(policy))))
        for name, policy in policies.items()
    }
    operator = "system:serviceaccount:elsewhere:container-migration-operator"
    agent = "system:serviceaccount:elsewhere:container-migration-agent"
    assert accounts == {
        "container-migration-registers": {operator, agent},
        "container-migration-status": {operator, agent},
        "container-migration-checkpoints": {operator, agent},
        "container-migration-restore": set(),
        "container-migration-migrationnodes": {operator, agent},
        "container-migration-pods": {agent},
        "container-migration-ownership": {operator},
        "container-migration-expiry": {operator},
        "container-migration-nodes": {operator},
        "container-migration-secrets": {operator},
        "container-migration-out-of-service": {operator},
    }


def test_agents_speak_for_the_node_in_their_token(manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "ValidatingAdmissionPolicy")
    by_node = {name for name, policy in policies.items() if names.NODE_NAME_CLAIM in " ".join(expressions(policy))}
    assert by_node == set(POLICIES) - {
        "container-migration-nodes",
        "container-migration-restore",
        "container-migration-expiry",
        "container-migration-ownership",
        "container-migration-secrets",
        "container-migration-out-of-service",
    }


def test_an_absent_subresource_is_no_error(policy: Manifest) -> None:
    """`request.subResource` is absent on the main resource, which the type check does not know."""
    for expression in expressions(policy):
        assert not re.search(r"(?<!has\()request\.subResource", expression)
