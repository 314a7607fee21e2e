"""No pod has more rights than it needs, and no secret is written down."""

from __future__ import annotations

import re

from tests.k8s.manifests import Build, walk


def test_pods_are_locked_down(everything: Build) -> None:
    """Every pod passes Pod Security's restricted level, has a read-only root, no token and no service links."""
    enforced = everything.one("Namespace", "bloomfarm")["metadata"]["labels"]
    assert enforced["pod-security.kubernetes.io/enforce"] == "restricted"
    accounts = {found["metadata"]["name"]: found for found in everything.of("ServiceAccount")}
    assert not any(found["automountServiceAccountToken"] for found in accounts.values())
    for workload in everything.workloads():
        pod = workload.pod
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] in accounts
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [v for v in pod["volumes"] if "hostPath" in v] if "volumes" in pod else True
        for container in workload.all_containers:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"}


def test_no_secret_is_written_down(everything: Build) -> None:
    """There is no Secret, and nothing that is called a password, token or key has a value."""
    assert not everything.of("Secret")
    for workload in everything.workloads():
        for container in workload.all_containers:
            for entry in container.get("env", []):
                if re.search(r"PASSWORD$|TOKEN|SECRET|AUTH", entry["name"]) and "value" in entry:
                    assert entry["value"].startswith("/"), f"{workload.name}: {entry['name']}"
                assert not re.search(r"://[^$]*:[^$]*@", str(entry.get("value", ""))), entry["name"]
    for found in everything.objects:
        for path, value in walk(found):
            assert not re.search(r"-----BEGIN|^[A-Za-z0-9+/]{40,}={0,2}$", str(value)), path


def test_each_role_gets_its_own_password(everything: Build) -> None:
    """A pod reads one key of the Secret, that of the user whom its URL names; Redis alone reads all."""
    users = {"api": "api", "worker": "worker", "system": "worker", "flower": "flower"}
    for workload in everything.workloads():
        keys = {
            entry["valueFrom"]["secretKeyRef"]["key"]
            for container in workload.all_containers
            for entry in container.get("env", [])
            if entry.get("valueFrom", {}).get("secretKeyRef", {}).get("name") == "bloomfarm-redis"
        }
        if user := users.get(workload.component):
            assert keys == {user}
            assert workload.environ(workload.main)["FARM_REDIS__URL"].partition("://")[2].partition(":")[0] == user
