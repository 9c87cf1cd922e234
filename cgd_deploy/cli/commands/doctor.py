"""``cgd-deploy doctor``."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import Json


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    as_json: Json = False


def doctor(options: DoctorOptions) -> None:
    """Show what is installed here and what is wrong. Exit 2 if no engine can run."""
    from ...hardware.packages import check_runtime
    from ..doctor import ROLES, examine
    from ..terminal import print_result

    facts = examine()
    tables = ("packages", "broken", "problem")
    lines = [f"{name:<17} {_plain(value)}" for name, value in facts.items() if name not in tables]
    lines += [f"{name:<27} {version or '-':<14} {ROLES[name]}" for name, version in facts["packages"].items()]
    lines += [f"{name} is installed but cannot be loaded: {reason}" for name, reason in facts["broken"].items()]
    print_result(facts, "\n".join(lines), options.as_json)
    check_runtime()


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {fact}" for name, fact in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
