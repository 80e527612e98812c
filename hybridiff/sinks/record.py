"""The run record of a corpus, run.json: what the corpus is made of, and what differs between two."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hybridiff.secrets import redact

_SHOWN = 80  # characters of a value in a message


@dataclass(frozen=True)
class RunRecord:
    """What a corpus is made of: written once, compared by every later run.

    Args:
        configuration: Nested options; secrets are taken out before anything is written or compared.
        plan: ``rows``, ``shards`` and ``content``.
        excluded: Dotted names of options, or of whole sections, that the content does not depend on.
        versions: Of packages.
        hardware: What it ran on.
    """

    configuration: dict[str, Any]
    plan: dict[str, Any]
    excluded: frozenset[str] = frozenset()
    versions: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The contents of run.json."""
        configuration = _plain(redact(self.configuration))
        identity = {"configuration": without(configuration, self.excluded), "plan": _plain(self.plan)}
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return {
            "configuration": configuration,
            "plan": identity["plan"],
            "fingerprint": hashlib.sha256(canonical.encode()).hexdigest(),
            "versions": _plain(self.versions),
            "hardware": _plain(self.hardware),
        }


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested dicts, each as "dotted.name is <old> there, <new> here"."""
    found: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        there, here = old.get(name), new.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            found += differences(there, here, f"{prefix}{name}.")
        elif (name in old) != (name in new) or there != here:
            there_text = _shown(there) if name in old else "absent"
            here_text = _shown(here) if name in new else "absent"
            found.append(f"{prefix}{name} is {there_text} there, {here_text} here")
    return found


def without(options: dict[str, Any], excluded: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Nested options without those of these dotted names."""
    names = frozenset(excluded)
    kept = {name: value for name, value in options.items() if prefix + name not in names}
    return {name: without(value, names, f"{prefix}{name}.") if isinstance(value, dict) else value for name, value in kept.items()}


def compared(document: dict[str, Any], excluded: frozenset[str]) -> dict[str, Any]:
    """What two run records must have alike: the plan, and the options that the content depends on."""
    plan = {f"plan.{name}": value for name, value in document["plan"].items()}
    return without(document["configuration"], excluded) | plan


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
