"""The roles of a store, followed: whoever changes them, the service changes its version."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final, Literal, get_args

from prometheus_client import Counter, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from taillift.models.bundle.version_store import Challenger, Roles, StaleError, VersionStore
from taillift.models.errors import UserError
from taillift.service.inference.challenge import (
    Challenge,
    ShadowCounters,
    agreement_series,
    duel_series,
)
from taillift.service.inference.engine import Engine
from taillift.service.inference.resident_bundle import STARTING
from taillift.service.inference.served_version import ServedVersion
from taillift.service.problems import NotReadyError

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0

Outcome = Literal["done", "refused", "overtaken"]
State = Literal["stored", "loading", "resident", "draining", "refused"]


class RoleFollower:
    """Makes the engine serve what `roles.json` says, and changes it once a version is loaded."""

    def __init__(self, engine: Engine, store: VersionStore) -> None:
        self.store = store
        # The version of a change that was accepted and is not done yet.
        self.pending: int | None = None
        self._engine = engine
        # What was followed last: the roles with this etag, when this version was served.
        self._applied: int | None = None
        self._served = engine.champion
        # What was refused at the start is not tried again at once.
        self._retrying = False
        self._changing = asyncio.Lock()
        self._look = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._problem = ""
        self._outcomes = Counter(
            "taillift_role_changes",
            "Changes of the champion or the challenger, by what became of them",
            ["outcome"],
            registry=engine.metrics.registry,
        )
        for outcome in get_args(Outcome):
            self._outcomes.labels(outcome)
        self._counters = ShadowCounters(engine.metrics)
        engine.metrics.registry.register(VersionSeries(engine))

    async def follow(self, started: Awaitable[None]) -> None:
        """Look at the roles every second until cancelled, from when the service has `started`."""
        await asyncio.shield(started)
        self._loop = asyncio.get_running_loop()
        while self._engine.failure is None:
            try:
                async with self._changing:
                    await self._apply(await asyncio.to_thread(self.store.roles))
            except UserError as error:
                if str(error) != self._problem:
                    logger.error("the roles stay as they were: %s", error)
                self._problem = str(error)
            except Exception:
                logger.exception("the roles could not be followed")
            else:
                self._problem = ""
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), POLL_SECONDS)
            self._look.clear()

    def look_again(self) -> None:
        """Follow the roles at once, and try again what was refused; for any thread."""
        self._applied, self._retrying = None, True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._look.set)

    async def end(self, follow: "asyncio.Task[None]") -> None:
        """Give up the changes that are not done, and end the task `follow`."""
        tasks = [follow, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._engine.challenge is not None:
            await self._engine.challenge.end()

    async def promote(
        self, number: int, because: str, who: str, etag: int | None, classes_change: bool
    ) -> None:
        """Begin to load a version; once it is ready, make it the champion.

        Raises `StaleError` if the roles have another etag or are about to change, `RefusedError`
        and `OverBudgetError` if it cannot become champion, and other `UserError`s.
        """
        roles = await self._roles(etag)
        if roles.champion == number != self._engine.champion.number:
            self.look_again()
            return
        await asyncio.to_thread(self.store.check_promotion, number, classes_change)
        change = partial(
            self.store.promote, number, because, who, roles.etag, classes_change=classes_change
        )
        await self._begin(number, who, change)

    async def rollback(self, because: str, who: str, etag: int | None) -> int:
        """Begin to load the previous champion, which becomes champion, and return its number.

        Raises what `promote` raises.
        """
        roles = await self._roles(etag)
        number = self.store.rollback_target(roles)
        await self._begin(number, who, partial(self.store.rollback, because, who, roles.etag))
        return number

    async def challenge(
        self, challenger: Challenger, because: str, who: str, etag: int | None
    ) -> None:
        """Let a version be compared with the champion; raises what `promote` raises."""
        await self._roles(etag)
        if self.in_memory(challenger.version) is None:
            stored = await asyncio.to_thread(self.store.version, challenger.version)
            self._engine.check_budget(stored.manifest, challenger.version)
        await asyncio.to_thread(self.store.challenge, challenger, because, who, etag)
        self._look.set()

    async def unchallenge(self, who: str, etag: int | None) -> Roles:
        """End the comparison; raises `StaleError`, and `RefusedError` if there is none."""
        await self._roles(etag)
        roles = await asyncio.to_thread(self.store.unchallenge, "", who, etag)
        self._look.set()
        return roles

    @property
    def champion(self) -> int | None:
        """The number of the version that answers; None while one replaces another."""
        return None if self._engine.gap else self._engine.champion.number

    @property
    def challenge_at_work(self) -> Challenge | None:
        """The comparison that is running, if there is one."""
        return self._engine.challenge

    def refusal(self, number: int) -> str | None:
        """Return why a version could not be served, if it could not."""
        return self._engine.refusals.get(number)

    def in_memory(self, number: int) -> ServedVersion | None:
        """Return a version that is in memory, even if it is draining."""
        engine = self._engine
        known = [version for version in engine.residents if version.number == number]
        known += [version for version in engine.draining if version.number == number]
        return known[0] if known else None

    def state(self, number: int) -> State:
        """Return what the service does with a version of the store."""
        engine = self._engine
        if number in engine.loading:
            return "loading"
        if any(version.number == number for version in engine.in_service):
            return "resident"
        if any(version.number == number for version in engine.draining):
            return "draining"
        return "refused" if number in engine.refusals else "stored"

    async def _roles(self, etag: int | None) -> Roles:
        if self.pending is not None:
            raise StaleError(f"version {self.pending} is about to become champion: try again later")
        if not self._engine.champion.is_open:
            raise NotReadyError(self._engine.gap or STARTING, self._engine.retry_after)
        roles = await asyncio.to_thread(self.store.roles)
        if etag is not None and etag != roles.etag:
            raise StaleError(
                f"the roles have changed since: their etag is {roles.etag} and not {etag}; read "
                "them again"
            )
        return roles

    async def _begin(self, number: int, who: str, change: Callable[[], Roles]) -> None:
        if all(version.number != number for version in self._engine.residents):
            stored = await asyncio.to_thread(self.store.version, number)
            instead = self._engine.settings.swap == "replace"
            self._engine.check_budget(stored.manifest, number, instead)
        if self.pending is not None:
            raise StaleError(f"version {self.pending} is about to become champion: try again later")
        self.pending = number
        task = asyncio.create_task(self._change(number, who, change))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _change(self, number: int, who: str, change: Callable[[], Roles]) -> None:
        """Load a version, change the roles and serve it; if anything fails, nothing changes."""
        try:
            async with self._changing:
                folder = await asyncio.to_thread(self.store.path, number)
                async with self._engine.succession(number, folder):
                    roles = await asyncio.to_thread(change)
                self._outcomes.labels("done").inc()
                await self._apply(roles)
        except StaleError as error:
            self._outcomes.labels("overtaken").inc()
            logger.warning("version %d did not become champion: %s", number, error)
        except UserError as error:
            self._outcomes.labels("refused").inc()
            self._engine.refusals[number] = str(error)
            with suppress(UserError):
                await asyncio.to_thread(self.store.note_refusal, number, str(error), who)
        except Exception:
            self._outcomes.labels("refused").inc()
            logger.exception("version %d did not become champion", number)
        finally:
            self.pending = None

    async def _loaded(self, number: int) -> ServedVersion:
        """Return a version that is in memory, which is loaded if it is not yet."""
        for version in self._engine.residents:
            if version.number == number:
                return version
        folder = await asyncio.to_thread(self.store.path, number)
        return await self._engine.load(number, folder)

    async def _apply(self, roles: Roles) -> None:
        """Serve what the roles say; what is refused is tried again when they change."""
        again = roles.etag == self._applied
        if again and self._engine.champion is self._served:
            return
        number, first = roles.champion, self._applied is None and not self._retrying
        self._applied, self._retrying = roles.etag, False
        tried = (first or again) and number in self._engine.refusals
        if number is not None and number != self._engine.champion.number and not tried:
            try:
                folder = await asyncio.to_thread(self.store.path, number)
                async with self._engine.succession(number, folder):
                    pass
            except UserError as error:
                self._outcomes.labels("refused").inc()
                self._engine.refusals[number] = str(error)
            else:
                self._outcomes.labels("done").inc()
        await self._seat(roles)
        await self._retain_evidence(roles)
        self._served = self._engine.champion

    async def _seat(self, roles: Roles) -> None:
        """Let the roles' challenger be compared with the champion, or end the comparison."""
        engine, plan, running = self._engine, roles.challenger, self._engine.challenge
        if running is not None and running.plan == plan and running.champion is engine.champion:
            return
        if running is not None:
            engine.challenge = None
            engine.labels.expect(None)
            await running.end()
        seated = engine.challenger
        if seated is not None and (plan is None or seated.number != plan.version):
            engine.challenger = None
            engine.retire(seated)
        if plan is None or plan.version == engine.champion.number:
            return
        try:
            challenger = await self._loaded(plan.version)
        except UserError as error:
            self._outcomes.labels("refused").inc()
            engine.refusals[plan.version] = str(error)
            return
        engine.challenger = challenger
        engine.challenge = Challenge(
            engine.champion,
            challenger,
            plan,
            roles.salt,
            engine.workshop.admission,
            self._counters,
            running,
            engine.note_difference,
        )
        engine.labels.expect(engine.challenge.pairing)
        self._outcomes.labels("done").inc()

    async def _retain_evidence(self, roles: Roles) -> None:
        kept = {version.bundle.manifest.version for version in self._engine.residents}
        if roles.previous is not None:
            with suppress(UserError):
                stored = await asyncio.to_thread(self.store.version, roles.previous)
                kept.add(stored.manifest.version)
        self._engine.evidence.retain(kept)


class VersionSeries(Collector):
    """A collector of what each version in memory takes and does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        info = GaugeMetricFamily(
            "taillift_version_info",
            "1 for each version of the store that is in memory",
            labels=("number", "version", "role"),
        )
        leases = GaugeMetricFamily(
            "taillift_leases", "Requests that hold a version", labels=("number",)
        )
        resident = GaugeMetricFamily(
            "taillift_resident_bytes",
            "Memory that was taken while a version was loaded",
            labels=("number",),
        )
        seconds = GaugeMetricFamily(
            "taillift_load_seconds", "Seconds that loading a version took", labels=("number",)
        )
        roles = {
            version: "champion" if version is engine.champion else "challenger"
            for version in engine.in_service
        }
        for version in [*roles, *engine.draining]:
            number = str(version.number)
            info.add_metric(
                (number, version.bundle.manifest.version, roles.get(version, "draining")), 1
            )
            leases.add_metric((number,), version.leases)
            if version.resident_bytes is not None and version.load_seconds is not None:
                resident.add_metric((number,), version.resident_bytes)
                seconds.add_metric((number,), version.load_seconds)
        yield from (info, leases, resident, seconds)
        if engine.challenge is not None:
            yield agreement_series(engine.challenge.agreement)
            if (duel := engine.labels.latest_duel) is not None:
                yield from duel_series(duel)
