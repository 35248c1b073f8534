"""The tour that `make run` gives: real SDK clients call through a real Envoy, and the gate decides.

It starts a stand-in for the providers, then `sluice run --envoy` with the limits of `limits.yaml`, makes calls that
are admitted, queued, refused, settled and broken off, shows what became of each, and ends all that it started.
Exit code 0: everything promised on the screen was seen. 1: something was not, and the last lines say what.

    KEEP=1        stay up afterwards, for calls of your own
    SLUICE_ENVOY  the Envoy to start; by default the one that `make setup` installs
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import anthropic
import openai

from standin import Ending, Point, Script, StandIn
from tour_stage import KEY, LOG, Broken, Place, Screen, Whose, derived_limits, gate, loopback, sluice, soon, under_way

GPT: Final = "gpt-5-mini"
CLAUDE: Final = "claude-sonnet"
GEMINI: Final = "gemini-flash"
PROMPT: Final = "In one sentence: why does every call want a permit?"
ASK: Final[Any] = [{"role": "user", "content": PROMPT}]
WARM_UPS: Final = 1
"""Calls that reach the stand-in without the gate."""
Use = Callable[[], Coroutine[Any, Any, int]]
"""A call, and the tokens that its SDK says it used."""


async def admitted_and_queued(place: Place) -> None:
    place.screen.section(
        "Admitted, and queued",
        "alice makes five calls at once. Her limit is maxConcurrent: 2 with maxWait: 10s, so three wait for a slot.",
    )
    alice = Whose("openai", "User", "alice")
    place.stand_in.script = Script(delay_ms=400, hold=Point.START)
    place.stand_in.peak = 0
    loop = asyncio.get_running_loop()

    async def call(client: openai.AsyncOpenAI, number: int) -> tuple[float, float]:
        """When it was sent and when it was answered; the stand-in knows it by its number."""
        mark, sent = {"x-tour-call": str(number)}, loop.time()
        await client.chat.completions.create(model=GPT, messages=ASK, max_tokens=40, extra_headers=mark)
        return sent, loop.time()

    async with place.gpt("alice") as client, under_way(*(call(client, number) for number in range(5))) as calls:
        await soon(place.stand_in.until(lambda stand_in: stand_in.held == 2), "two calls to reach the provider")
        await place.until(alice, lambda bucket: bucket.queued == 3, "three calls of alice to queue")
        place.stand_in.script = Script(delay_ms=400)
        place.stand_in.let_go()
        times = await calls
    for place_in_line, seen in enumerate(seen for seen in place.stand_in.seen if seen.values):
        sent, answered = times[int(seen.values["x-tour-call"])]
        how = f"waited {seen.arrived - sent:.2f} s for a slot," if place_in_line >= 2 else "admitted at once,"
        place.screen.row(f"call {place_in_line + 1}", f"{how:<26} answered after {answered - sent:.2f} s")
    place.screen.promise("while two were at the provider, the gate held three in its queue", kept=True)
    place.screen.promise("never were more than two at the provider", place.stand_in.peak == 2)


async def refused(place: Place) -> None:
    place.screen.section(
        "Refused, in the words of the SDK",
        "nightly-job may make three calls a minute: the fourth never leaves this machine. Its own SDK raises its own "
        "exception, with the gate's message in it.",
    )
    place.stand_in.script = Script()
    reasons = []
    async with place.gpt("nightly-job") as client:
        for _ in range(3):
            await client.chat.completions.create(model=GPT, messages=ASK, max_tokens=40)
        at_provider = len(place.stand_in.seen)
        try:
            await client.chat.completions.create(model=GPT, messages=ASK, max_tokens=40)
        except openai.RateLimitError as error:
            reasons.append(_shown(place.screen, "openai", error, f"type {error.type}, code {error.code}"))
    async with place.claude("carol") as claude:
        try:
            await claude.messages.create(model=CLAUDE, max_tokens=40_000, messages=ASK, stream=True)
        except anthropic.RateLimitError as error:
            reasons.append(_shown(place.screen, "anthropic", error, f"type {error.type}"))
    named = [name in reason for name, reason in zip(("nightly-job", "carol"), reasons, strict=False)]
    place.screen.promise("both SDKs said who had reached which limit", named == [True, True])
    place.screen.promise("neither call reached the provider", len(place.stand_in.seen) == at_provider)


def _shown(screen: Screen, sdk: str, error: openai.RateLimitError | anthropic.RateLimitError, kind: str) -> str:
    """Show a refusal; the message that came with it."""
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("error", body).get("message", error.message))
    wait = error.response.headers.get("retry-after")
    screen.row(f"{sdk}.{type(error).__name__}", message)
    screen.row("", f"status {error.status_code}, {kind}, " + (f"retry-after: {wait}" if wait else "no retry helps"))
    print()
    return message


async def settled(place: Place) -> None:
    place.screen.section(
        "Settled by the tokens really used",
        "A call reserves an estimate when it is admitted. When its answer ends, what it really used takes that place; "
        "of a call to Gemini its input, for Gemini's own limit on tokens counts nothing else.",
    )
    # Held, so that there is time to look; and compressed for clients that accept it, as the real providers do.
    place.stand_in.script = Script(hold=Point.START, input_tokens=30, output_tokens=12, gzip=True)
    gpt, claude, team = place.gpt("bob"), place.claude("bob"), Whose("gemini", "Org", "team-a")
    by_gpt, by_claude = Whose("openai", "User", "bob"), Whose("anthropic", "User", "bob")
    calls: list[tuple[str, Whose, Use]] = [
        ("chat.completions", by_gpt, partial(_chat, gpt)),
        ("chat.completions, stream", by_gpt, partial(_chat_stream, gpt)),
        ("responses", by_gpt, partial(_responses, gpt)),
        ("responses, stream", by_gpt, partial(_responses_stream, gpt)),
        ("messages", by_claude, partial(_messages, claude)),
        ("messages, stream", by_claude, partial(_messages_stream, claude)),
        ("generateContent", team, partial(_gemini, place, "generateContent")),
        ("streamGenerateContent", team, partial(_gemini, place, "streamGenerateContent?alt=sse")),
    ]
    place.screen.row("", f"{'reserved':>10}{'used, says the SDK':>24}{'counted':>12}")
    async with gpt, claude:
        kept = [await _settle(place, *call) for call in calls]
    place.screen.promise("each reserved an estimate, and is counted by what the provider says it used", all(kept))


async def _settle(place: Place, name: str, whose: Whose, use: Use) -> bool:
    """Make one call, and look at its bucket while it runs and after."""
    before = (await place.bucket(whose)).tokens
    async with under_way(use()) as call:
        await soon(place.stand_in.until(lambda stand_in: stand_in.held == 1), f"{name} to reach the provider")
        reserved = (await place.bucket(whose)).tokens - before
        place.stand_in.let_go()
        (used,) = await call
    counted = await place.counted(whose) - before
    place.screen.row(name, f"{reserved:>10}{used:>24}{counted:>12}")
    return reserved > 0 and counted == used


async def _chat(client: openai.AsyncOpenAI) -> int:
    answer = await client.chat.completions.create(model=GPT, messages=ASK, max_tokens=200)
    return answer.usage.total_tokens if answer.usage else 0


async def _chat_stream(client: openai.AsyncOpenAI) -> int:
    stream = await client.chat.completions.create(
        model=GPT, messages=ASK, max_tokens=200, stream=True, stream_options={"include_usage": True}
    )
    return sum([chunk.usage.total_tokens async for chunk in stream if chunk.usage])


async def _responses(client: openai.AsyncOpenAI) -> int:
    answer = await client.responses.create(model=GPT, input=PROMPT, max_output_tokens=200)
    return answer.usage.total_tokens if answer.usage else 0


async def _responses_stream(client: openai.AsyncOpenAI) -> int:
    async with client.responses.stream(model=GPT, input=PROMPT, max_output_tokens=200) as stream:
        answer = await stream.get_final_response()
    return answer.usage.total_tokens if answer.usage else 0


async def _messages(client: anthropic.AsyncAnthropic) -> int:
    answer = await client.messages.create(model=CLAUDE, max_tokens=200, messages=ASK)
    return answer.usage.input_tokens + answer.usage.output_tokens


async def _messages_stream(client: anthropic.AsyncAnthropic) -> int:
    async with client.messages.stream(model=CLAUDE, max_tokens=200, messages=ASK) as stream:
        answer = await stream.get_final_message()
    return answer.usage.input_tokens + answer.usage.output_tokens


async def _gemini(place: Place, method: str) -> int:
    """By plain HTTP, as any client can; what Gemini's limit counts of it."""
    url = f"http://{place.listen}/gemini/v1beta/models/{GEMINI}:{method}"
    body = {"contents": [{"parts": [{"text": PROMPT}]}], "generationConfig": {"maxOutputTokens": 200}}
    async with place.http.post(url, json=body, headers={"x-goog-api-key": KEY}) as response:
        text = await response.text()
    last = text.rpartition("data: ")[2]
    return int(json.loads(last)["usageMetadata"]["promptTokenCount"])


async def broken_off(place: Place) -> None:
    place.screen.section(
        "Broken off, and charged all the same",
        "A stream that ends half-way tells no usage, and providers bill it: it is not free here either. At least its "
        "input is charged, and its slot is free again.",
    )
    left, of_dave = await _broken_off(place, "dave", Script(output_tokens=40, hold=Point.MIDDLE))
    cut, of_erin = await _broken_off(place, "erin", Script(output_tokens=40, cut=Point.MIDDLE))
    place.screen.promise("dave hung up, and the provider was told so", left is Ending.LEFT)
    place.screen.promise("the provider broke off, and erin's SDK was told so", cut is Ending.CUT)
    place.screen.promise("both were charged, and their slots are free again", min(of_dave, of_erin) > 0)


async def _broken_off(place: Place, user: str, script: Script) -> tuple[Ending, int]:
    """Read half of a stream; how it ended for the provider, and the tokens that were charged."""
    place.stand_in.script = script
    pieces, how = 0, "hangs up"
    async with place.gpt(user) as client:
        stream = await client.chat.completions.create(model=GPT, messages=ASK, max_tokens=200, stream=True)
        try:
            async for chunk in stream:
                pieces += bool(chunk.choices[0].delta.content)
                if script.hold and pieces == script.chunks // 2:
                    break
        except openai.APIConnectionError as error:
            how = f"its SDK raises {type(error).__name__}"
        await stream.close()
    seen = place.stand_in.seen[-1]
    await soon(place.stand_in.until(lambda _: seen.ending is not Ending.OPEN), "the provider to see the end")
    charged = await place.counted(Whose("openai", "User", user))
    place.screen.row(user, f"reads {pieces} of {script.chunks} pieces, then {how}: {charged} tokens charged")
    return seen.ending, charged


async def the_books(place: Place) -> None:
    place.screen.section("The books", f"$ sluice status --admin {place.admin}")
    command = await sluice("status", "--admin", place.admin)
    table, _ = await command.communicate()
    for line in table.decode().splitlines():
        place.screen.quote(line)
    print()
    async with place.http.get(f"http://{place.admin}/status") as response:
        totals = (await response.json())["totals"]
    closed = totals["committed"] + totals["estimated"] + totals["refunded"]
    reached = len(place.stand_in.seen) - WARM_UPS
    place.screen.promise("the command answered", command.returncode == 0)
    place.screen.promise(f"{reached} calls reached a provider: each was admitted", totals["admitted"] == reached)
    place.screen.promise("each of them is closed, with its usage or an estimate", closed == reached)


async def stay(place: Place, limits: Path) -> None:
    """Stay up until interrupted, and say what to try."""
    place.stand_in.script = Script()
    body = json.dumps({"model": GPT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20})
    print("\nIt stays up for calls of your own. Ctrl-C ends everything.\n")
    print(f"   curl -i http://{place.listen}/openai/v1/chat/completions -H 'x-user-id: frank' \\")
    print(f"        -H 'content-type: application/json' \\\n        -d '{body}'")
    print(f"   curl -s http://{place.admin}/status")
    print(f"   {Path(sys.executable).parent / 'sluice'} status --admin {place.admin} --watch\n")
    print(f"Edit {limits} as it runs: a change is live within a second,")
    print(f"and {limits.with_name(LOG).name} beside it says what changed, or what is wrong.", flush=True)
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await stop.wait()


async def warm_up(stand_in: StandIn) -> None:
    """An SDK's first call takes it some 0.2 s of its own, which would look like waiting for a slot."""
    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{stand_in.url}/v1") as client:
        await client.chat.completions.create(model=GPT, messages=ASK)


async def tour(screen: Screen) -> None:
    """Everything, from the first process to the end of the last. Raises `Broken`."""
    async with contextlib.AsyncExitStack() as stack:
        stand_in = await stack.enter_async_context(StandIn(keep=["x-tour-call"]))
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-tour-")))
        limits = derived_limits(folder, stand_in.url)
        listen, admin = loopback(10000), loopback(10001)
        print("Sluice gates LLM calls: here real SDKs, through a real Envoy, to a stand-in for the providers.\n")
        screen.row("the providers", f"{stand_in.url} stands in for all of them")
        screen.row("the limits", f"examples/limits.yaml, its upstreams replaced by that, in {limits}")
        await warm_up(stand_in)
        await stack.enter_async_context(gate(limits, listen, admin, http))
        screen.row("Envoy", f"http://{listen}/openai/v1, /anthropic and /gemini")
        screen.row("the gate", f"http://{admin}/status")
        place = Place(listen, admin, stand_in, http, screen)
        for sight in (admitted_and_queued, refused, settled, broken_off, the_books):
            await sight(place)
        if os.environ.get("KEEP", "0").lower() not in ("", "0", "no", "false"):
            await stay(place, limits)


async def ended_by_signals(screen: Screen) -> None:
    """The tour; a SIGTERM ends it as a Ctrl-C does, with all that it started."""
    task = asyncio.create_task(tour(screen))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def main() -> int:
    """Give the tour; the exit code says whether it showed what it promised."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"  # the SDKs heed the variables of proxies, and everything here is on loopback
    screen = Screen()
    try:
        asyncio.run(ended_by_signals(screen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.broken.append("it was interrupted")
    except (openai.OpenAIError, anthropic.AnthropicError, aiohttp.ClientError, TimeoutError) as error:
        screen.broken.append(f"{type(error).__name__}: {error}")
    except Broken as error:
        screen.broken.append(str(error))
    for what in screen.broken:
        print(f"\nNot as promised: {what}")
    if not screen.broken:
        print("\nAll of it was as promised, and everything that was started has ended.")
    return 1 if screen.broken else 0


if __name__ == "__main__":
    sys.exit(main())
