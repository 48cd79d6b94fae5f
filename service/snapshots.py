"""Versions of tables: which snapshots are active, and changing that while requests are answered.

Snapshots with a table in common are versions of one another, and at most one of them is active; those without are served
together. Activating one puts it in the place of all that it has a table in common with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import hfh_embed
from hfh_embed.errors import InputError, SnapshotError
from service.catalog import Catalog, Served
from service.choice import Choice, ChoiceFile
from service.errors import ApiError
from service.library import Known, Library, incompatibilities
from service.overlay import Overlay

__all__ = ["Snapshots"]

Tables = Mapping[str, Served]
log = logging.getLogger("hfh.service")


class Snapshots:
    """The snapshots of one process. The active ones and those active before them are loaded, no others.

    ``on_change`` is told, in the event loop, each time another catalog is to be served.
    """

    def __init__(self, library: Library, choices: ChoiceFile, overlay: Overlay) -> None:
        self._library, self._choices, self._overlay = library, choices, overlay
        self._loaded: dict[str, Tables] = {}
        self._seen: set[str] = set()
        self._declined: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.active: tuple[str, ...] = ()
        self.previous: tuple[str, ...] = ()
        self.catalog = Catalog({})
        self.on_change: Callable[[Catalog], None] = lambda catalog: None

    @property
    def choice_path(self) -> Path | None:
        """The file that all processes of the service follow, None where there is none."""
        return self._choices.path

    def start(self, *, first: bool, workers: int = 1) -> None:
        """Load what is to be served: the written choice where its files are there, else the newest files.

        The first process reads every byte of what it serves and decides about files that came since the choice; workers
        do as it did.

        Raises:
            InputError: nothing to serve, or two given files have a table of one name.
            SnapshotError, OSError: a given file cannot be served.
        """
        self._library.scan()
        self._check_given()
        choice = self._choices.read()
        chosen = [self._library.find(version) for version in (choice.active if choice is not None else ())]
        active: list[str] = []
        for known in [*filter(None, chosen), *self._library]:
            if self._blocking(known.version, active) or known.refused:
                continue
            try:
                self._load(known, verify=first)
                active.append(known.version)
            except (SnapshotError, OSError) as error:
                if known.given:
                    raise
                log.error("%s is not served: %s", known.path.name, error)
                self._library.refuse(known, str(error))
        if not active:
            raise InputError(f"no snapshot can be served: {'; '.join(known.refused for known in self._library)}")
        previous = tuple(version for version in (choice.previous if choice is not None else ()) if self._try(version))
        self._install(tuple(active), previous)
        known_now = {known.version for known in self._library if not known.refused}
        self._seen = known_now if choice is None else set(choice.seen)
        if first and (workers > 1 or choice is not None):
            try:
                with self._choices.locked():
                    self._arrivals()
                    self._write(self.active, self.previous)
            except OSError as error:  # a full disk is no reason not to serve
                log.error("what is active is not written down: %s", error)

    def _check_given(self) -> None:
        if not self._library.paths:
            raise InputError("no snapshot to serve; give a file or a folder")
        owners: dict[str, Known] = {}
        for path in self._library.paths:
            if not path.is_dir():
                hfh_embed.inspect(path)
            elif not any(known.path.parent == path for known in self._library):
                raise InputError(f"folder {path} holds no snapshot (*.hfh); make one with `hfh compress`")
        for known in self._library:
            for table in known.tables if known.given else ():
                other = owners.setdefault(table.name, known)
                if other is not known:
                    raise InputError(
                        f"{other.path} and {known.path} both have a table {table.name!r}; serve one of them, rename a table, "
                        "or serve the folder: it may hold several versions of a table"
                    )

    def _load(self, known: Known, verify: bool) -> Tables:
        """The tables of a version, opened and warmed unless they are loaded."""
        if known.version in self._loaded and not verify:
            return self._loaded[known.version]
        if verify:
            self._library.verify(known)
        if known.version not in self._loaded:
            snapshot = hfh_embed.open(known.path)
            if snapshot.version != known.version:
                raise SnapshotError(f"{known.path} was replaced while it was read; try again")
            for table in snapshot.values():
                table.lookup([0, table.num_embeddings // 2, table.num_embeddings - 1])
            self._loaded[known.version] = {
                name: Served(table, snapshot, self._overlay.fresh(name)) for name, table in snapshot.items()
            }
        return self._loaded[known.version]

    def _try(self, version: str) -> bool:
        """Load a version if that is possible."""
        known = self._library.find(version)
        if version not in self._loaded and known is not None and not known.refused:
            try:
                self._load(known, verify=False)
            except (SnapshotError, OSError) as error:
                log.warning("version %s cannot be loaded: %s", version, error)
        return version in self._loaded

    def _blocking(self, version: str, active: Iterable[str]) -> list[str]:
        """Active versions that have a table in common with one that may not be loaded."""
        known = self._library.find(version)
        names = set(self._loaded.get(version, ())) or {table.name for table in (known.tables if known else ())}
        return [other for other in active if other == version or names & set(self._loaded[other])]

    def _install(self, active: tuple[str, ...], previous: tuple[str, ...]) -> None:
        self._loaded = {version: self._loaded[version] for version in (*active, *previous)}
        self.active, self.previous = active, previous
        tables = {name: served for version in active for name, served in self._loaded[version].items()}
        self.catalog = Catalog(tables, self._loaded)

    def _write(self, active: tuple[str, ...], previous: tuple[str, ...]) -> None:
        there = {known.version for known in self._library}
        self._seen &= there
        self._declined = {version: why for version, why in self._declined.items() if version in there}
        self._choices.write(Choice(active, previous, tuple(sorted(self._seen))))

    async def _alone(self, work: Callable[[], None]) -> None:
        """Do the work in a thread, and nothing else meanwhile, then serve what came of it.

        It is carried through even if the request that asked for it is given up.
        """
        task = asyncio.create_task(self._carry_through(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _carry_through(self, work: Callable[[], None]) -> None:
        async with self._lock:
            before = self.catalog
            try:
                await asyncio.to_thread(work)
            finally:
                if self.catalog is not before:
                    self.on_change(self.catalog)

    async def _decide(self, decide: Callable[[], None]) -> None:
        """Decide what is active, alone among the processes too."""
        try:
            await self._alone(lambda: self._locked(decide))
        except OSError as error:
            log.error("what is active could not be changed: %s", error)
            raise ApiError(
                503,
                "not_written",
                f"what is active could not be changed ({error.strerror or error}: {error.filename}); "
                "the versions of before keep serving",
            ) from None

    def _locked(self, decide: Callable[[], None]) -> None:
        with self._choices.locked():
            self._follow()
            self._library.scan()
            decide()

    async def activate(self, version: str, force: bool = False) -> None:
        """Verify, load, warm and serve a version in the place of those that it has tables in common with.

        Raises:
            ApiError: 404 unknown, 409 damaged, or incompatible and not forced; what was served then stays.
        """
        await self._decide(lambda: self._activate(version, force))

    def _activate(self, version: str, force: bool) -> None:
        known = self._library.find(version)
        if known is None:
            there = ", ".join(sorted({known.version for known in self._library if known.version})[:20])
            raise ApiError(404, "version_not_found", f"no snapshot has version {version[:80]!r}; there are {there}")
        if known.refused:
            raise _damaged(known.refused)
        if version in self.active:
            return
        try:
            tables = self._load(known, verify=True)
        except SnapshotError as error:
            raise _damaged(str(error)) from None
        replaced = self._blocking(version, self.active)
        old = {name: served.table for other in replaced for name, served in self._loaded[other].items()}
        problems = incompatibilities(old, {name: served.table for name, served in tables.items()})
        if problems and not force:
            self._declined[version] = f"incompatible: {'; '.join(problems)}"
            if version not in self.previous:
                del self._loaded[version]
            raise ApiError(
                409,
                "snapshot_incompatible",
                f"version {version} would break clients: {'; '.join(problems)}. What is active stays; "
                "activate it with ?force=true if that is meant",
            )
        self._declined.pop(version, None)
        self._seen.add(version)
        active = (*(other for other in self.active if other not in replaced), version)
        self._write(active, self.active)
        self._install(active, self.active)
        log.warning("version %s is active in the place of %s", version, ", ".join(replaced) or "none")

    async def rollback(self) -> None:
        """Serve what was active before the last change; doing it twice changes nothing.

        Raises:
            ApiError: 409 when nothing was, or it is no longer there.
        """
        await self._decide(self._rollback)

    def _rollback(self) -> None:
        if not self.previous:
            raise ApiError(409, "nothing_to_roll_back", "no other version was active before; activate one by its name")
        missing = [version for version in self.previous if not self._try(version)]
        if missing:
            raise ApiError(
                409, "nothing_to_roll_back", f"the snapshot of version {', '.join(missing)} is no longer there"
            )
        before, now = self.previous, self.active
        self._seen |= {known.version for known in self._library}
        self._write(before, now)
        self._install(before, now)
        log.warning("rolled back to %s", ", ".join(before))

    async def refresh(self) -> None:
        """Do what another process decided, if it did."""
        if self._choices.changed():
            await self._alone(self._follow)

    def _follow(self) -> None:
        choice = self._choices.read() if self._choices.changed() else None
        if choice is None or (choice.active, choice.previous) == (self.active, self.previous):
            return
        self._library.scan()
        if all(self._try(version) for version in choice.active):
            self._seen = set(choice.seen)
            self._install(choice.active, tuple(version for version in choice.previous if self._try(version)))
        else:
            log.error("another process activated %s, which is not there", ", ".join(choice.active))

    async def watch(self) -> None:
        """Activate snapshots that arrived since the last look."""
        await self._decide(self._arrivals)

    def _arrivals(self) -> None:
        new = [known for known in self._library if known.version and known.version not in self._seen]
        for known in reversed(new):  # the newest last
            if known.refused:
                continue
            try:
                self._activate(known.version, force=False)
            except ApiError as error:
                log.error("%s is not activated: %s", known.path.name, error.message)
            if not (self._library.find(known.version) or known).refused:  # a damaged file may be mended
                self._seen.add(known.version)
                self._write(self.active, self.previous)

    def knows(self, version: str) -> bool:
        """Whether there is a snapshot of this version, loaded or not."""
        return self._library.find(version) is not None

    async def describe(self) -> dict[str, Any]:
        """What ``/v1/snapshots`` tells."""
        async with self._lock:
            await asyncio.to_thread(self._library.scan)
            return {
                "active": list(self.active),
                "previous": list(self.previous),
                "durable": self._choices.durable,
                "snapshots": [self._describe(known) for known in self._library],
            }

    def _describe(self, known: Known) -> dict[str, Any]:
        version, reason = known.version, known.refused or self._declined.get(known.version, "")
        state = "active" if version in self.active else "previous" if version in self.previous else "inactive"
        spec = known.info.spec if known.info is not None else None
        return {
            "version": version or None,
            "file": known.path.name,
            "state": "refused" if reason and state == "inactive" else state,
            "reason": reason or None,
            "modified_s": known.stamp[0] / 1e9,
            "file_nbytes": known.stamp[1],
            "nbytes": spec.nbytes if spec is not None else None,
            "ratio": round(spec.ratio, 4) if spec is not None else None,
            "tables": [
                {"name": table.name, "num_embeddings": table.num_embeddings, "embedding_dim": table.embedding_dim}
                for table in known.tables
            ],
        }


def _damaged(reason: str) -> ApiError:
    return ApiError(409, "snapshot_damaged", f"{reason}; what is active stays")
