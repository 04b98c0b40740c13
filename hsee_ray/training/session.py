"""One process's part of a run: from its first round, or from a checkpoint, to its end."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

from hsee_ray.errors import DataError, Interrupted, RunError, TakenOverError
from hsee_ray.evaluation.calibration import CALIBRATION_FILE
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup
from hsee_ray.models.weights import weights_sha256
from hsee_ray.rundir.checkpoint import Progress, newest_checkpoint, read_checkpoint, remove_newer
from hsee_ray.rundir.location import RunLocation
from hsee_ray.rundir.run import CHECKPOINTS_DIR, ERROR_FILE, SUMMARY_FILE
from hsee_ray.rundir.run_log import RunLog, check_parts
from hsee_ray.rundir.summary import DataSummary, build_summary, write_summary
from hsee_ray.simulation.clock import clock_of
from hsee_ray.simulation.prediction import RoundCost
from hsee_ray.simulation.timeline import TIMELINE_FILE, Timeline
from hsee_ray.training.engine import Backend, Resumed, RunContext, StateLost
from hsee_ray.training.interrupt import GraceOver, StopRequest
from hsee_ray.training.listener import Event, Listener


class Session:
    """One process's part of a run: from its first round, or from a checkpoint, to its end."""

    def __init__(
        self,
        setup: Setup,
        location: RunLocation,
        listener: Listener,
        stop: StopRequest,
        backend: Backend,
    ) -> None:
        self.setup = setup
        self.config = setup.config
        self.clock = clock_of(setup)
        self.location = location
        self.run_dir = location.local
        self.timeline = self._timeline(0, 0.0)
        self.listener = listener
        self.stop = stop
        self.storage = location.storage(CHECKPOINTS_DIR)
        self.progress = Progress(setup.config.model_dump(mode="json"))
        self.history = self.progress.history
        context = RunContext(setup, location, listener, stop, self.history, self._worked)
        self.engine = backend.engine(context)

    def train(self, resumed: Resumed) -> None:
        """All rounds that are left, and the final files."""
        if resumed is not None:
            self.history.by_actor.update(resumed[1].history.by_actor)
        found, again = resumed, False
        while True:
            self._open_record(found)
            try:
                self._take_up(found, again)
                self._reopen()
                self.listener.started(self.setup, self.progress.round_number)
                self._rounds()
                self._finish()
                return
            except StateLost as lost:
                damaged: list[str] = []
                found, again = newest_checkpoint(self.storage, damaged, partial(check_parts, self.run_dir)), True
                where = f"round {found[0].round_number}" if found else "the beginning"
                reasons = "".join(f" ({reason})" for reason in damaged)
                self.listener.happened(
                    Event(lost.failure.round_number, lost.failure.stage, "run", f"goes back to {where}{reasons}")
                )
            finally:
                self.record.close()

    def close(self) -> None:
        self.engine.close()

    def _open_record(self, found: Resumed) -> None:
        """The record as a checkpoint knows it; whatever was written after it is removed."""
        self.progress = Progress({}) if found is None else found[1]
        self.progress.config = self.config.model_dump(mode="json")
        self.progress.fingerprint = dict(self.setup.fingerprint)
        self.progress.history = self.history
        self.record = RunLog(self.run_dir, self.setup, self.progress)
        self.timeline = self._timeline(self.progress.round_number, self.progress.wall_s)
        if self.clock is not None:
            self.clock.set(self.progress.ledger, self.progress.trained)

    def _timeline(self, done_rounds: int, wall_s: float) -> Timeline:
        shared, rounds = self.setup.strategy.shared_server, self.config.simulation.timeline_rounds
        return Timeline(self.run_dir / TIMELINE_FILE, rounds, done_rounds, wall_s, shared)

    def _take_up(self, found: Resumed, again: bool) -> None:
        """Goes to the state of a checkpoint, or to the beginning; later checkpoints are removed.

        `again`: the models have left their first state.
        """
        self.engine.take_up(found, again)
        remove_newer(self.storage, self.progress.round_number)

    def _reopen(self) -> None:
        """Removes what a finished run had and a running one has not, once there is something to go on from.

        A calibration is one of weights that are about to change.
        """
        had = [self.run_dir / name for name in (SUMMARY_FILE, ERROR_FILE, CALIBRATION_FILE)]
        if any(path.exists() for path in had):
            for path in had:
                path.unlink(missing_ok=True)
            self.location.send_all()

    def _rounds(self) -> None:
        """Trains what is left, with a checkpoint now and then, and one when the run is to end before its time."""
        last, every = self.config.training.rounds, self.config.checkpoint.every
        try:
            with self.stop.listening(self.config.checkpoint.grace_s):
                for number in range(self.engine.whole_round + 1, last + 1):
                    if self._is_past_its_best(number - 1):
                        break
                    report = self.engine.run_round(number)
                    cost = self._simulated(report)
                    self.record.add(report, cost)
                    best = self.config.training.keep == "best" and self.progress.judge(report)
                    self.timeline.write()
                    self.listener.finished_round(report, cost)
                    if self.stop.asked:
                        break
                    self._send(number)
                    if best or number % every == 0 or number == last or self._is_past_its_best(number):
                        self._checkpoint()
        except GraceOver:
            self._end_early(spread=False)
        except TakenOverError:
            raise
        except RunError as error:
            self._save_what_there_is(error)
            raise
        if self.stop.asked:
            self._end_early(spread=True)

    def _is_past_its_best(self, number: int) -> bool:
        """Whether the run ends with this round, since so many have not been better than the best one."""
        patience, best = self.config.training.patience, self.progress.best_round
        return patience is not None and best > 0 and number - best >= patience

    def _simulated(self, report: RoundReport) -> RoundCost | None:
        """Simulated cost of the round, where devices are known."""
        if self.clock is None:
            return None
        cost, before = self.clock.advance(report), self.progress.totals.simulated
        self.timeline.simulated(report.round_number, before.total_s if before else 0.0, cost)
        return cost

    def _worked(self, row: str, model: str, stage: str, round_number: int, begin_s: float, end_s: float) -> None:
        self.timeline.worked(row, model, stage, round_number, begin_s, end_s)

    def _send(self, round_number: int) -> None:
        """Uploads the run's files; a failed upload is reported and repeated after the next round."""
        trouble = self.location.send()
        if trouble is not None:
            text = f"could not be written to ({trouble}); tried again after the next round"
            self.listener.happened(Event(round_number, "send", self.location.uri, text))

    def _end_early(self, spread: bool) -> NoReturn:
        """Raises Interrupted, with the last whole round in a checkpoint."""
        self._checkpoint(spread)
        self.record.write_metrics()
        self.timeline.write()
        raise Interrupted(self._interrupted(), self.stop.signal_number or 0)

    def _save_what_there_is(self, error: RunError) -> None:
        """A checkpoint of the last whole round when the run fails."""
        try:
            self._checkpoint(spread=False, after_failure=True)
            self.record.write_metrics()
            self.timeline.write()
        except (RunError, OSError, StateLost) as second:
            raise RunError(f"{error}; and no checkpoint could be written ({second})") from error

    def _interrupted(self) -> str:
        number = self.engine.whole_round
        kept = f"round {number} is in a checkpoint" if number else "no round was whole yet"
        return f"interrupted; {kept}, continue with --resume {self.location.shown}"

    def _checkpoint(self, spread: bool = True, after_failure: bool = False) -> None:
        """Writes the last whole round down. `spread`: by all actors; else by the one that depends on nothing."""
        self.record.cut()
        # First: a checkpoint counts on the record of its rounds.
        self.location.send_all()
        self.engine.save_checkpoint(self.progress, spread, after_failure)

    def _go_to_best(self) -> None:
        """Makes the models those of the best round, whose checkpoint is kept."""
        best = self.progress.best_round
        if self.config.training.keep == "last" or best == self.progress.round_number:
            return
        try:
            found = read_checkpoint(self.storage, best)
        except DataError as error:
            raise RunError(f"{error}; --resume with --set training.keep=last keeps the last round's models") from None
        self.engine.take_up(found, again=True)
        self.progress.totals.evaluation = found[1].totals.evaluation

    def _finish(self) -> None:
        self._go_to_best()
        digest = weights_sha256(self.engine.save_models())
        files = self.setup.files
        summary = build_summary(
            self.config,
            self.setup.fleet,
            self.progress.totals,
            self.setup.local_samples,
            digest,
            wall_s=self.record.wall_s,
            data=DataSummary(files.name, files.image_shape, files.class_names, self.setup.mean_C, self.setup.std_C),
            failures=self.history.by_actor,
            best_round=self.progress.best_round if self.config.training.keep == "best" else None,
        )
        self.record.finish(summary)
        self.timeline.write()
        # Last: a run directory with a summary is a finished run.
        write_summary(self.run_dir / SUMMARY_FILE, summary)
        self.location.send_all()
