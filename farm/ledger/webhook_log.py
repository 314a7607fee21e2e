"""How a webhook stands in the hash of its job or batch: where it goes, and what came of it so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from farm.egress import parse_target
from farm.results import WebhookCall, WebhookView

FIELDS = ("webhook", "hook_state", "hook_tries", "hook_log")


def lane_and_url(url: str | None) -> str:
    """What scripts get of a webhook: a digest of who receives it, and the URL; '' for none."""
    if url is None:
        return ""
    receiver = hashlib.blake2b(parse_target(url).receiver.encode(), digest_size=6).hexdigest()
    return f"{receiver} {url}"


def webhook_of(fields: Mapping[str, str | None]) -> WebhookView | None:
    """A webhook by the fields of its hash; None for a job or batch without one."""
    if not (text := fields.get("webhook")):
        return None
    log = json.loads(fields.get("hook_log") or "[]")
    return WebhookView(
        url=text.partition(" ")[2],
        state=fields.get("hook_state") or "waiting",
        tries=int(fields.get("hook_tries") or 0),
        calls=[WebhookCall(call["at"], call.get("status"), call["duration_s"], call.get("error")) for call in log],
    )
