"""A gallery of people: add pictures, find and name people, correct it, and serve it with a page.

    python tools/gallery.py create   --gallery DIR --model MODEL
    python tools/gallery.py add      --gallery DIR --model MODEL FOLDER|LIST.txt|FILE.csv|WHAT_EMBED_WROTE
    python tools/gallery.py search   --gallery DIR --model MODEL a.jpg       # the nearest pictures
    python tools/gallery.py identify --gallery DIR --model MODEL a.jpg       # who it is, or nobody known
    python tools/gallery.py link     --gallery DIR --threshold 0.7           # rows of nobody yet get people
    python tools/gallery.py assign   --gallery DIR --ids 17 18 --person Ada  # also merge, split, remove, purge, undo
    python tools/gallery.py info     --gallery DIR                           # also scan, compact, verify
    python tools/gallery.py re-embed --gallery DIR --model OTHER --into NEW  # the same people for another model
    python tools/gallery.py serve    --gallery DIR --model MODEL             # http://127.0.0.1:8000/

--gallery is a folder, or qdrant://HOST:PORT/COLLECTION with --state DIR. docs/gallery.md tells about all of it.
"""
import argparse
import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.arguments import make_parser
from utils.logger import run_tool, setup_logger, silence

PIXELS = 40_000_000  # of a picture that the service is sent
TOKEN = "GALLERY_TOKEN"  # the environment's; an argument could be seen by every user of the machine


# ------------------------------------------------------------------ arguments
def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    words = parser.add_subparsers(dest="word", required=True, metavar="|".join(WORDS))
    for name, (run, summary, adders) in WORDS.items():
        word = words.add_parser(name, help=summary, description=summary.capitalize() + ".")
        word.set_defaults(run=run)
        word.add_argument("--gallery", required=True, metavar="URL", help="a folder, or qdrant://HOST:PORT/COLLECTION")
        word.add_argument("--state", type=Path, metavar="DIR", help="of a cluster: names, undo log and thumbnails")
        word.add_argument("--dim", type=int, metavar="D", help="of a new gallery's vectors, or of a cluster's, if no "
                          "model is named")
        word.add_argument("--exact-up-to", type=int, metavar="ROWS", help="of a cluster: up to so many rows a search "
                          "is exact (default 5 million)")
        for add in adders:
            add(word)
    return parser.parse_args()


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="FILE", help="a checkpoint, a model folder or an .onnx file")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")


def _create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vectors", choices=("float32", "float16"), help="float16: half the disk (default: float32)")
    parser.add_argument("--shards", type=int, metavar="N", help="of a cluster's collection")


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", type=Path, help="a folder of pictures; a text with a path a line; a CSV with columns "
                        "path and, if need be, camera, time, person, set; or what tools/embed.py wrote")
    parser.add_argument("--camera", type=int, default=-1, metavar="N", help="where no file tells another")
    parser.add_argument("--set", default="", metavar="NAME", help="where no file tells another")
    parser.add_argument("--pattern", type=_pattern, metavar="REGEX", help="what names tell, for instance "
                        r"'(?P<person>\d+)_c(?P<camera>\d+)'; groups: person camera time set")
    parser.add_argument("--no-thumbnails", action="store_true", help="keep no small pictures")


def _into(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="the new gallery, a folder")
    parser.add_argument("--pictures", nargs="+", type=Path, default=[], metavar="DIR", help="folders in which rows' "
                        "names are paths; a row that has no picture there is embedded from its thumbnail")
    parser.add_argument("--leave-out", action="store_true", help="go on without rows that have neither, and name them")
    parser.add_argument("--vectors", choices=("float32", "float16"), help="of the new gallery (default: float32)")


def _pattern(text: str) -> re.Pattern:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"no regular expression: {error}") from error
    if not pattern.groupindex or set(pattern.groupindex) - {"person", "camera", "time", "set"}:
        raise argparse.ArgumentTypeError("expected groups (?P<NAME>...) of person, camera, time, set")
    return pattern


def _pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")


def _near(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-k", type=int, default=10, help="rows for each picture (default 10)")
    parser.add_argument("--re-rank", action="store_true", help="by k-reciprocal neighbours")


def _threshold(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threshold", type=float, metavar="X", help="least similarity of a known person; default: the "
                        "model's, at --fpr")
    _fpr(parser)


def _fpr(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fpr", type=float, default=1e-3, metavar="X", help="share of pairs of different people that "
                        "the model's threshold takes for one (default 0.001)")


def _filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cameras", nargs="+", type=int, metavar="N", help="only rows of these")
    parser.add_argument("--since", metavar="TIME", help="only rows from then on: ms since 1970, or 2026-01-31T12:00")
    parser.add_argument("--until", metavar="TIME", help="only rows before then")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="only rows of these")
    parser.add_argument("--people", nargs="+", metavar="NAME|#N", help="only rows of these")


def _ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ids", nargs="+", type=int, metavar="ID", help="rows")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON, a line a result, for programs")


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: this machine alone; another "
                        f"address needs a token in the environment's {TOKEN}")
    parser.add_argument("--port", type=int, default=8000, help="default 8000; 0: one that is free")


# ------------------------------------------------------------------ words
def re_embed(args: argparse.Namespace) -> None:
    from processor.embedding.gallery_files import make_pictures
    from processor.gallery.reembed import re_embed as make

    setup_logger()
    embedder = load_embedder(args)
    if embedder is None:
        raise ValueError("re-embed: name the other model with --model")
    pictures = make_pictures(args.pictures, embedder)
    with open_existing(args) as gallery:
        report = make(gallery, args.into, pictures, embedder.dim, embedder.info.model_id, vectors=args.vectors,
                      leave_out=args.leave_out)
    for row, (name, why) in report.left.items():
        print(f"left out: {row}  {name}  {why}")
    print(f"{args.into}: {report.pictures} rows from pictures, {report.thumbnails} from thumbnails, "
          f"{report.earlier} of a run before, {len(report.left)} left out")


def create(args: argparse.Namespace) -> None:
    from processor.gallery import open_gallery

    embedder = load_embedder(args)
    if (embedder is None) == (args.dim is None):
        raise ValueError("create: give either --model or --dim")
    how = {"shards": args.shards} if args.shards else {"vectors": args.vectors} if args.vectors else {}
    dim, model = (embedder.dim, embedder.info.model_id) if embedder else (args.dim, None)
    with open_gallery(args.gallery, dim, model=model, state=args.state, **how) as gallery:
        print(f"{args.gallery}: {gallery.count()} rows of {gallery.dim} numbers")


def add(args: argparse.Namespace) -> None:
    from processor.embedding.gallery_files import Told, add_rows, model_of

    embedder = load_embedder(args)
    with open_existing(args, embedder, model_of(args.place)) as gallery:
        added, known = add_rows(gallery, args.place, embedder, Told(args.camera, args.set, args.pattern),
                                not args.no_thumbnails)
    print(f"{added} rows added" + f", {known} were there already" * bool(known))


def search(args: argparse.Namespace) -> None:
    with asking(args) as (gallery, answers, vectors):
        for picture, rows in zip(args.pictures, answers.search(vectors, args.k, where(args, gallery), args.re_rank),
                                 strict=True):
            report(args, [{"picture": str(picture), **row} for row in rows], "{similarity:.4f}  {person:<20} "
                   "camera {camera}  {time}  {name}", str(picture))


def identify(args: argparse.Namespace) -> None:
    with asking(args) as (gallery, answers, vectors):
        for picture, row in zip(args.pictures, answers.identify(vectors, where(args, gallery), args.threshold),
                                strict=True):
            row["who"] = row["person"] or (row["identity"] and f"#{row['identity']}") or "nobody known"
            report(args, [{"picture": str(picture), **row}], "{picture}  {who}  similarity {similarity:.4f}  "
                   "margin {margin:.4f}")


def link(args: argparse.Namespace) -> None:
    from processor.gallery.linking.rows import GalleryLinker

    embedder = load_embedder(args)
    if embedder is None and args.threshold is None:
        raise ValueError("link: give a --threshold, or a --model that tools/calibrate.py has measured")
    with open_existing(args, embedder) as gallery:
        threshold = embedder.threshold(args.fpr) if args.threshold is None else args.threshold
        kinds = [decision.kind for decision in GalleryLinker(gallery, threshold, where(args, gallery)).link_all()]
        print(", ".join(f"{kinds.count(kind)} {text}" for kind, text in (
            ("join", "rows joined"), ("new", "new people"), ("merge", "merged"), ("move", "moved"))))


def remove(args: argparse.Namespace) -> None:
    with open_existing(args) as gallery:
        rows = where(args, gallery)
        if (args.ids is None) == rows.is_open:
            raise ValueError("remove: give either --ids, or filters")
        print(make_answers(gallery).remove(args.ids, args.erase, None if args.ids else rows)["done"])


def purge(args: argparse.Namespace) -> None:
    from processor.gallery.contract import count_rows

    with open_existing(args) as gallery:
        print(f"{count_rows(gallery.purge(args.older_than))} erased")


def assign(args: argparse.Namespace) -> None:
    with open_existing(args) as gallery:
        if not args.ids:
            raise ValueError("assign: give --ids")
        change = make_answers(gallery)
        number = None if args.person in (None, "") else find_person(gallery, args.person, missing_ok=True)
        print(change.assign(args.ids, number, "" if number is not None else args.person or "")["done"])


def merge(args: argparse.Namespace) -> None:
    with open_existing(args) as gallery:
        print(make_answers(gallery).merge(*(find_person(gallery, name) for name in (args.into, args.other)))["done"])


def split(args: argparse.Namespace) -> None:
    with open_existing(args) as gallery:
        if not args.ids:
            raise ValueError("split: give --ids")
        done = make_answers(gallery).split(args.ids)
        print(f"{done['done']} as #{done['identity']}")


def undo(args: argparse.Namespace) -> None:
    with open_existing(args) as gallery:
        print(make_answers(gallery).undo()["done"])


def info(args: argparse.Namespace) -> None:
    from processor.embedding.gallery_files import describe

    with open_existing(args) as gallery:
        held = getattr(gallery, "info", make_answers(gallery).info)()
        print(json.dumps(held) if args.json else describe(held))


def scan(args: argparse.Namespace) -> None:
    with open_existing(args) as gallery:
        answers = make_answers(gallery)
        for batch in gallery.scan(where(args, gallery)):
            report(args, answers.rows(batch), "{id}  {person:<20} camera {camera}  {time}  {set}  {name}")


def compact(args: argparse.Namespace) -> None:
    with open_existing(args) as gallery:
        print(f"{of_folder(gallery, 'compact')()} bytes freed")


def verify(args: argparse.Namespace) -> None:
    with open_existing(args) as gallery:
        faults = of_folder(gallery, "verify")()
        print("\n".join(faults) or "nothing is wrong")
    sys.exit(bool(faults))


def serve(args: argparse.Namespace) -> None:
    token = os.environ.get(TOKEN) or None
    if not is_local(args.host) and token is None:
        raise ValueError(f"--host {args.host}: on another address than 127.0.0.1 the service wants a token: set "
                         f"{TOKEN} to a long secret, which clients send as the header Authorization: Bearer TOKEN")
    try:
        import uvicorn

        from processor.embedding.gallery_files import make_vision
        from processor.gallery.service.app import make_app
        from processor.gallery.service.guard import Limits
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install -r requirements-serve.txt") from error
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((args.host, args.port))
    except OSError as error:
        raise ValueError(f"--host {args.host} --port {args.port}: {error.strerror}; name another") from error
    setup_logger()
    embedder = load_embedder(args)
    with open_existing(args, embedder) as gallery:
        vision = make_vision(embedder, args.fpr, PIXELS) if embedder else None
        app = make_app(gallery, vision, token=token, limits=Limits(pixels=PIXELS))
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises it once more when it has finished
            signal.signal(number, lambda *_: None)
        listening.listen(128)
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"http://{host}:{listening.getsockname()[1]}/  {gallery.count()} rows; ends with Ctrl-C", flush=True)
        with silence("python_multipart"):  # what is wrong with a form is in the answer
            uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets=[listening])


def is_local(host: str) -> bool:
    """Whether an address is this machine's alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ------------------------------------------------------------------ what words share
def open_existing(args: argparse.Namespace, embedder: Any = None, model: str = "") -> Any:
    """The gallery of --gallery, which must be there, for vectors of `embedder` or of the model_id."""
    from processor.gallery import open_gallery

    if "://" not in args.gallery:
        return open_gallery(args.gallery, model=embedder.info.model_id if embedder else model or None)
    if args.state is None:
        raise ValueError(f"{args.gallery}: name the folder of its names, undo log and thumbnails with --state DIR")
    dim, model = (embedder.dim, embedder.info.model_id) if embedder else (args.dim, model or None)
    return open_gallery(args.gallery, dim, model=model, state=args.state, exact_up_to=args.exact_up_to)


def of_folder(gallery: Any, method: str) -> Callable:
    """A method that only a folder has."""
    if not hasattr(gallery, method):
        raise ValueError(f"{method}: of a folder alone; a cluster does this itself")
    return getattr(gallery, method)


def load_embedder(args: argparse.Namespace) -> Any:
    """The model of --model, or None."""
    if args.model is None:
        return None
    from processor.embedder import Embedder

    return Embedder.load(args.model, args.device)


def make_answers(gallery: Any, vision: Any = None) -> Any:
    from processor.gallery.service.answers import Answers

    return Answers(gallery, vision, os.environ.get("USER", "command line"))


@contextlib.contextmanager
def asking(args: argparse.Namespace) -> Iterator[tuple[Any, Any, Any]]:
    """The gallery, its answers, and the rows of the pictures."""
    from processor.embedding.gallery_files import make_vision

    embedder = load_embedder(args)
    if embedder is None:
        raise ValueError(f"{args.word}: pictures are embedded with a model: name it with --model")
    with open_existing(args, embedder) as gallery:
        vision = make_vision(embedder, getattr(args, "fpr", 1e-3), PIXELS)
        yield gallery, make_answers(gallery, vision), embedder.embed(args.pictures)


def find_person(gallery: Any, name: str, missing_ok: bool = False) -> int | None:
    """The identity that a name or #number means."""
    if re.fullmatch(r"#\d+", name):
        return int(name[1:])
    number = next((identity for identity, held in gallery.ledger.names().items() if held == name), None)
    if number is None and not missing_ok:
        raise ValueError(f"nobody in the gallery is called {name}; an identity without a name is #NUMBER")
    return number


def where(args: argparse.Namespace, gallery: Any) -> Any:
    """The filter of the arguments."""
    from processor.embedding.gallery_files import read_time
    from processor.gallery.contract import Where

    times = [None if text is None else read_time(text) for text in (args.since, args.until)]
    people = None if args.people is None else tuple(find_person(gallery, name) for name in args.people)
    return Where(args.cameras, *times, people, args.sets)


def report(args: argparse.Namespace, rows: Iterable[dict], line: str, title: str = "") -> None:
    """Results for people or for programs; with a title `rows` is a list."""
    from datetime import datetime

    if title and not args.json:
        print(title if rows else f"{title}: nothing found")
    for row in rows:
        if args.json:
            print(json.dumps(row, ensure_ascii=False))
            continue
        if "id" in row:
            row = {**row, "person": row["person"] or (row["identity"] and f"#{row['identity']}") or "nobody yet",
                   "camera": "?" if row["camera"] is None else row["camera"], "time": "?" if row["time"] is None else
                   datetime.fromtimestamp(row["time"] / 1000).isoformat(" ", "seconds")}
        print(line.format(**row))


def _erase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--erase", action="store_true", help="overwrite them on the disk at once")


def _person(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--person", metavar="NAME|#N", help="whose they are; a new name is a new person; without it, "
                        "nobody's")


def _two(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("into", metavar="INTO", help="a name, or #NUMBER")
    parser.add_argument("other", metavar="OTHER", help="is INTO from now on")


def _age(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--older-than", type=float, required=True, metavar="DAYS")


# Word -> what it runs, what it does, its arguments.
WORDS: dict[str, tuple[Callable, str, tuple[Callable, ...]]] = {
    "create": (create, "make an empty gallery for a model's vectors", (_model, _create)),
    "add": (add, "add pictures or rows; what is there already is passed over", (_model, _add)),
    "re-embed": (re_embed, "make a new gallery of the same pictures with another model", (_model, _into)),
    "search": (search, "find the nearest pictures", (_model, _pictures, _near, _filter, _json)),
    "identify": (identify, "say who is on pictures, or that nobody known is",
                 (_model, _pictures, _threshold, _filter, _json)),
    "link": (link, "give rows of nobody yet to people, by time", (_model, _threshold, _filter)),
    "remove": (remove, "remove rows; undo brings back those that are not erased", (_ids, _filter, _erase)),
    "purge": (purge, "erase all rows that are older", (_age,)),
    "assign": (assign, "say whose rows these are", (_ids, _person)),
    "merge": (merge, "say that two identities are one person", (_two,)),
    "split": (split, "say that rows are of another, new person", (_ids,)),
    "undo": (undo, "take the last assignment, merge, split, name or removal back", ()),
    "info": (info, "say what the gallery holds", (_json,)),
    "scan": (scan, "list rows", (_filter, _json)),
    "compact": (compact, "free the room of removed rows", ()),
    "verify": (verify, "look for damage; exit code 1 if there is any", ()),
    "serve": (serve, "answer over HTTP, with a page", (_model, _serve, _fpr)),
}


def main() -> None:
    args = parse_args()
    try:
        args.run(args)
    except KeyError as error:  # how a gallery names a row, a person or a merge that is not there
        raise ValueError(error.args[0]) from error


if __name__ == "__main__":
    run_tool(main)
