"""What a drawing moves, and how often it waits: counted apart, as counting takes time."""

from dataclasses import dataclass

from jobs.benchmark.contender import Contender
from jobs.benchmark.syncs import HostSyncs
from jobs.benchmark.world import World


@dataclass(frozen=True)
class Traffic:
    """Of one drawing, spread over its steps.

    Args:
        collectives_per_step: Of a group.
        bytes_per_step: Sent by all ranks of a group together.
        bytes_per_image: The same.
        host_syncs_per_step: Of one rank, apart from the scheduler's.
        scheduler_syncs_per_step: Within the step of Diffusers' scheduler.
    """

    collectives_per_step: float
    bytes_per_step: float
    bytes_per_image: float
    host_syncs_per_step: float
    scheduler_syncs_per_step: float


def watch(contender: Contender, world: World, images: range) -> Traffic:
    """Draws images with everything counted; every rank calls it alike."""
    exchange = contender.handle.exchange
    collectives, sent = exchange.collectives, exchange.bytes_sent
    with HostSyncs() as syncs, syncs.apart(contender.pipeline.scheduler):
        contender.draw(images, "latent")
    groups, steps = world.size // contender.row.group_size, sum(contender.counts.values())
    sent_by_group = sum(world.gather(exchange.bytes_sent - sent)) // groups
    aside = syncs.counts["scheduler"]
    return Traffic(
        collectives_per_step=(exchange.collectives - collectives) / steps,
        bytes_per_step=sent_by_group / steps,
        bytes_per_image=sent_by_group / len(images),
        host_syncs_per_step=(syncs.total - aside) / steps,
        scheduler_syncs_per_step=aside / steps,
    )
