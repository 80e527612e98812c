"""Everything that a benchmark's configuration asks for, row by row."""

from collections.abc import Mapping

from hybridiff.models.inputs import find_denoiser
from hybridiff.parallel import Group
from jobs.benchmark.config import FidelityConfig, SettingConfig
from jobs.benchmark.costs import LargestSegment, measure_costs, published_bytes
from jobs.benchmark.fidelity import Fidelity, compare_rows
from jobs.benchmark.networks import Network, load_network
from jobs.benchmark.pipelines import capture_call, check_rows, largest_segment
from jobs.benchmark.progress import Progress
from jobs.benchmark.ranks import Ranks
from jobs.benchmark.report import Report, Row, Table
from jobs.benchmark.speed import Speed, time_rows


def measure(report: Report, ranks: Ranks, progress: Progress) -> None:
    """Measures everything into the report; every rank calls it alike and gets the same report.

    Raises:
        UsageError: an option does not fit, found before the long part begins where that is possible.
    """
    config = report.config
    if config.bytes is not None:
        report.bytes_per_image = published_bytes(config.bytes)
    if config.network is None:
        return
    groups = ranks.groups({1, *(row.group_size for row in config.rows)}) if config.timing is not None else {}
    captions = config.fidelity or FidelityConfig()
    network = load_network(config.network, captions.captions, captions.seed, ranks.device, progress.say)
    for setting in config.settings:
        check_rows(network, setting, config.rows_at(setting))
    largest = largest_segment(network, config.settings[0])
    report.largest_share = largest.two if largest else None
    for setting in config.settings if config.has_tables else ():
        _fill_table(report, setting, network, largest, ranks, groups, progress)
    if config.costs is not None:
        progress.say(f"{config.network.label}: cost of single steps, {config.costs.repeats} repeats")
        args, kwargs = capture_call(network, config.settings[0], [0])
        costs = measure_costs(find_denoiser(network.pipeline), args, kwargs, config.costs)
        report.costs = ranks.gather(costs)[0]
        progress.measured(f"costs: {report.costs.both_ms:.2f} ms for both branches", report)


def _fill_table(
    report: Report,
    setting: SettingConfig,
    network: Network,
    largest: LargestSegment | None,
    ranks: Ranks,
    groups: Mapping[int, Group],
    progress: Progress,
) -> None:
    config, table = report.config, Table(setting)
    configs = config.rows_at(setting)
    rows = [Row.at(setting, row) for row in configs]
    report.tables.append(table)
    title = f"{network.config.label}, {setting.steps} steps, guidance {setting.guidance_scale:g}: {len(rows)} rows"
    if config.timing is not None:
        rounds = config.timing.rounds
        progress.say(f"{title}, timing: a round to warm up, one that counts traffic, and {rounds} measured ones")
        for index, speed in time_rows(configs, config.timing, setting, network, largest, ranks, groups):
            rows[index].speed = speed
            table.rows = [row for row in rows if row.speed]
            number = f"round {len(speed.rounds_s)} of {rounds}, row {index + 1} of {len(rows)}"
            progress.measured(f"{number}, {rows[index].name}: {_speed_line(speed)}", report)
    if config.fidelity is not None:
        progress.say(f"{title}, fidelity on {config.fidelity.captions} captions")
        for index, fidelity in enumerate(compare_rows(configs, config.fidelity, setting, network, largest, ranks)):
            rows[index].fidelity = fidelity
            table.rows = [row for row in rows if row.speed or row.fidelity]
            progress.measured(f"row {index + 1} of {len(rows)}, {rows[index].name}: {_fidelity_line(fidelity)}", report)


def _speed_line(speed: Speed) -> str:
    return f"{speed.rounds_s[-1]:.2f} s; so far {speed.seconds_per_image:.3f} s/image, speed-up {speed.speedup:.2f}"


def _fidelity_line(fidelity: Fidelity) -> str:
    similarity = fidelity.baseline
    return f"PSNR {similarity.psnr_median:.1f} / {similarity.psnr_worst:.1f} dB by baseline, ideal speed-up {fidelity.ideal:.2f}"
