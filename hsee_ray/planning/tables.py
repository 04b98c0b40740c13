"""Plans as plain text: costs by unit and cut, options by tier, and plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, get_args

from hsee_ray.config.schema import Config
from hsee_ray.edge.codecs import Codec
from hsee_ray.planning.planner import size_text
from hsee_ray.planning.report import same_cut_note
from hsee_ray.rundir.tables import NONE, Rows, align, percent

if TYPE_CHECKING:
    from hsee_ray.devices.cost import CostTable
    from hsee_ray.planning.report import Plan, TierPlan
    from hsee_ray.planning.search import Figures

CODECS: tuple[Codec, ...] = get_args(Codec)
SHOWN_CODECS = {"none": "float32"}


def cost_rows(costs: CostTable, image_shape: tuple[int, int, int], batch_size: int) -> list[dict[str, Any]]:
    """A row for every cut: what its unit costs per sample, and what both sides cost at a batch size."""
    image_bytes = prod(image_shape)
    rows: list[dict[str, Any]] = []
    for cut, unit in enumerate(costs.units, start=1):
        last = cut == len(costs.units)
        client = costs.client(cut, batch_size, with_exit=not last)
        server = None if last else costs.server(cut, batch_size)
        messages = {codec: None if last else costs.feature_bytes(cut, codec, batch_size) for codec in CODECS}
        rows.append(
            {
                "cut": cut,
                "unit": unit.name,
                "parameters": unit.parameters,
                "multiply_adds": unit.multiply_adds,
                "backward_multiply_adds": unit.backward_multiply_adds,
                "activation_bytes": unit.activation_bytes,
                "feature_shape": list(unit.feature_shape),
                "image_bytes": image_bytes,
                "message_bytes_per_sample": {
                    codec: None if size is None else size / batch_size for codec, size in messages.items()
                },
                "client_step_multiply_adds": client.train.multiply_adds,
                "client_memory_bytes": client.memory.total_bytes,
                "server_step_multiply_adds": None if server is None else server.train.multiply_adds,
                "server_memory_bytes": None if server is None else server.memory.total_bytes,
            }
        )
    return rows


def render_costs(
    rows: Sequence[Mapping[str, Any]], config: Config, image_shape: tuple[int, int, int], batch_size: int
) -> str:
    """Tables of `cost_rows`, and in a sentence how features compare with the image."""
    height, width, channels = image_shape
    image_bytes = prod(image_shape)
    header = ["cut", "unit", "parameters", "mult-adds forward", "mult-adds backward", "kept for backward", "features"]
    units: Rows = [[*header, *(f"{SHOWN_CODECS.get(codec, codec)} sent" for codec in CODECS), "raw image"]]
    sides: Rows = [["cut", "after", "client memory", "client mult-adds", "server memory", "server mult-adds"]]
    for row in rows:
        messages = row["message_bytes_per_sample"].values()
        units.append(
            [
                str(row["cut"]),
                row["unit"],
                f"{row['parameters']:,}",
                f"{row['multiply_adds']:,}",
                f"{row['backward_multiply_adds']:,}",
                size_text(row["activation_bytes"]),
                "x".join(map(str, row["feature_shape"])),
                *(NONE if size is None else size_text(size) for size in messages),
                size_text(image_bytes),
            ]
        )
        server = [row["server_memory_bytes"], row["server_step_multiply_adds"]]
        sides.append(
            [
                str(row["cut"]),
                row["unit"],
                size_text(row["client_memory_bytes"]),
                f"{row['client_step_multiply_adds']:,}",
                *([NONE, NONE] if server[0] is None else [size_text(server[0]), f"{server[1]:,}"]),
            ]
        )
    model = config.model
    return "\n".join(
        [
            f"{model.name} on images of {height}x{width}x{channels}, per sample (features with label and scales, in "
            f"batches of {batch_size}; nothing is sent after the last unit)\n",
            align(units),
            f"\none training step of {batch_size} samples: forward, backward and {config.training.optimizer.name}; the "
            "client with its exit\n",
            align(sides),
            "",
            *_image_sentences(rows, image_bytes),
        ]
    )


def _image_sentences(rows: Sequence[Mapping[str, Any]], image_bytes: int) -> list[str]:
    """The sum that a sceptic does first: what crosses the cut beside the image itself."""
    cuts = [row for row in rows if row["message_bytes_per_sample"]["none"] is not None]
    largest = max(cuts, key=lambda row: row["message_bytes_per_sample"]["none"])
    ends: dict[float, Mapping[str, Any]] = {row["message_bytes_per_sample"]["none"]: row for row in cuts}
    lines = [f"One raw image is {size_text(image_bytes)}. What a sample sends over the cut in training:"]
    for size, row in ends.items():
        sizes = row["message_bytes_per_sample"]
        others = ", ".join(f"{codec} {_times(sizes[codec], image_bytes)}" for codec in CODECS if codec != "none")
        lines.append(f"  after {row['unit']}: {size_text(size)}, {_times(size, image_bytes)} the image ({others})")
    if largest["message_bytes_per_sample"]["none"] > image_bytes:
        lines.append(
            "Where that is more than the image, sending images would be cheaper for the link: a cut there pays by what "
            "stays on the device, and in inference by the samples that the exit answers."
        )
    return lines


def _times(size: float, image_bytes: int) -> str:
    return f"{size / image_bytes:.3g} times"


def render_plan(plan: Plan) -> str:
    """Every tier's cuts with their figures and verdicts, then the plan, its straggler, and the server."""
    blocks: list[str] = []
    for tier in plan.tiers:
        fewest, most = tier.samples
        samples = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
        codec = SHOWN_CODECS.get(tier.codec, tier.codec)
        blocks.append(
            f"{tier.tier}: {tier.clients} x {tier.device} ({size_text(tier.device_bytes)}), {samples} images in "
            f"batches of {tier.batch_size}, features as {codec}\n\n{align(_cut_rows(tier))}"
        )
    blocks.append(
        "per client: memory in training, seconds of computing, uploading and at the server (they overlap), joules, "
        "bytes sent and received; round: of the whole fleet, the other tiers as planned"
    )
    blocks.append("\n".join(_plan_lines(plan)))
    return "\n\n".join(blocks)


def _cut_rows(tier: TierPlan) -> Rows:
    probed = tier.cuts[0].exit_accuracy is not None
    header = ["cut", "after", "memory", "compute s", "upload s", "server s", "round s", "J", "bytes"]
    rows: Rows = [[*header, *(["exit", "server"] if probed else []), "verdict"]]
    for cut in tier.cuts:
        accuracies = [percent(cut.exit_accuracy), percent(cut.server_accuracy)] if probed else []
        rows.append(
            [
                str(cut.cut),
                cut.name,
                size_text(cut.need_bytes),
                *(_digits(value) for value in (cut.compute_s, cut.upload_s, cut.server_s, cut.round_s)),
                _digits(cut.joules),
                size_text(cut.sent_bytes),
                *accuracies,
                cut.rejected or "recommended",
            ]
        )
    return rows


def _plan_lines(plan: Plan) -> list[str]:
    named = ", ".join(f"{tier.cuts[tier.cut - 1].name} for {tier.tier}" for tier in plan.tiers)
    limit = "" if plan.limit_s is None else f" with rounds of at most {plan.limit_s:g} s"
    who = plan.straggler
    lines = [
        f"least {plan.objective}{limit}: {named}",
        f"  a round: {_figures(plan.round)}; {_digits(plan.exchange_s)} s of it for parameters",
    ]
    if plan.configured is not None:
        lines.append(f"  with the cuts of the config: {_figures(plan.configured)}")
    lines += [
        f"straggler: client {who.client} ({who.tier}), done after {_digits(who.end_s)} s, most of it {who.resource} "
        f"(compute {_digits(who.compute_s)} s, upload {_digits(who.upload_s)} s, server "
        f"{_digits(who.server_s)} s)",
        f"server: {plan.server}, {size_text(plan.server_need_bytes)} of {size_text(plan.server_bytes)} for its models",
        f"{plan.plans:,} plans fit the devices; rounds simulated to find the best: {plan.simulated}",
    ]
    note = same_cut_note(plan)
    return lines if note is None else [*lines, note]


def _figures(figures: Figures) -> str:
    return f"{_digits(figures.seconds)} s, {_digits(figures.joules)} J on devices, {size_text(figures.sent_bytes)}"


def _digits(value: float) -> str:
    """Three digits or more: `0.00123`, `12.3`, `1,234`."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"
