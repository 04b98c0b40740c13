"""One process's part of a run: from its first round, or from a checkpoint, to its end."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import ray

from actors.cluster.connection import ClusterContext
from actors.cluster.ray_internals import spilled_bytes
from actors.run.checkpoints import load_state, save_checkpoint, save_models
from actors.run.interrupt import GraceOver, StopRequest
from actors.run.listener import Event, Listener
from actors.run.meters import Meters
from actors.run.recovery import Recovery, StateLost
from actors.run.rounds import Rounds
from actors.run.run_state import RunState
from actors.run.team import AGGREGATOR, Member, RowRefs, Team, create_actor
from actors.workers.contract import ActorFactory
from actors.workers.origin import Origin, versions
from hsee_ray.errors import Interrupted, RunError, TakenOverError
from hsee_ray.evaluation.calibration import CALIBRATION_FILE
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup
from hsee_ray.models.weights import weights_sha256
from hsee_ray.rundir.checkpoint import Manifest, Progress, newest_checkpoint, remove_newer
from hsee_ray.rundir.location import RunLocation
from hsee_ray.rundir.run import ERROR_FILE, MODELS_DIR, SUMMARY_FILE
from hsee_ray.rundir.run_log import RunLog, check_parts
from hsee_ray.rundir.summary import DataSummary, build_summary, write_summary
from hsee_ray.simulation.clock import clock_of
from hsee_ray.simulation.prediction import RoundCost
from hsee_ray.simulation.timeline import TIMELINE_FILE, Timeline

CHECKPOINTS_DIR = "checkpoints"


class Session:
    """One process's part of a run: from its first round, or from a checkpoint, to its end."""

    def __init__(
        self,
        setup: Setup,
        location: RunLocation,
        listener: Listener,
        stop: StopRequest,
        context: ClusterContext,
        create: ActorFactory = create_actor,
    ) -> None:
        self.setup = setup
        self.config = setup.config
        self.clock = clock_of(setup)
        self.location = location
        self.run_dir = location.local
        self.timeline = self._timeline(0, 0.0)
        self.spilled_bytes = spilled_bytes()
        """Bytes that Ray had spilled to disk before the run."""
        self.listener = listener
        self.stop = stop
        self.uri = location.place(CHECKPOINTS_DIR)
        self.storage = location.storage(CHECKPOINTS_DIR)
        rows, origin = (
            (None, None) if context.local else (RowRefs.put(setup), Origin(versions(), location.uri, location.token))
        )
        self.team = Team(setup, ray.put(setup), context.slot_plan, rows, origin, context.at_a_time, create)
        listener.assembled(self.team)
        self.progress = Progress(setup.config.model_dump(mode="json"))
        self.recovery = Recovery(self.team, self.progress.history, listener.happened)
        # Nobody looks at the metrics of a Ray that ends with the run.
        self.meters = None if context.local else Meters(location.name, setup.fleet)
        self.rounds = Rounds(
            setup, self.team, self.recovery, stop, listener.trained, listener.entered, context, self._worked
        )

    def train(self, resumed: tuple[Manifest, Progress] | None) -> None:
        """All rounds that are left, and the final files."""
        if resumed is not None:
            self.recovery.history.by_actor.update(resumed[1].history.by_actor)
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
        """Gives back what outlives the actors on a cluster that goes on."""
        self.rounds.close()
        self.team.release()

    def _open_record(self, found: tuple[Manifest, Progress] | None) -> None:
        """The record as a checkpoint knows it; whatever was written after it is removed."""
        self.progress = Progress({}) if found is None else found[1]
        self.progress.config = self.config.model_dump(mode="json")
        self.progress.fingerprint = dict(self.setup.fingerprint)
        self.progress.history = self.recovery.history
        self.record = RunLog(self.run_dir, self.setup, self.progress)
        self.timeline = self._timeline(self.progress.round_number, self.progress.wall_s)
        if self.clock is not None:
            self.clock.set(self.progress.ledger, self.progress.trained)

    def _timeline(self, done_rounds: int, wall_s: float) -> Timeline:
        shared, rounds = self.setup.strategy.shared_server, self.config.simulation.timeline_rounds
        return Timeline(self.run_dir / TIMELINE_FILE, rounds, done_rounds, wall_s, shared)

    def _take_up(self, found: tuple[Manifest, Progress] | None, again: bool) -> None:
        """Goes to the state of a checkpoint, or to the beginning; later checkpoints are removed.

        `again`: the models have left their first state.
        """
        if again:
            # Reading a checkpoint must not depend on states that are lost.
            self.rounds.go_to(RunState())
        if found is not None:
            self.rounds.go_to(load_state(self.rounds, self.uri, *found))
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
                for number in range(self.rounds.state.round_number + 1, last + 1):
                    report = self.rounds.run_round(number)
                    cost = self._simulated(report)
                    self.record.add(report, cost)
                    self.timeline.write()
                    if self.meters is not None:
                        self.meters.update(report, self.recovery.replaced)
                    self.listener.finished_round(report, cost)
                    if self.stop.asked:
                        break
                    self._send(number)
                    if number % every == 0 or number == last:
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

    def _simulated(self, report: RoundReport) -> RoundCost | None:
        """Simulated cost of the round, where devices are known."""
        if self.clock is None:
            return None
        cost, before = self.clock.advance(report), self.progress.totals.simulated
        self.timeline.simulated(report.round_number, before.total_s if before else 0.0, cost)
        return cost

    def _worked(self, member: Member, stage: str, round_number: int, begin_s: float, end_s: float) -> None:
        actor = self.team.label(self.team.slot_of(member))
        self.timeline.worked(actor, self.team.label(member), stage, round_number, begin_s, end_s)

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
            # Whatever has failed, a new aggregator can write what the driver has references of.
            self.team.replace(AGGREGATOR)
            self._checkpoint(spread=False)
            self.record.write_metrics()
            self.timeline.write()
        except (RunError, OSError, StateLost) as second:
            raise RunError(f"{error}; and no checkpoint could be written ({second})") from error

    def _tell_spilling(self) -> None:
        """Says so when the cluster's object stores were full: disks are slow, and a run is meant to fit."""
        spilled = (spilled_bytes() or 0) - (self.spilled_bytes or 0)
        if spilled > 0:
            text = f"{spilled >> 20:,} MiB went to disk meanwhile: lower pipeline.max_in_flight_mib, or add memory"
            self.listener.happened(Event(self.progress.round_number, "end", "object store", text))

    def _interrupted(self) -> str:
        number = self.rounds.whole.round_number
        kept = f"round {number} is in a checkpoint" if number else "no round was whole yet"
        return f"interrupted; {kept}, continue with --resume {self.location.shown}"

    def _checkpoint(self, spread: bool = True) -> None:
        """Writes the last whole round down. `spread`: by all actors; else by the one that depends on nothing."""
        self.record.cut()
        # First: a checkpoint counts on the record of its rounds.
        self.location.send_all()
        save_checkpoint(
            self.rounds,
            self.storage,
            self.uri,
            self.config.checkpoint.keep,
            self.progress,
            spread,
            self.location.check_owner,
        )

    def _finish(self) -> None:
        digest = weights_sha256(save_models(self.rounds, self.location.place(MODELS_DIR)))
        files = self.setup.files
        summary = build_summary(
            self.config,
            self.setup.fleet,
            self.progress.totals,
            self.setup.local_samples,
            digest,
            wall_s=self.record.wall_s,
            data=DataSummary(files.name, files.image_shape, files.class_names, self.setup.mean_C, self.setup.std_C),
            failures=self.recovery.history.by_actor,
        )
        self.record.finish(summary)
        self.timeline.write()
        # Last: a run directory with a summary is a finished run.
        write_summary(self.run_dir / SUMMARY_FILE, summary)
        self.location.send_all()
        self._tell_spilling()
