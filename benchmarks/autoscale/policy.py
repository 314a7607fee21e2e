"""KEDA and the autoscaler under it, as k8s/components/keda/scaling.yaml sets them. The file is read, not repeated.

Source of the rules: Kubernetes' pkg/controller/podautoscaler (replica_calculator.go, horizontal.go) and KEDA's scale
handler: KEDA itself moves a pool between 0 and 1, the autoscaler all else.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SCALING = Path(__file__).parents[2] / "k8s" / "components" / "keda" / "scaling.yaml"
SYNC_S = 15.0  # horizontal-pod-autoscaler-sync-period
TOLERANCE = 0.1  # horizontal-pod-autoscaler-tolerance


@dataclass
class Pool:
    """One ScaledObject: what it wants, given what it sees."""

    name: str
    least: int
    most: int
    poll_s: float
    cooldown_s: float
    up: dict[str, Any]
    down: dict[str, Any]
    triggers: list[dict[str, Any]]
    recommended: deque[tuple[float, int]] = field(default_factory=deque)
    changes: deque[tuple[float, int]] = field(default_factory=deque)
    active_at_s: float = 0.0

    def wake(self, now_s: float, seen: dict[str, float], replicas: int) -> int:
        """KEDA's own part, every poll: from none to one, and after the cooldown to none."""
        if any(seen[one["name"]] > float(one["metadata"]["activationThreshold"]) for one in self.triggers):
            self.active_at_s = now_s
            return max(1, replicas)
        if self.least == 0 and replicas and now_s - self.active_at_s >= self.cooldown_s:
            return 0
        return replicas

    def sync(self, now_s: float, seen: dict[str, float], replicas: int, ready: int) -> int:
        """The autoscaler's part, every 15 s; it leaves a pool of none alone."""
        if replicas == 0:
            return 0
        wanted = max(self._wanted(one, seen[one["name"]], replicas, ready) for one in self.triggers)
        wanted = min(self.most, max(1, self.least, wanted))
        self.recommended.append((now_s, wanted))
        longest = max(self.up["stabilizationWindowSeconds"], self.down["stabilizationWindowSeconds"])
        while self.recommended[0][0] < now_s - longest:
            self.recommended.popleft()
        target = self._stable(now_s, replicas)
        target = self._limited(now_s, replicas, target)
        if target != replicas:
            self.changes.append((now_s, target - replicas))
        return target

    def _wanted(self, trigger: dict[str, Any], value: float, replicas: int, ready: int) -> int:
        threshold = float(trigger["metadata"]["threshold"])
        if trigger["metricType"] == "AverageValue":
            ratio = value / (threshold * replicas)
            return replicas if abs(1 - ratio) <= TOLERANCE else math.ceil(value / threshold)
        ratio = value / threshold
        return replicas if abs(1 - ratio) <= TOLERANCE else math.ceil(ratio * ready)

    def _stable(self, now_s: float, replicas: int) -> int:
        """The least of the latest recommendations upwards, the most of them downwards."""

        def latest(rule: dict[str, Any]) -> list[int]:
            return [n for at_s, n in self.recommended if at_s >= now_s - rule["stabilizationWindowSeconds"]]

        return max(min(replicas, max(latest(self.down))), min(latest(self.up)))

    def _limited(self, now_s: float, replicas: int, target: int) -> int:
        """At most as far in one period as the policies say."""
        while self.changes and self.changes[0][0] < now_s - 3600:
            self.changes.popleft()
        if target > replicas:
            most: list[int] = []
            for policy in self.up["policies"]:
                start = replicas - self._changed(now_s, policy["periodSeconds"])
                grown = start + policy["value"] if policy["type"] == "Pods" else start * (1 + policy["value"] / 100)
                most.append(math.ceil(grown))
            return max(replicas, min(target, max(most)))
        if target < replicas:
            least: list[int] = []
            for policy in self.down["policies"]:
                start = replicas - self._changed(now_s, policy["periodSeconds"])
                assert policy["type"] == "Pods"
                least.append(start - policy["value"])
            return min(replicas, max(target, min(least)))
        return target

    def _changed(self, now_s: float, period_s: float) -> int:
        """By how much the pool grew within a period."""
        return sum(by for at_s, by in self.changes if at_s > now_s - period_s)


def pools(*, to_zero: bool) -> list[Pool]:
    """The pools of scaling.yaml; to_zero: with keda-zero beside it."""
    found = []
    for one in yaml.safe_load_all(SCALING.read_text(encoding="utf-8")):
        spec = one["spec"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        found.append(
            Pool(
                one["metadata"]["name"],
                0 if to_zero else spec["minReplicaCount"],
                spec["maxReplicaCount"],
                spec["pollingInterval"],
                spec["cooldownPeriod"],
                behavior["scaleUp"],
                behavior["scaleDown"],
                spec["triggers"],
            )
        )
    return found
