"""Cutting a validation split from training data: which identities, and which of their images are queries."""
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice

from datasets.bases import UNKNOWN_CAMID, ReIDData, Sample
from datasets.files.images import ImageSource
from datasets.sets.domains import DOMAINS, classify
from datasets.validation.people import Person, people_of
from datasets.validation.split import VALIDATION, ValidationSplit, evaluation
from utils.seed import generator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitRequest:
    """What to cut out; its fields are recorded in the split's file.

    Attributes:
        identities: with queries.
        distractors: identities that stand in the gallery only.
        compare: read every image first, so that identities that are one person count, and stay, together.
        green: share of both that are green, the rest are normal; None: one evaluation without domains.
        queries: of an identity, at most; one match at least stays in the gallery.
        seed: of the choice.
    """

    identities: int
    distractors: int
    green: float | None
    queries: int = 1
    seed: int = 0
    compare: bool = True

    def __post_init__(self) -> None:
        if self.identities < 1 or self.distractors < 0 or self.queries < 1 or self.seed < 0:
            raise ValueError(f"identities={self.identities}, distractors={self.distractors}, queries={self.queries}, "
                             f"seed={self.seed}: at least 1, 0, 1 and 0")
        if self.green is not None and not 0 <= self.green <= 1:
            raise ValueError(f"green={self.green} is no share in 0..1")

    def quotas(self) -> dict[str, list[int]]:
        """evaluation -> [identities with queries, distractors]; those of no identity are left out."""
        wanted = [self.identities, self.distractors]
        if self.green is None:
            return {VALIDATION: wanted}
        green = [round(count * self.green) for count in wanted]
        shares = zip(DOMAINS, (green, [count - part for count, part in zip(wanted, green, strict=True)]), strict=True)
        return {domain: quota for domain, quota in shares if quota[0]}


@dataclass
class _Draft:
    """An evaluation as it grows: how many [queried, distractor] identities are missing, and {key: identity}."""

    missing: list[int]
    query: dict[str, str] = field(default_factory=dict)
    gallery: dict[str, str] = field(default_factory=dict)


def cut(data: ReIDData, source: ImageSource, request: SplitRequest, settings: dict,
        workers: int | None = None) -> ValidationSplit:
    """Take people out of the training data, in the order of a shuffle, until the request is met.

    The identities of a person (see datasets.validation.people) go together, under the first name, each of their
    pictures once. A person belongs to the domain of most pictures (green if they are as many); those of the other
    domain stand in that domain's gallery, in which nothing matches them. A person with a match for a query is queried
    as long as such are missing, else a distractor. The choice depends on names, keys and the seed, not on the order of
    lists.

    Args:
        data: the training data; it stays as it is.
        source: reads the images, to compare them and to find their domains.
        settings: recorded in the split's file, for people.
        workers: processes that decode; None = one a core, eight at most.
    Raises:
        ValueError: the data have too few identities for the request.
    """
    data = _without_a_single_camera(data)
    people = people_of(data, source if request.compare else None)
    if request.identities + request.distractors >= len(people):
        raise ValueError(f"{request.identities} identities and {request.distractors} distractors of {len(people)} "
                         "leave none to train on")
    drafts = {name: _Draft(quota) for name, quota in request.quotas().items()}
    chosen: tuple[list[str], list[str]] = ([], [])  # queried, distractors
    with closing(_walk(people, source, request, workers)) as walk:
        for person, images in walk:
            if not any(any(draft.missing) for draft in drafts.values()):
                break
            role = _place(person.names[0], images, drafts, request.queries)
            if role is not None:
                chosen[role].extend(person.names)
    roles = ("with a match for a query", "as distractors")
    lacking = [f"{missing} {role} in {name}" for name, draft in drafts.items()
               for missing, role in zip(draft.missing, roles, strict=True) if missing]
    if lacking:
        match = ""
        if any(sample.camid != UNKNOWN_CAMID for sample in data.train):
            match = " (where cameras are known, a match is an image from another camera)"
        raise ValueError(f"too few of the {len(people)} identities fit: missing are {', '.join(lacking)}{match}; ask "
                         "for fewer, or for another share of green ones")
    queried, distractors = map(sorted, chosen)
    pid_names = sorted([*queried, *distractors])
    cameras = {sample.key: sample.camid for sample in data.train if sample.camid != UNKNOWN_CAMID}
    eval_sets = {name: evaluation(draft.query, draft.gallery, cameras, pid_names) for name, draft in drafts.items()}
    return ValidationSplit(queried, distractors, eval_sets, settings)


def _without_a_single_camera(data: ReIDData) -> ReIDData:
    """The data with their only camera unknown: it tells nothing apart, and no query had a match from another."""
    cameras = {sample.camid for sample in data.train}
    if len(cameras) == 1 and UNKNOWN_CAMID not in cameras:
        logger.warning("all images are from one camera: images from a query's own camera are matches in the split")
        return replace(data, train=[sample._replace(camid=UNKNOWN_CAMID) for sample in data.train])
    return data


def _walk(people: list[Person], source: ImageSource, request: SplitRequest,
          workers: int | None) -> Iterator[tuple[Person, list[tuple[Sample, str]]]]:
    """(person, its images with their evaluations, in a random order) for each person, in a random order.

    Images are decoded as the walk goes on; a person with an image that cannot be read is passed over.
    """
    random = generator(request.seed, 0, "validation split")
    walk = []
    for index in random.permutation(len(people)):
        samples = people[index].samples
        walk.append((people[index], [samples[i] for i in random.permutation(len(samples))]))
    if request.green is None:
        yield from ((person, [(sample, VALIDATION) for sample in samples]) for person, samples in walk)
        return
    keys = [sample.key for _, samples in walk for sample in samples]
    with closing(classify(keys, source.read, workers)) as results:
        for person, samples in walk:
            domains = list(islice(results, len(samples)))
            faults = [f"{sample.key}: {fault}" for sample, (_, fault) in zip(samples, domains, strict=True) if fault]
            if faults:
                logger.warning("identity %s is passed over: %s", person.names[0], faults[0])
                continue
            yield person, [(sample, domain) for sample, (domain, _) in zip(samples, domains, strict=True)]


def _place(pid_name: str, images: list[tuple[Sample, str]], drafts: dict[str, _Draft],
           max_queries: int) -> int | None:
    """Enter an identity into a draft that lacks it; its role: 0 = with queries, 1 = distractor, None = not entered."""
    counts = Counter(domain for _, domain in images)
    main = max(counts, key=lambda domain: (counts[domain], domain == DOMAINS[0]))
    if main not in drafts:
        return None
    draft = drafts[main]
    queries = choose_queries([sample for sample, domain in images if domain == main], max_queries)
    role = 0 if queries and draft.missing[0] else 1
    if not draft.missing[role]:
        return None
    draft.missing[role] -= 1
    query_keys = {sample.key for sample in queries} if role == 0 else set()
    draft.query |= dict.fromkeys(sorted(query_keys), pid_name)
    for sample, domain in images:
        if sample.key not in query_keys and domain in drafts:
            drafts[domain].gallery[sample.key] = pid_name
    return role


def choose_queries(samples: list[Sample], most: int) -> list[Sample]:
    """The first images of an identity that can be queries together: each keeps a match among the images that are none.

    A match is another image, from another camera if both cameras are known.

    Args:
        most: queries at most.
    """
    queries: list[Sample] = []
    rest, cameras = Counter(sample.camid for sample in samples), set()  # of no queries; of queries
    for sample in samples:
        if len(queries) == most:
            break
        rest.subtract([sample.camid])
        if not rest[sample.camid]:
            del rest[sample.camid]
        only = next(iter(rest)) if len(rest) == 1 else UNKNOWN_CAMID
        if rest and (only == UNKNOWN_CAMID or (only != sample.camid and only not in cameras)):
            queries.append(sample)
            cameras.add(sample.camid)
        else:
            rest[sample.camid] += 1
    return queries
