"""Look for faults by trying, reproducibly: python tools/campaign.py [NAME ...] [--seconds N] [--seed S]

Each campaign tries one kind of bad luck over the framework's commands, and prints what it tried, how often, and what it
found; a finding is kept with the input that made it. docs/reliability.md has the figures of the long runs.
"""
import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.campaigns.record import Campaign, format_reports
from utils.files import write_json
from utils.logger import run_tool, setup_logger


class Kind(NamedTuple):
    """A kind of campaign; its module has run_campaign(campaign)."""

    summary: str
    module: str


CAMPAIGNS: dict[str, Kind] = {
    "paths": Kind("odd names, links, pipes, devices, closed doors where tools read and write",
                  "tools.campaigns.paths"),
    "machine": Kind("no HOME, a small /dev/shm, closed streams, other clocks and locales", "tools.campaigns.machine"),
    "kill": Kind("commands that are killed or stopped, and begun again", "tools.campaigns.kill"),
    "disk": Kind("writes that fail, are cut short, or have no room", "tools.campaigns.disk"),
    "distributed": Kind("trainings on two hosts: a rank killed or stopped, the link cut",
                        "tools.campaigns.distributed"),
    "scale": Kind("lists, the doctor, resume and submissions at full size, and indices of an attacker",
                  "tools.campaigns.scale"),
    "inputs": Kind("damaged and hostile files of every kind that is read", "tools.campaigns.inputs"),
}


def parse_args() -> argparse.Namespace:
    """The command line."""
    kinds = "\n".join(f"  {name:12} {kind.summary}" for name, kind in CAMPAIGNS.items())
    parser = argparse.ArgumentParser(description=f"{__doc__}\ncampaigns:\n{kinds}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all, one after another)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N",
                        help="no case of a campaign begins later than this (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all random choices (default: 0)")
    parser.add_argument("--only", type=int, metavar="CASE", help="repeat this case of one campaign")
    parser.add_argument("--quick", action="store_true", help="the cheapest cases only, as the tests do")
    parser.add_argument("--chores", nargs="+", default=(), metavar="CHORE",
                        help="of kill and disk: these commands only, by their names in tools/campaigns/chores.py; of "
                             "inputs: the kinds with one of these in their names")
    parser.add_argument("--every", action="store_true",
                        help="of disk: each change of a file fails once, in order, instead of drawn ones")
    parser.add_argument("--output", type=Path, default=Path("output/campaign"), metavar="DIR",
                        help="for the work and the findings; a campaign's folder in it must not be there "
                             "(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all reports")
    args = parser.parse_args()
    unknown = set(args.names) - set(CAMPAIGNS)
    if unknown:
        parser.error(f"no campaign {', '.join(sorted(unknown))}; there are {', '.join(CAMPAIGNS)}")
    if args.only is not None and len(args.names) != 1:
        parser.error("--only needs the name of one campaign")
    if args.chores and not set(args.names or CAMPAIGNS) <= {"kill", "disk", "inputs"}:
        parser.error("--chores is for kill, disk and inputs")
    if args.every and args.names != ["disk"]:
        parser.error("--every is for disk")
    return args


def main() -> None:
    args = parse_args()
    setup_logger()
    reports = []
    for name in args.names or CAMPAIGNS:
        folder = args.output.resolve() / name
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty: remove it, or name another --output")
        folder.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(name, folder, args.seed, args.seconds, args.only, args.quick,
                            tuple(args.chores), args.every)
        try:
            import_module(CAMPAIGNS[name].module).run_campaign(campaign)
        finally:  # what was found until an interruption is found
            reports.append(campaign.write())
    if args.json:
        write_json(args.json, reports)
    print(format_reports(reports))
    sys.exit(any(report["findings"] for report in reports))


if __name__ == "__main__":
    run_tool(main)
