"""The batch script that a SLURM job is submitted with: a shipped one, with a plan in it."""

import re
import shlex

from hybridiff.cluster.queue import assignment, comment
from hybridiff.cluster.sizing import Size, walltime
from hybridiff.corpus.corpus import Corpus
from hybridiff.errors import UsageError
from hybridiff.secrets import redact

_OPTION = re.compile(r"^#SBATCH --(?P<name>[a-z-]+)([= ].*)?$")


def write_script(
    template: str, arguments: list[str], size: Size, corpus: Corpus, gpus: int, ranks: int, array: bool, own: dict[str, str]
) -> str:
    """A batch script of its own for a job.

    Args:
        template: Text of slurm/array.sbatch for an ``array``, else of slurm/generate.sbatch, as shipped or edited.
        arguments: Of jobs/generate.py.
        size: Of the job.
        corpus: That it makes.
        gpus: Of a node; 0 to draw on its CPUs.
        ranks: Of a node.
        array: Whether it is an array of single nodes.
        own: More of sbatch's options, by name.
    """
    wanted: dict[str, str | None] = {"time": walltime(size.walltime_s), "comment": comment(corpus)}
    wanted |= {"array": f"0-{size.tasks - 1}"} if array else {"nodes": str(size.tasks)}
    wanted |= {"gpus-per-node": str(gpus)} if gpus else {"gpus-per-node": None, "ntasks-per-node": str(ranks)}
    variables = {"RANKS_PER_NODE": str(ranks)} if gpus and ranks != gpus else {}
    variables |= {"ASSIGNMENT": "static"} if array and assignment(corpus) == "static" else {}
    return render(template, {**wanted, **own}, arguments, variables)


def render(template: str, options: dict[str, str | None], arguments: list[str], variables: dict[str, str]) -> str:
    """A batch script of its own: a shipped one, with other ``#SBATCH`` options and with its arguments inside.

    Args:
        template: Text of slurm/generate.sbatch or slurm/array.sbatch, as shipped or edited.
        options: By name without dashes; those that the template has are replaced, or left out where None, others are added after
            its last.
        arguments: Of jobs/generate.py; those given to sbatch come after them, and win.
        variables: Of the environment, which the script sets.
    """
    left = dict(options)
    lines = []
    for line in template.splitlines():
        match = _OPTION.match(line)
        name = match["name"] if match else ""
        if name not in options:
            lines.append(line)
        elif (value := left.pop(name, None)) is not None:
            lines.append(_option(name, value))
    last = max(index for index, line in enumerate(lines) if _OPTION.match(line))
    lines[last + 1 : last + 1] = [_option(name, value) for name, value in left.items() if value is not None]
    start = lines.index("set -euo pipefail")
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines[start:start] = [*exports, f'set -- {shlex.join(arguments)} "$@"']
    return "\n".join(line for line in lines if not line.startswith("# Edit three lines")) + "\n"


def check_secrets(passed: list[str]) -> None:
    """Refuses secrets among arguments of jobs/generate.py, which the script would show to everybody.

    Raises:
        UsageError: naming the option that holds one.
    """
    for name, value in zip(["", *passed], [*passed, ""], strict=True):
        given = name if "=" in name else f"{name}={value}"
        if name.startswith("--") and redact(given) != given:
            raise UsageError(
                f"{given.partition('=')[0].removeprefix('--')} holds a secret, and batch scripts are kept and shown by SLURM; "
                "allowed: secrets in the environment, such as AWS_SECRET_ACCESS_KEY, or in a file given with --config"
            )


def _option(name: str, value: str) -> str:
    return f"#SBATCH --{name}={shlex.quote(value)}"
