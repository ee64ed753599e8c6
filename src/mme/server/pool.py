"""Decides which worker gets which call of one model, in what order, and how many workers there are.

First in, first out. DJL Serving's rules for the queue's length, batches, and when to scale up and down; unlike there,
scaling never holds a call up, and a worker that crashes or is late costs the calls it has, and is replaced at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from mme.server.call import Call, Counters
from mme.server.config import ModelConfig
from mme.server.connection import Process, Worker
from mme.server.errors import LoadFailed, NoWorkers, QueueFull, ServerError, WorkerFailed, told
from mme.server.forks import ForkRefused
from mme.server.nursery import CannotFork, Nursery, Template, WorkerProcess, WorkerSpec

log = logging.getLogger(__name__)

_ASYNC_CALLS = 1000  # in flight in one worker with an `async def handle`
_MAX_BATCH_BYTES = 512 << 20  # a batch is one frame, and a frame has a limit
_MAX_AHEAD_BYTES = 1 << 16  # of a call that is handed to a busy worker: its socket has room for a few of these
_MAX_FAILED_STARTS = 3  # in a row, before a model without workers is given up; retry_threshold allows more
_RETRY_S = 0.2  # before the second of them; doubled each time
_EXIT_TIMEOUT_S = 5.0


class Pool:
    """The workers of one model and the queue before them."""

    def __init__(self, config: ModelConfig, spec: WorkerSpec, nursery: Nursery) -> None:
        self.config = config
        self.min_workers = config.min_workers
        self.max_workers = config.max_workers
        self.workers: list[Worker] = []
        self.queue: deque[Call] = deque()
        self.template: Template | None = None
        self.counters = Counters()
        self.on_change: Callable[[], None] = lambda: None
        self.is_failed = False
        self._spec = spec
        self._nursery = nursery
        self._loop = asyncio.get_running_loop()
        self._free: list[Worker] = []
        self._cannot_fork = ""
        self._starting: WorkerProcess | None = None
        self._grower: asyncio.Task[None] | None = None
        self._failed_starts = 0
        # A batch is better formed when a worker is free, and an `async def handle` takes calls while it has others.
        self._may_hand_ahead = config.batch_size == 1 and not config.async_mode
        self._is_closed = False
        self._batch_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start the least number of workers. Raises LoadFailed or what it covers; then nothing is left running."""
        try:
            while len(self.workers) < self.min_workers:
                await self._add_worker()
        except BaseException:
            await self.close()
            raise

    def submit(self, call: Call) -> None:
        """Queue a call; it is answered, or fails, later. A model that can't get a worker fails it at once."""
        if self._is_closed or self.is_failed:
            call.failed(WorkerFailed(f"Model is not ready: {self.config.name}"))
            return
        if not self.max_workers:
            call.failed(NoWorkers(self.config.name))
            return
        call.queued_at = self._loop.time()
        call.counters = self.counters
        # DJL counts the place of the call that a worker is about to take.
        places = self.config.queue_size - (1 if self.workers and not self._free else 0)
        if not (self._free and not self.queue) and self.waiting >= places:
            call.failed(QueueFull(self.config.name))
            return
        self.queue.append(call)
        call.wait(self._forget)
        self._dispatch()
        self._grow_if_needed()

    @property
    def waiting(self) -> int:
        """How many calls no worker has begun."""
        return len(self.queue) + sum(len(worker.ahead) for worker in self.workers)

    def scale(self, min_workers: int, max_workers: int) -> asyncio.Task[None] | None:
        """Set new bounds; returns the task that starts what is missing, if it isn't done at once."""
        self.min_workers, self.max_workers = min_workers, max_workers
        while len(self.workers) > max(max_workers, min_workers) and self._free:
            self._retire(self._free[0])
        self._grow_if_needed()
        return self._grower

    async def close(self) -> None:
        """End all workers and the template; calls under way fail. Returns when no process is left."""
        self._is_closed = True
        for timer in (self._batch_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        error = WorkerFailed("Worker shutting down")
        exits = [worker.process.exited for worker in self.workers]
        for worker in self.workers:
            worker.close(error)
        self._fail_queue(error)
        self.workers, self._free = [], []
        if self._grower is not None and self._grower is not asyncio.current_task():
            self._grower.cancel()
            await asyncio.wait([self._grower])
        if self.template is not None:
            exits.append(self.template.exited)
            self.template.kill()
            self.template = None
        if exits:
            await asyncio.wait(exits, timeout=_EXIT_TIMEOUT_S)

    # Calls

    def _dispatch(self) -> None:
        """Give free workers what waits for them; a batch that isn't full waits for more until its time is up."""
        size = self.config.batch_size
        queue = self.queue
        while queue and self._free:
            if size > 1 and len(queue) < size:
                due = queue[0].queued_at + self.config.max_batch_delay_s
                if due > self._loop.time():
                    if self._batch_timer is None:
                        self._batch_timer = self._loop.call_at(due, self._batch_is_due)
                    return
            worker = self._take()
            now = self._loop.time()
            calls = [queue.popleft()]
            size_bytes = calls[0].size_bytes
            while len(calls) < size and queue and size_bytes + queue[0].size_bytes <= _MAX_BATCH_BYTES:
                calls.append(queue.popleft())
                size_bytes += calls[-1].size_bytes
            if not worker.dispatch(calls, self.config.handler, self.config.predict_timeout_s):
                queue.extendleft(reversed(calls))  # for another; that this one is lost is told soon
                if worker in self._free:
                    self._free.remove(worker)
                continue
            for call in calls:
                self._taken(call, now)
        if queue and self._may_hand_ahead:
            for worker in self.workers:
                while queue and self._hand_ahead(worker, queue[0]):
                    queue.popleft()

    def _hand_ahead(self, worker: Worker, call: Call) -> bool:
        if call.size_bytes > _MAX_AHEAD_BYTES:
            return False
        return worker.hand_ahead(call, self.config.handler, self.config.predict_timeout_s)

    def _take(self) -> Worker:
        """A free worker: the one that was last in use, so that others can become idle; the least loaded if async."""
        if not self.config.async_mode:
            return self._free.pop()
        worker = min(self._free, key=lambda each: len(each.flights))
        if len(worker.flights) + 1 >= _ASYNC_CALLS:
            self._free.remove(worker)
        return worker

    def _taken(self, call: Call, now: float) -> None:
        call.taken()
        self.counters.queued_s += now - call.queued_at

    def _batch_is_due(self) -> None:
        self._batch_timer = None
        self._dispatch()

    def _forget(self, call: Call) -> None:
        for worker in self.workers:
            if call in worker.ahead:
                self.worker_gives_back(worker)
        if call in self.queue:
            self.queue.remove(call)

    def worker_gives_back(self, worker: Worker) -> None:
        """Put what a worker was handed ahead back into the queue, as far as it hasn't begun."""
        calls = []
        while (call := worker.take_back()) is not None:
            calls.append(call)
        self.queue.extendleft(reversed(calls))

    def _fail_queue(self, error: ServerError) -> None:
        while self.queue:
            self.queue.popleft().failed(error)

    def worker_is_free(self, worker: Worker) -> None:
        if worker not in self._free:
            self._free.append(worker)
        if not self.queue:
            behind = [other for other in self.workers if other.ahead]
            if behind:
                self.worker_gives_back(min(behind, key=lambda other: other.ahead[0].queued_at))
        if self.queue:
            self._dispatch()
        elif len(self.workers) > self.min_workers:
            worker.idle_since = self._loop.time()
            if self._idle_timer is None:
                self._idle_timer = self._loop.call_later(self.config.max_idle_s, self._retire_idle)

    def worker_went_on(self, worker: Worker, call: Call) -> None:
        self._taken(call, self._loop.time())
        for other in self.workers:
            if other is not worker and other.ahead and other.ahead[0].queued_at < call.queued_at:
                self.worker_gives_back(other)  # it waits behind a longer call
        self._dispatch()

    # Workers

    def worker_is_lost(self, worker: Worker) -> None:
        if worker not in self.workers:
            return  # it did not get through its init call, which says so itself
        self.counters.crashes += 1
        log.warning("%s: worker %d (pid %d) is gone", self.config.title, worker.id, worker.process.pid)
        self._remove(worker)
        self._dispatch()
        self.on_change()
        self._grow_if_needed()

    def worker_imported(self, modules: list[str]) -> None:
        self._nursery.learn(self._spec, modules)

    def processes(self) -> list[Process | Template]:
        """The workers, the one that is starting, and the template."""
        others = [each for each in (self._starting, self.template) if each is not None]
        return [*(worker.process for worker in self.workers), *others]

    def _remove(self, worker: Worker) -> None:
        self.workers.remove(worker)
        if worker in self._free:
            self._free.remove(worker)

    def _retire(self, worker: Worker) -> None:
        self._remove(worker)
        worker.close()
        self.on_change()

    def _retire_idle(self) -> None:
        """End workers beyond the least number that had nothing to do for max_idle_time."""
        self._idle_timer = None
        now = self._loop.time()
        for worker in [each for each in self._free if not each.flights]:
            if len(self.workers) > self.min_workers and worker.idle_since + self.config.max_idle_s <= now + 0.001:
                self._retire(worker)
        if len(self.workers) > self.min_workers:
            idle = [each.idle_since for each in self._free if not each.flights]
            due = min(idle, default=now) + self.config.max_idle_s
            self._idle_timer = self._loop.call_at(due, self._retire_idle)

    def _grow_if_needed(self) -> None:
        if self._grower is None and self._lacks_worker():
            self._grower = self._loop.create_task(self._grow())

    def _lacks_worker(self) -> bool:
        if self._is_closed or self.is_failed:
            return False
        count = len(self.workers)
        if count < self.min_workers or (not count and self.queue):
            return True
        return count < self.max_workers and self.waiting > 2 * self.config.batch_size

    async def _grow(self) -> None:
        """Start workers one after the other, beside the calls, until there are enough or starting fails for good."""
        try:
            while self._lacks_worker():
                try:
                    await self._add_worker()
                    self._failed_starts = 0
                except ServerError as error:
                    self._failed_starts += 1
                    log.error("%s: a worker did not start: %s", self.config.title, told(error))
                    if self._failed_starts >= max(_MAX_FAILED_STARTS, self.config.retry_threshold):
                        self._give_up()
                        return
                    await asyncio.sleep(_RETRY_S * 2 ** (self._failed_starts - 1))
        finally:
            self._grower = None

    def _give_up(self) -> None:
        """Without a worker the model has failed; with one left it goes on, and tries again when it must."""
        self._failed_starts = 0
        if self.workers:
            self.min_workers = min(self.min_workers, len(self.workers))
            return
        self.is_failed = True
        log.error("%s: no worker can be started; unload the model and load it again", self.config.title)
        self._fail_queue(WorkerFailed(f"Model is not ready: {self.config.name}"))
        self.on_change()

    async def _add_worker(self) -> None:
        """Start one worker and give it calls. Raises ServerError; the process is gone then."""
        try:
            template = await self._get_template() if self.workers else self.template
            async with asyncio.timeout(self.config.load_timeout_s):
                process = self._starting = await self._start_process(template)
                worker = Worker(process, self, self.config.max_content_bytes)
                if template is None:
                    try:
                        await worker.init(dict(self.config.properties))
                    except BaseException:
                        worker.close()
                        raise
        except TimeoutError:
            raise LoadFailed(cause=f"not loaded within {self.config.load_timeout_s:g} s") from None
        except OSError as error:
            raise LoadFailed(f"error={error.errno}, {error.strerror}") from error
        except ForkRefused as refusal:
            raise LoadFailed(cause=str(refusal)) from refusal
        finally:
            self._starting = None
        if self._is_closed:
            worker.close()
            return
        self.workers.append(worker)
        self.on_change()
        self.worker_is_free(worker)

    async def _start_process(self, template: Template | None) -> WorkerProcess:
        """A process from the nursery; one that comes when nobody waits for it any more is killed."""
        start = self._loop.create_task(self._nursery.worker(self._spec, template))
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            start.add_done_callback(_kill_unwanted)
            raise

    async def _get_template(self) -> Template | None:
        """The model's template, made when a second worker is wanted; None where forking isn't possible."""
        if self.template is None and not self._cannot_fork:
            try:
                self.template = await self._nursery.template(self._spec, self.config.load_timeout_s)
            except CannotFork as reason:
                self._cannot_fork = str(reason)
                log.warning("%s: further workers are started without a template: %s", self.config.title, reason)
            else:
                self.template.exited.add_done_callback(self._forget_template)
                self.on_change()
        return self.template

    def _forget_template(self, exited: asyncio.Future[int]) -> None:
        if self.template is not None and self.template.exited is exited:
            self.template = None
            self.on_change()


def _kill_unwanted(start: asyncio.Task[WorkerProcess]) -> None:
    if not start.cancelled() and start.exception() is None:
        start.result().socket.close()
        start.result().kill()
