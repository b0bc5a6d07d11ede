"""A submission against what it is to rank: all that is wrong, or its score.

NAIC's test folder as the competition would look at it, or the evaluations that a config tests on.
"""
from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets.bases import QueryGallery, names_of_results
from datasets.files.images import FileSource, is_safe_path, list_images
from datasets.files.same_file import identify
from datasets.naic import TEST_DIR, data_root
from datasets.registry import ChosenSets
from datasets.sets.domains import DOMAINS, PARTS
from datasets.sets.naic_test import read_domains, read_truth
from processor.retrieval.metrics import format_figures
from processor.retrieval.submission import LeftOut, Problem, score_submission, submission_problems
from utils.files import read_json

logger = logging.getLogger(__name__)
Domains = dict[tuple[str, str], list[str]]  # (part, domain) -> names of its images


@dataclass(frozen=True)
class SubmissionReport:
    """The result of a check.

    Attributes:
        problems: in the order of the file; none: the competition takes it.
        about: what a valid file holds, in a few words.
        figures: its score if the truth is known, else {}.
        protocol: what its score counts.
        hint: what to do if the problems may come from how it was checked, or "".
    """

    problems: list[Problem] = field(default_factory=list)
    about: str = ""
    figures: dict[str, float | int] = field(default_factory=dict)
    protocol: str = ""
    hint: str = ""

    def lines(self, limit: int = 20) -> list[str]:
        """The first `limit` problems and how many there are of each kind, or what is valid and its score."""
        if not self.problems:
            return [f"valid: {self.about}", *([_score_line(self.figures), self.protocol] if self.figures else [])]
        count = len(self.problems)
        kinds = Counter(problem.kind for problem in self.problems)
        return [
            *(problem.text for problem in self.problems[:limit]),
            *([f"… and {count - limit:,} more"] if count > limit else []),
            *([self.hint] if self.hint else []),
            f"invalid: {count:,} problem{'s' * (count > 1)} "
            f"({', '.join(f'{number:,} × {kind}' for kind, number in kinds.most_common())})",
        ]


def validate_submission(path: str | os.PathLike, root: str | os.PathLike, test_dir: str = TEST_DIR, top_k: int = 200,
                        derived_dir: str | os.PathLike | None = None) -> SubmissionReport:
    """Check an answer file against the images of a test folder, and score it if the truth is known.

    Every image of query/ needs a list of top_k different images of gallery/. Our models search a query's own domain:
    if there are domain lists, a list may also be as short as that domain's gallery. The competition knows no domains;
    neither does the score: matches are counted in the whole gallery, and the camera does not matter.

    Args:
        path: the submission JSON.
        root: the folder that holds MyDataSet/, or MyDataSet itself.
        test_dir: the test folder's name inside MyDataSet/.
        top_k: names that a list should hold, cut to the size of the gallery, and the k of mAP@k.
        derived_dir: folder of the domain lists if the test folder has none; None: `derived` beside the file or beside
            its folder, run.sh's place for it, is tried.
    Raises:
        ValueError: an argument, or the ground truth or the domain lists of the data, cannot be used.
        OSError: the file, the test folder or the domain lists of derived_dir are missing.
    """
    path = _check_arguments(path, top_k)
    data = data_root(root)
    folder = _test_folder(data, test_dir)
    images = {part: list_images(folder / part) for part in PARTS}
    for part, names in images.items():
        if not names:
            raise ValueError(f"{folder / part} holds no image: nothing to check the submission against")
    truth = read_truth(data, folder, images)
    domains = _find_domains(folder, images, path, derived_dir)
    fewest = domains and {query: max(1, min(top_k, len(domains["gallery", domain])))
                          for domain in DOMAINS for query in domains["query", domain]}
    problems = list(submission_problems(path, images["query"], images["gallery"], top_k, fewest))
    if problems:
        short = domains is None and any(problem.kind == "wrong length" for problem in problems)
        return SubmissionReport(problems, hint=_NO_DOMAINS if short else "")
    answer, pids = read_json(path), [{}, {}]
    if truth:
        pids = [{name: truth[f"{part}/{name}"][0] for name in images[part]} for part in PARTS]
    return SubmissionReport(about=_describe(answer, path, len(images["gallery"])),
                            figures=_score(answer, *pids, top_k), protocol=_PROTOCOL)


def validate_ranking(path: str | os.PathLike, sets: ChosenSets, top_k: int = 200) -> SubmissionReport:
    """Check an answer file against the evaluations that a config tests on, and score it where the truth is known.

    Every query needs a list of top_k different images of its own evaluation's gallery, or of all of a smaller one.

    Args:
        path: the submission JSON, as tools/test.py writes it.
        sets: what is tested on, be it test sets or a validation split.
        top_k: as `validate_submission`.
    Raises:
        ValueError, OSError: an argument or the data cannot be used.
    """
    path = _check_arguments(path, top_k)
    data, files, _ = sets.load(train=False)
    name_of = names_of_results(data.eval_sets)
    gallery_of: dict[str, set[str]] = {}
    pids: list[dict[str, tuple[str, int]]] = [{}, {}]  # of queries, of gallery images
    left_out: dict[str, LeftOut] = {}
    gallery: dict[str, None] = {}
    for domain, pair in data.eval_sets.items():
        names = [[name_of(domain, sample.key) for sample in side] for side in (pair.query, pair.gallery)]
        searched = set(names[1])
        gallery |= dict.fromkeys(names[1])
        gallery_of.update((query, searched) for query in names[0])
        if pair.has_truth:
            for known, side, samples in zip(pids, names, (pair.query, pair.gallery), strict=True):
                known |= {name: (domain, sample.pid) for name, sample in zip(side, samples, strict=True)}
            left_out |= _left_out(pair, *names, files)
    fewest = {query: min(top_k, len(names)) for query, names in gallery_of.items()}
    problems = list(submission_problems(path, list(gallery_of), list(gallery), top_k, fewest))
    answer = {} if problems else read_json(path)
    problems += [Problem("foreign gallery", f"query {query!r}: {min(other)!r} is of another set's gallery")
                 for query, names in answer.items() if (other := set(names) - gallery_of[query])]
    if problems:
        return SubmissionReport(problems)
    return SubmissionReport(about=_describe(answer, path, len(gallery)), figures=_score(answer, *pids, top_k, left_out),
                            protocol=_OWN_PROTOCOL)


def _left_out(pair: QueryGallery, query: list[str], gallery: list[str], files: FileSource) -> dict[str, LeftOut]:
    """{query: what its evaluation leaves out}: its own file, and, where the set says so, its person from its camera.

    The queries of a person and a camera share a set, because all may be of one: memory is of images, not of pairs.
    """
    q_files, g_files = (identify(files, (sample.key for sample in side)) for side in (pair.query, pair.gallery))
    of_file, of_camera = _sets_by(g_files, gallery), {}
    if pair.drop_same_camera:
        of_camera = _sets_by([(sample.pid, sample.camid) for sample in pair.gallery], gallery)
    searched = list(zip(pair.gallery, g_files, strict=True))
    by_pid = Counter(sample.pid for sample in pair.gallery)
    by_file = Counter((file, sample.pid) for sample, file in searched)
    by_both = Counter((file, sample.pid, sample.camid) for sample, file in searched)
    left_out = {}
    for name, (_, pid, camid, *_), file in zip(query, pair.query, q_files, strict=True):
        of_query = of_file.get(file), of_camera.get((pid, camid))
        both = by_both[file, pid, camid] if pair.drop_same_camera else 0
        matches = by_pid[pid] - by_file[file, pid] - len(of_query[1] or ()) + both
        left_out[name] = LeftOut(tuple(names for names in of_query if names), matches)
    return left_out


def _sets_by(labels: list[Hashable], names: list[str]) -> dict[Hashable, set[str]]:
    """{label: the names that have it}."""
    sets: dict[Hashable, set[str]] = defaultdict(set)
    for label, name in zip(labels, names, strict=True):
        sets[label].add(name)
    return sets


def _check_arguments(path: str | os.PathLike, top_k: int) -> Path:
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: a list holds at least one name")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no submission file {path}")
    return Path(path)


def _describe(answer: dict[str, list[str]], path: Path, gallery: int) -> str:
    """What a valid file holds."""
    lengths = sorted({len(names) for names in answer.values()})
    return (f"{len(answer):,} queries × {' to '.join(f'{n:,}' for n in dict.fromkeys((lengths[0], lengths[-1])))} "
            f"names of {gallery:,}, {path.stat().st_size:,} bytes")


_OWN_PROTOCOL = ("scored by each set's own protocol, from the lists as far as they go: a query's own file does not "
                 "count, nor its person from its own camera where the set says so; metrics.json beside a submission is "
                 "of whole rankings")
_PROTOCOL = ("scored by the competition's protocol: the lists as they are (re-ranked, if the model was tested so), "
             "matches in the gallery of all domains, all cameras; metrics.json beside a submission is by its own "
             "`protocol`: its figures may differ")
_NO_DOMAINS = ("lists were expected to be full, since no domain lists were found (tools/split_domains.py makes them, "
               "--derived names their folder): a list may be as short as the gallery of its query's domain")


def _test_folder(data: Path, test_dir: str) -> Path:
    if not is_safe_path(test_dir):
        raise ValueError(f"test_dir={test_dir!r} must be the name of a folder inside {data}")
    for part in PARTS:
        if not (data / test_dir / part).is_dir():
            raise FileNotFoundError(f"no test folder {data / test_dir / part}; name the folder in {data} that has "
                                    "query/ and gallery/ with --test_dir")
    return data / test_dir


def _find_domains(folder: Path, images: dict[str, list[str]], path: Path,
                  derived_dir: str | os.PathLike | None) -> Domains | None:
    """The domain lists of the test folder or of the derived folder; None if those in the usual places do not fit."""
    if derived_dir is not None:
        return read_domains(folder, images, Path(derived_dir))
    for place in (path.absolute().parent / "derived", path.absolute().parent.parent / "derived"):
        try:
            return read_domains(folder, images, place)
        except FileNotFoundError:
            continue
        except ValueError as error:  # these lists need not belong to this test folder
            logger.info("domain lists are not used: %s", error)
    return None


def _score(answer: dict[str, list[str]], query_pids: Mapping[str, Hashable], gallery_pids: Mapping[str, Hashable],
           top_k: int, left_out: Mapping[str, LeftOut] | None = None) -> dict[str, float | int]:
    """The figures of a valid answer, {} without a truth to compare it with; see `score_submission`."""
    if not query_pids:
        return {}
    try:
        return score_submission(answer, query_pids, gallery_pids, top_k, left_out)
    except ValueError as error:  # no query has a match: that is a fault of the truth, not of the answer
        logger.warning("no score: %s", error)
        return {}


def _score_line(figures: dict[str, float | int]) -> str:
    names = {"rank1": "rank-1", "naic_score": "NAIC score"}
    means = format_figures({names.get(name, name): value for name, value in figures.items()})
    return f"{means} ({figures['num_valid']:,} of {figures['num_queries']:,} queries have a match)"
