"""The run record of a corpus, run.json: the identity of a corpus, and the differences of two."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hybridiff.secrets import redact

_SHOWN = 80  # characters of a value in a message
# Of rows, which have them too, and of conditions on their columns: "(signature:1.3)" and "signature > 1.3" hide nothing
_TEXTS = (("sampling", "negative_prompt"), ("output", "caption"), ("select", "where"))
_NAMES = frozenset({"configuration", "plan", "fingerprint", "versions", "hardware"})
_CHECKSUM = "sha256"
_RENEW = "remove it, then the command that generated the corpus writes it again"


@dataclass(frozen=True)
class RunRecord:
    """The identity of a corpus: written once, compared by every later run.

    Args:
        configuration: nested options; secrets are redacted before anything is written or compared, not in ``_TEXTS``.
        plan: ``rows``, ``shards``, ``content`` and ``table``, by which a changed table is described.
        excluded: dotted names of options, or of whole sections, that the content does not depend on.
        versions: versions of packages.
        hardware: machine, GPUs, numbers of ranks and nodes.
        describe_change: says in words how the prompts differ from those of another record, given its ``plan.table``.
    """

    configuration: dict[str, Any]
    plan: dict[str, Any]
    excluded: frozenset[str] = frozenset()
    versions: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    describe_change: Callable[[dict[str, Any] | None], str] | None = None

    def document(self) -> dict[str, Any]:
        """The contents of run.json."""
        document = {
            "configuration": _plain(_redacted(self.configuration)),
            "plan": _plain(self.plan),
            "versions": _plain(self.versions),
            "hardware": _plain(self.hardware),
        }
        return sealed(document | {"fingerprint": fingerprint(document, self.excluded)})


def _redacted(configuration: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = redact(configuration)
    for section, name in _TEXTS:
        if option(configuration, f"{section}.{name}") is not None:
            found[section][name] = configuration[section][name]
    return found


def fingerprint(document: dict[str, Any], excluded: frozenset[str]) -> str:
    """SHA-256 of all that the content depends on: the plan, and the configuration without the excluded options."""
    return _sha256({"configuration": without(document["configuration"], excluded), "plan": document["plan"]})


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """A run record with the SHA-256 of everything else in it, in place of an older one."""
    rest = {name: value for name, value in document.items() if name != _CHECKSUM}
    return rest | {_CHECKSUM: _sha256(rest)}


def check_whole(document: Any) -> None:
    """Raises ValueError if a document is no run record, or damaged; without a checksum damage may stay unnoticed."""
    if not (isinstance(document, dict) and all(isinstance(document.get(k), dict) for k in ("configuration", "plan"))):
        raise ValueError("no run record; it must hold a configuration and a plan")
    if odd := (document.keys() - {_CHECKSUM}) ^ _NAMES:
        raise ValueError(f"damaged in {', '.join(sorted(odd))}; {_RENEW}")
    if _CHECKSUM in document and document != sealed(document):
        raise ValueError(f"damaged: its SHA-256 is not that of its contents; {_RENEW}")


def check_fingerprint(document: dict[str, Any], excluded: frozenset[str]) -> None:
    """Raises ValueError if a run record without a checksum has another fingerprint than its contents."""
    if _CHECKSUM not in document and document["fingerprint"] != fingerprint(document, excluded):
        raise ValueError(f"damaged: its fingerprint is not that of its contents; {_RENEW}")


def option(configuration: Any, name: str, default: Any = None) -> Any:
    """An option of a configuration by its dotted name; ``default`` where it is null, absent, or has no place."""
    found = configuration
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return default if found is None else found


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The differences of two nested dicts, each as "dotted.name is <old> there, <new> here"."""
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
    """What must be equal in two run records: the plan, and the options that the content depends on."""
    plan = {f"plan.{name}": value for name, value in document["plan"].items() if name != "table"}
    return without(document["configuration"], excluded) | plan


def _sha256(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
