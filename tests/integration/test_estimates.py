"""What is learned of calls that go through a real Envoy, and what is reserved by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.program import Program, running, sluice
from helpers.system import SUM, limits
from standin import StandIn

CALLS = 12
CAP = 64_000
BODY = {"model": "m", "max_tokens": CAP, "messages": [{"role": "user", "content": "x" * 200}]}
CAPS = {"tokensPerDay": 100_000_000}

pytestmark = pytest.mark.timeout(120)


async def call(program: Program, **script: str) -> None:
    headers = {"x-standin-input-tokens": "40", "x-standin-output-tokens": "500"}
    headers |= {f"x-standin-{name.replace('_', '-')}": value for name, value in script.items()}
    async with program.client.post(f"{program.url}/openai/v1/chat/completions", json=BODY, headers=headers) as answer:
        await answer.read()
        assert answer.status == 200


async def test_a_call_with_an_absurd_cap_reserves_what_calls_like_it_have_used(tmp_path: Path) -> None:
    file = tmp_path / "limits.yaml"

    def ended(told: dict[str, Any]) -> bool:
        return bool(told["totals"]["committed"] == CALLS)

    async with StandIn() as provider:
        file.write_text(limits("openai", provider.url, CAPS, estimation={"mode": "Learned"}, profile=SUM))
        async with running("-f", file, "--envoy", "--listen", "127.0.0.1:0") as program:
            for _ in range(CALLS):
                await call(program)
            await program.until(ended)
            await call(program, omit_usage="true")  # so that what was reserved for it stands
            told = await program.until(lambda told: told["totals"]["estimated"] == 1)
            _, metrics = await program.get("/metrics")
            table = await sluice("status", "--admin", program.admin)

    (learned,) = told["estimation"]["learned"]
    assert told["estimation"]["modes"] == {"openai": "Learned"}
    assert told["totals"]["estimatedTokens"] == pytest.approx(540, rel=0.06)
    assert (learned["model"], learned["entries"], learned["calls"]) == ("m", ["User *"], CALLS)
    assert learned["outputShare"] == pytest.approx(500 / CAP, rel=0.06)
    assert 'sluice_calls_underestimated_total{provider="openai"} 0.0\n' in metrics
    assert "% of the cap" in table.out
