"""`phalanx cluster up|down|status`: a Ray cluster on a list of hosts, by ssh; it begins and ends only its own."""

import argparse
import secrets
import shutil
import sys
from pathlib import Path

from launch.cli_help import parser
from launch.cluster_status import Row, Words, print_clusters
from launch.hosts.raising import Answer, ask_all, raise_cluster
from launch.hosts.record import DEFAULT_NAME, ClusterRecord, name_problem, parse_hosts
from launch.hosts.ssh import ssh_words
from launch.hosts.store import ClusterFolder, find, names
from orchestrator.errors import EXIT_FAILED, ConfigError
from orchestrator.observe.units import plural

_EXAMPLES = """  phalanx cluster up node1 node2 node3
  phalanx cluster up --hosts hosts.txt --name big        # lines HOST [cpus=N] [gpus=N], the head first
  phalanx cluster status
  phalanx cluster down

ssh must reach every host without asking for anything; its own configuration counts (~/.ssh/config). The hosts need
Phalanx in the same place. Train on one of them; docs/ray.md tells more."""
_VERBS = {
    "up": "start Ray on hosts; it stays until `down`",
    "down": "end exactly that",
    "status": "what clusters there are, and each of their hosts",
}


def run(argv: list[str]) -> int:
    """The verb; the exit code. Raises ConfigError, with nothing started, for what can be known before."""
    options = _parser(argv[0]).parse_args(argv[1:])
    if argv[0] != "up" and options.name is not None and (problem := name_problem(options.name)):
        raise ConfigError(problem)
    if shutil.which("ssh") is None:
        raise ConfigError("ssh is not on the PATH; install its client (openssh-client)")
    return {"up": _up, "down": _down, "status": _status}[argv[0]](options)


def _parser(verb: str) -> argparse.ArgumentParser:
    usages = {
        "up": "(HOST ... | --hosts FILE) [options]",
        "down": "[--name NAME] [--forget]",
        "status": "[--name NAME] [--json]",
    }
    parsing = parser(f"cluster {verb}", f"A Ray cluster by ssh: {_VERBS[verb]}.", _EXAMPLES, usages[verb])
    parsing.add_argument("--name", default=DEFAULT_NAME if verb != "status" else None, help="of the cluster")
    if verb == "up":
        parsing.add_argument("host", nargs="*", help="the head first")
        parsing.add_argument("--hosts", metavar="FILE", help="lines HOST [cpus=N] [gpus=N]; # begins a comment")
        parsing.add_argument("--cpus", type=int, help="that Ray may use of each host (default: all)")
        parsing.add_argument("--gpus", type=int, help="as --cpus")
        parsing.add_argument("--python", default=sys.executable, help="on the hosts (default: %(default)s)")
        parsing.add_argument("--ssh-config", metavar="FILE", help="instead of ~/.ssh/config")
        parsing.add_argument("--timeout", type=float, default=180.0, metavar="S", help="(default: %(default)g)")
    if verb == "down":
        parsing.add_argument("--forget", action="store_true", help="also where a host can't be asked any more")
    if verb == "status":
        parsing.add_argument("--json", action="store_true", help="for programs")
    return parsing


def _up(options: argparse.Namespace) -> int:
    record = _wanted(options)
    folder = ClusterFolder(record.name)
    with folder.locked():
        if folder.read() is not None:
            raise ConfigError(
                f"cluster {record.name} is there already; look at it with phalanx cluster status, end it with "
                f"phalanx cluster down --name {record.name}, or give this one another --name"
            )
        token = secrets.token_hex(32)
        folder.create(record, token)
        try:
            record = raise_cluster(record, token, options.timeout, write=folder.write, say=_say)
        except BaseException:
            folder.remove()
            raise
    print(
        f"{plural(len(record.hosts), 'host')} up: {', '.join(host.name for host in record.hosts)}\n"
        f"address    {record.address}\n"
        f"train      export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder.token}\n"
        f"           phalanx train cluster.address={record.address} ...      on one of these hosts\n"
        f"end it     phalanx cluster down --name {record.name}"
    )
    return 0


def _wanted(options: argparse.Namespace) -> ClusterRecord:
    problems = [problem for problem in (name_problem(options.name),) if problem]
    if bool(options.host) == (options.hosts is not None):
        problems.append("name the hosts, or a file of them: phalanx cluster up node1 node2, or --hosts FILE")
    sizes = {"cpus": (options.cpus, 1), "gpus": (options.gpus, 0)}
    for name, (value, least) in sizes.items():
        if value is not None and value < least:
            problems.append(f"--{name} {value} is too small; use {least} or more, or leave it out")
    if options.timeout <= 0:
        problems.append(f"--timeout {options.timeout:g} is out of range; use a number of seconds above 0")
    if problems:
        raise ConfigError(*problems)
    every = "".join(f" {name}={value}" for name, (value, _) in sizes.items() if value is not None)
    if options.hosts is None:
        hosts = parse_hosts([host + every for host in options.host], where="host")
    else:
        hosts = parse_hosts([_first(line, every) for line in _lines(options.hosts)], where=f"{options.hosts}, line")
    config_file = options.ssh_config and str(Path(options.ssh_config).absolute())
    return ClusterRecord(
        name=options.name,
        mark=secrets.token_hex(16),
        hosts=tuple(hosts),
        ssh=ssh_words(config_file),
        python=options.python,
        started={},
    )


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--hosts {file} can't be read ({reason}); name a text file") from error


def _first(line: str, every: str) -> str:
    """A host's own sizes come after those of all: the last one counts."""
    host, _, own = line.partition("#")[0].strip().partition(" ")
    return f"{host}{every} {own}" if host else ""


def _down(options: argparse.Namespace) -> int:
    folder = ClusterFolder(options.name)
    with folder.locked():
        record = folder.read()
        if record is None:
            print(f"no cluster called {options.name} is up")
            return 0
        answers = ask_all(record, "end")
        problems = [words for answer in answers if (words := _not_ended(answer))]
        for words in problems:
            print(words, file=sys.stderr)
        if problems and not options.forget:
            print(
                f"cluster {record.name} has ended elsewhere; repeat the command later, or say --forget",
                file=sys.stderr,
            )
            return EXIT_FAILED
        folder.remove()
    print(f"cluster {record.name} has ended: {', '.join(answer.host for answer in answers if answer.message)}")
    return 0


def _not_ended(answer: Answer) -> str | None:
    if answer.message is None:
        return f"{answer.host} could not be asked: {answer.problem}"
    if left := answer.message["left"]:
        return f"{answer.host} has processes that do not end though they were killed: {', '.join(map(str, left))}"
    return None


def _status(options: argparse.Namespace) -> int:
    chosen = names() if options.name is None else [find(options.name)[1].name]
    rows = [_row(*find(name)) for name in chosen]
    nothing = "no cluster is up; to make one: phalanx cluster up HOST ..."
    print_clusters(rows, _words, as_json=options.json, if_none=nothing)
    return 0


def _words(row: Row) -> Words:
    title = f"{row['name']}: {row['address'] or 'it did not come up'}, token {row['token']}"
    return title, [(host["host"], host["state"], host["words"]) for host in row["hosts"]]


def _row(folder: ClusterFolder, record: ClusterRecord) -> Row:
    hosts = []
    for number, answer in enumerate(ask_all(record, "look")):
        role = "head" if number == 0 else ""
        state = "unreachable" if answer.message is None else "up" if answer.message["is_up"] else "gone"
        hosts.append({"host": answer.host, "state": state, "words": answer.problem or role})
    return {"name": record.name, "address": record.address, "token": str(folder.token), "hosts": hosts}


def _say(text: str) -> None:
    print(text, flush=True)
