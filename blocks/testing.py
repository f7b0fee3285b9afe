"""The contract kit: what every block must keep to, checked by behaviour.

In a plugin's tests, five lines::

    import my_norm
    from blocks.testing import contract

    @contract(my_norm)
    def test_contract(check):
        check()

Each check has a stable name, such as ``keeps_dtype``. One that cannot hold for a block is declared
in its spec, with the reason: ``expected_failures={"compiles": "needs a host read"}``. A declared
check that does hold is a failure too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from blocks.checks import CHECKS, SITES, Case, Check, CheckFailed, option_acts
from blocks.errors import Unsupported
from blocks.spec import BlockSpec, parse

Status = Literal["passed", "skipped", "expected", "failed"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one check of one case went."""

    block: str
    case: str
    check: str
    status: Status
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class BoundCheck:
    """One check of one case, ready to be called; raises `CheckFailed`."""

    case: Case
    check: str
    function: Check

    def verdict(self) -> Verdict:
        """Run the check and say how it went."""
        spec = self.case.spec
        reason = spec.expected_failures.get(self.check)
        named = {"block": f"{spec.kind}/{spec.name}", "case": self.case.name, "check": self.check}
        try:
            self.function(self.case)
        except Unsupported as skipped:
            return Verdict(**named, status="skipped", message=str(skipped))
        except CheckFailed as failure:
            if reason is not None:
                return Verdict(**named, status="expected", message=reason)
            return Verdict(**named, status="failed", message=str(failure))
        except Exception as error:
            return Verdict(**named, status="failed", message=f"raised {error!r}")
        if reason is not None:
            message = f"was declared to fail ({reason}) but holds"
            return Verdict(**named, status="failed", message=message)
        return Verdict(**named, status="passed")

    def __call__(self) -> None:
        """Run the check under pytest: skips where a site cannot be served."""
        found = self.verdict()
        if found.status == "failed":
            raise CheckFailed(f"{found.case}: {found.check}: {found.message}")
        if found.status != "passed":
            import pytest

            outcome = pytest.skip if found.status == "skipped" else pytest.xfail
            outcome(found.message)


def checks(specs: Iterable[BlockSpec]) -> Iterator[BoundCheck]:
    """Iterate over all checks of some blocks: with defaults and swept values, on every site."""
    for spec in specs:
        for spelling in spec.spellings():
            options = spec.complete(parse(spelling)[1])
            for where, site in SITES[spec.kind].items():
                case = Case(spec=spec, options=options, where=where, site=site)
                for check in CHECKS:
                    yield BoundCheck(case=case, check=check.__name__, function=check)
                for option in spec.options if spelling == spec.spell({}) else ():
                    yield BoundCheck(
                        case=case, check=f"option_acts({option})", function=_acts(option)
                    )


def contract(source: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that runs a test function once per check of a plugin's blocks.

    ``source`` is the plugin's module, a `BlockSpec`, or several. Needs pytest.
    """
    import pytest

    if isinstance(source, BlockSpec):
        specs: Iterable[BlockSpec] = [source]
    else:
        specs = source.register_blocks() if hasattr(source, "register_blocks") else source
    parameters = [pytest.param(c, id=f"{c.case.name}-{c.check}") for c in checks(specs)]
    return pytest.mark.parametrize("check", parameters)


def _acts(option: str) -> Check:
    return lambda case: option_acts(case, option)
