"""One run of the benchmark."""

from collections.abc import Mapping

from hybridiff.models.inputs import find_denoiser
from hybridiff.parallel import Group
from jobs.benchmark.config import BenchmarkConfig, FidelityConfig, RowConfig, SettingConfig
from jobs.benchmark.contender import capture_call, largest_segment
from jobs.benchmark.costs import Costs, measure_costs
from jobs.benchmark.fidelity import Likeness, compare_rows
from jobs.benchmark.ideal import LargestSegment
from jobs.benchmark.report import Report, Row, Table
from jobs.benchmark.subject import Subject, check_rows, load_subject
from jobs.benchmark.timing import Speed, time_rows
from jobs.benchmark.traffic import published_bytes
from jobs.benchmark.world import World


def run(config: BenchmarkConfig, world: World) -> Report:
    """Measures everything that is asked for; every rank calls it alike and gets the same report.

    Raises:
        UsageError: something does not fit, said before the long part begins where that can be known.
    """
    sent = published_bytes(config.bytes) if config.bytes is not None else {}
    if config.subject is None:
        return Report(config, world.size, bytes_per_image=sent)
    timed = config.timing is not None
    groups = world.groups({1, *(row.group_size for row in config.rows)}) if timed else {}
    captions = config.fidelity or FidelityConfig()
    subject = load_subject(config.subject, captions.captions, captions.seed, world.device)
    for setting in config.settings:
        check_rows(subject, setting, config.rows_at(setting))
    largest = largest_segment(subject, config.settings[0])
    tables = [_table(config, setting, subject, largest, world, groups) for setting in config.settings] if _tables(config) else []
    return Report(config, world.size, largest.two if largest else None, tables, _costs(config, subject, world), sent)


def _tables(config: BenchmarkConfig) -> bool:
    return config.timing is not None or config.fidelity is not None


def _table(
    config: BenchmarkConfig,
    setting: SettingConfig,
    subject: Subject,
    largest: LargestSegment | None,
    world: World,
    groups: Mapping[int, Group],
) -> Table:
    rows = config.rows_at(setting)
    times: list[Speed | None] = [None] * len(rows)
    likenesses: list[Likeness | None] = [None] * len(rows)
    if config.timing is not None:
        times = [*time_rows(config, setting, subject, largest, world, groups)]
    if config.fidelity is not None:
        likenesses = [*compare_rows(rows, config.fidelity, setting, subject, largest, world)]
    return Table(setting, [_row(row, setting, s, f) for row, s, f in zip(rows, times, likenesses, strict=True)])


def _row(row: RowConfig, setting: SettingConfig, speed: Speed | None, likeness: Likeness | None) -> Row:
    return Row(
        name=row.label(setting),
        schedule=row.schedule,
        options=row.options,
        group_size=row.group_size,
        sampling_steps=row.steps(setting),
        scheduler=(row.scheduler or "").removesuffix("Scheduler"),
        speed=speed,
        fidelity=likeness,
    )


def _costs(config: BenchmarkConfig, subject: Subject, world: World) -> Costs | None:
    if config.costs is None:
        return None
    args, kwargs = capture_call(subject, config.settings[0], [0])
    costs = measure_costs(find_denoiser(subject.pipeline), args, kwargs, config.costs)
    return world.gather(costs)[0]
