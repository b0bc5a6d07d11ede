"""Re-ID weights that others published, with the figures that they published. None of these was measured here.

Sources: the README or model zoo of each repository. What no source states stands as "".
"""
from __future__ import annotations

from typing import NamedTuple

NONE_STATED = "none stated"


class Source(NamedTuple):
    """repository: of the code that trained the weights; licences: of the code, and of the weights."""

    repository: str
    code_licence: str
    weights_licence: str = NONE_STATED


class Checkpoint(NamedTuple):
    """layout: a key of LAYOUTS. recipe: what the figures, in percent, are of. mAP, rank1: "" if no source has them."""

    name: str
    source: str
    layout: str
    trained_on: str
    recipe: str
    mAP: str
    rank1: str
    url: str


SOURCES = {
    "fast-reid": Source("https://github.com/JDAI-CV/fast-reid", "Apache-2.0"),
    "torchreid": Source("https://github.com/KaiyangZhou/deep-person-reid", "MIT"),
    "TransReID": Source("https://github.com/damo-cv/TransReID", "MIT"),
    "TransReID-SSL": Source("https://github.com/damo-cv/TransReID-SSL", NONE_STATED),
    "SOLIDER": Source("https://github.com/tinyvision/SOLIDER", NONE_STATED),
    "PASS": Source("https://github.com/CASIA-IVA-Lab/PASS-reID", NONE_STATED),
    "PersonViT": Source("https://github.com/hustvl/PersonViT", NONE_STATED),
    "CLIP-ReID": Source("https://github.com/Syliz517/CLIP-ReID", "MIT"),
}
_MARKET, _MSMT, _PERSONS = "Market-1501", "MSMT17", "LUPerson"
_DRIVE = "https://drive.google.com/file/d/"
_RELEASE = "https://github.com/JDAI-CV/fast-reid/releases/download/v0.1.1/"
_FASTREID = {  # method -> network -> mAP and Rank-1 on Market-1501 and on MSMT17
    "bot": {"R50": "86.1 94.4 50.2 74.1", "R50-ibn": "87.6 94.9 54.4 77.0", "S50": "88.7 95.2 59.9 80.8",
            "R101-ibn": "88.9 95.4 59.4 81.0"},
    "agw": {"R50": "88.2 95.3 55.6 78.3", "R50-ibn": "88.7 95.1 59.7 81.2", "S50": "89.3 95.3 62.6 82.6",
            "R101-ibn": "89.5 95.5 61.4 82.0"},
    "sbs": {"R50": "88.2 95.4 58.4 81.8", "R50-ibn": "89.3 95.7 60.6 83.9", "S50": "89.4 95.8 61.7 84.1",
            "R101-ibn": "90.3 96.3 62.8 84.8"},
}
# (name, trained on, picture, mAP, Rank-1, the file's id)
_TRANSREID = [
    ("ViT-B baseline", _MSMT, "61.8 81.8", "1iF5JNPw9xi-rLY3Ri9EY-PFAkK6Vg_Pf"),
    ("ViT-B baseline", _MARKET, "87.1 94.6", "1crYsKRrW4eUq6abT4KK8_atMLFsbq56W"),
    ("TransReID* ViT-B", _MSMT, "67.8 85.3", "1x6Na97ycxS0t2Dn_0iRKWe1U5ccIqASK"),
    ("TransReID* ViT-B", _MARKET, "89.0 95.1", "11p4RjmpCGGAS-876VEt7OoFrUeHTUlyO"),
    ("TransReID* DeiT-B", _MSMT, "66.3 84.0", "1WSUD0gKjGIG_gzTc2izH_y-EuDzweN95"),
    ("TransReID* DeiT-B", _MARKET, "88.5 95.1", "1cbUK2KozdPSoewzvF0ucFQnZ0yfZiu_H"),
]
_PASS = [
    ("ViT-S", _MARKET, "256x128", "92.2 96.3", "1e7QVo-0lJ9EUcRgJNIQ2gci2Pj1_ZE9M"),
    ("ViT-S", _MARKET, "384x128", "92.6 96.8", "1201j4ix92953te-o3FrrXh5sqxtTO7TE"),
    ("ViT-B", _MARKET, "256x128", "93.0 96.8", "104I1LStAfu52hlCMlx3eCIENIA_KMJUR"),
    ("ViT-B", _MARKET, "384x128", "93.3 96.9", "1dYQjK4ycpXRfOJFoucbizQlKdytoKmpl"),
    ("ViT-S", _MSMT, "256x128", "69.1 86.5", "1or1Lj7Xvd_gmQIMEX_TvzcZsqOgNWoDk"),
    ("ViT-S", _MSMT, "384x128", "71.7 87.9", "1EV4r3W_oCFn0JrhgwWX1j3X1jJR-BlcN"),
    ("ViT-B", _MSMT, "256x128", "71.8 88.2", "1W18HEwF5P7qN8MqyacFXOHW0W5gwVUs4"),
    ("ViT-B", _MSMT, "384x128", "74.3 89.7", "1T-EVjOtw1fJ4Mk7k-fU7ZeAGjUtSrNbh"),
]
_SOLIDER = [  # mAP and Rank-1 on Market-1501 and MSMT17; files of the pretraining, and fine-tuned on each
    ("Swin-T", "91.6 96.1 67.4 85.9", "12UyPVFmjoMVpQLHN07tNh4liHUmyDqg8", "1YrE_r9Fk5uR0uFFQboBv203vxlOpFXU8",
     "10YLhMbwvmxZl3gTVo2BN_828SKZHdCjr"),
    ("Swin-S", "93.3 96.6 76.9 90.8", "1oyEgASqDHc7YUPsQUMxuo2kBZyi2Tzfv", "14uOCf5yZq0Rt5rRSJI9I7_d5kt2EOyHO",
     "1C-aIZdFyjFsZX4W4feG-Ex39RU2Qvu3b"),
    ("Swin-B", "93.9 96.9 77.1 90.7", "1uh7tO34tMf73MJfFqyFEGx42UBktTbZU", "1pZ1unW2IwSsqSN2KYHcgBhgjQztQW_fe",
     "1Y-RFAYdT56vnMjwxH1Ym3DVhZzZuMQZs"),
]
_SSL = [  # likewise; mAP and Rank-1 are those that its README calls reproduced, which are the files'
    ("ViT-S", "256x128", "91.2 95.8 66.3 84.8", "1ODxA7mJv17UfzwfXtY9dTWNsYghoNWGB",
     "1lED8sKkiFAHp5LEzfhUSmF_Yh-7kKFsP", "11KBWzbgyx73ejiS3Sn1NNDPN_34huQwP"),
    ("ViT-S ICS", "256x128", "91.4 96.2 68.3 86.2", "18FL9JaJNlo15-UksalcJRXX-0dgo4Mz4",
     "1tdO01aYtckVP3nQZm-cpSSPPrxODCrmB", "1taqdhKGunBTGLTXve17UH_zfzzMjMqBb"),
    ("ViT-B ICS", "384x128", "93.1 96.6 75.1 89.6", "1ZFMCBZ-lNFMeBD5K8PtJYJfYEk5D9isd",
     "1wELRg_fCrgYCD3A3kUU7KJd-D_YSknQ_", "1m5a2vG6Se2K420g3oF4Zvu6m_zfWh-X4"),
]
_PRETRAINED = [  # on LUPerson, without a classifier of people: source, name, address
    ("PASS", "PASS ViT-S", f"{_DRIVE}1q7oxT0vWvt0Ia0NMmdVlA3oUs0UCQq3C/view"),
    ("PASS", "PASS ViT-B", f"{_DRIVE}1sZUrabY6Lke-BJoxOEviX5ALJ017x4Ft/view"),
    *[("PersonViT", f"PersonViT ViT-{size}", "https://huggingface.co/lakeAGI/PersonViT/tree/main/"
       f"vit{size.lower()}.lup.256x128.wopt.csk.4-8.ar.375.n8") for size in "SB"],
]
_CLIPREID = [  # its README has no figures beside the files, but for the last on MSMT17, re-ranked
    ("RN50", _MSMT, "1VdlC1ld3NrQC5Jcx0hntXRb-UaR3tMtr"),
    ("RN50", _MARKET, "1sBqCr5LxKcO9J2V0IvLQPb0wzwVzIZUp"),
    ("ViT-B/16", _MSMT, "1BVaZo93kOksYLjFNH3Gf7JxIbPlWSkcO"),
    ("ViT-B/16", _MARKET, "1GnyAVeNOg3Yug1KBBWMKKbT2x43O5Ch7"),
    ("ViT-B/16 SIE, stride 12", _MSMT, "1sPZbWTv2_stXBGutjHMvE87pAbSAgVaz"),
    ("ViT-B/16 SIE, stride 12", _MARKET, "1K32xrosw0gPrxYCWXER81mhWObEW5-d4"),
]
_OSNET = [  # Rank-1 and mAP on Market-1501 and MSMT17, and their files
    ("osnet_x1_0", "82.6 94.2 43.8 74.9", "hLoyTSba!fqt7GcKrHJhwe9BtuK0ozgVAQcrlMG8Pm6JsSfr5HEI",
     "hWxE2aJA!NGcxu5uYH1qI6DfBTu0KFoi_NfoA0TJcBFW-g43pC0I"),
    ("osnet_x0_75", "81.2 93.7 41.4 72.8", "JO4WAaJa!nQuoqZnYfy0xu7vs2mp28AFceya-ZhrXTry837jvoDQ",
     "0exGXI5a!rxtzBayyRK0on0HFq9XO0UtWEBhbV86dFitljhjeWcs"),
    ("osnet_x0_5", "79.8 92.5 37.5 69.7", "QCx0RArD!hqz3Mh0Iif5d8PpQW0frxa-Tepn2a2g24aei7du4MFs",
     "ETpiECDa!CCkq4JryztHqgw7spL5zDw0usJpAfEsSd5gPlkMufCc"),
    ("osnet_x0_25", "75.0 91.2 29.5 61.4", "VWxCgSqY!Q4WaQ3j9D7HMhK3jsbvMuwaZ7yBY80T2Zj5V8JAlAKU",
     "AWgE3SzD!DngUaNyA7VIqOd2gq10Aty_-ER0CmG0xTJLHLj6_36g"),
]
_OSNET_ACROSS = [  # trained on all of MSMT17, tested on Market-1501
    ("osnet_ibn_x1_0", "37.2 66.5", "dL4Q2K5B!ZdHQ_X_rs2T-xmggigM5YvzJhmT1orkr6aQ1_fHgunM"),
    ("osnet_ain_x1_0", "43.3 70.1", "YTZFnSJY!wlbo_5oa2TpDAGyWCTKTX1hh4d6DvJhh_RUA2z6i_so"),
]


def list_checkpoints() -> list[Checkpoint]:
    """All rows, by source."""
    rows = []
    for method, networks in _FASTREID.items():
        for network, figures in networks.items():
            numbers, size = figures.split(), "384x128" if method == "sbs" else "256x128"
            rows += [Checkpoint(f"{method}_{network}", "fast-reid", f"fastreid_{method}", trained_on, size,
                                *numbers[2 * i : 2 * i + 2], f"{_RELEASE}{short}_{method}_{network}.pth")
                     for i, (trained_on, short) in enumerate(((_MARKET, "market"), (_MSMT, "msmt")))]
    for name, figures, *files in _OSNET:
        numbers = figures.split()
        rows += [Checkpoint(name, "torchreid", "osnet", trained_on, "256x128", *numbers[2 * i : 2 * i + 2],
                            f"https://mega.nz/#!{files[i]}") for i, trained_on in enumerate((_MARKET, _MSMT))]
    rows += [Checkpoint(name, "torchreid", "osnet", f"{_MSMT}, all of it", f"256x128, tested on {_MARKET}",
                        *figures.split(), f"https://mega.nz/#!{file}") for name, figures, file in _OSNET_ACROSS]
    rows += [Checkpoint(name, "TransReID", "transreid_jpm" if "*" in name else "transreid", trained_on,
                        "256x128, stride 12, SIE, JPM" if "*" in name else "256x128", *figures.split(),
                        f"{_DRIVE}{file}/view") for name, trained_on, figures, file in _TRANSREID]
    rows += [Checkpoint(name, source, "vit", _PERSONS, "", "", "", address) for source, name, address in _PRETRAINED]
    rows += _tuned("TransReID-SSL", "vit", "transreid", "", _SSL)
    rows += _tuned("SOLIDER", "solider_pretrained", "solider", ", semantic weight 0.2",
                   [(f"SOLIDER {name}", "384x128", *others) for name, *others in _SOLIDER])
    rows += [Checkpoint(f"PASS {name}", "PASS", "pass", f"{_PERSONS}, then {trained_on}", size, *figures.split(),
                        f"{_DRIVE}{file}/view") for name, trained_on, size, figures, file in _PASS]
    rows.append(Checkpoint("PersonViT", "PersonViT", "transreid", f"{_PERSONS}, then one of four sets", "", "", "",
                           "https://huggingface.co/lakeAGI/PersonViTReID"))
    rows += [Checkpoint(f"CLIP-ReID {name}", "CLIP-ReID", "clipreid", trained_on,
                        *(("256x128, re-ranked", "86.7", "91.1") if "SIE" in name and trained_on == _MSMT
                          else ("256x128", "", "")), f"{_DRIVE}{file}/view") for name, trained_on, file in _CLIPREID]
    return rows


def _tuned(source: str, pretrained: str, tuned: str, more: str, table: list[tuple]) -> list[Checkpoint]:
    """A row of each network's pretraining, and one of each set that it was fine-tuned on, with their layouts."""
    rows = []
    for name, size, figures, before, *files in table:
        numbers = figures.split()
        rows.append(Checkpoint(name, source, pretrained, _PERSONS, "", "", "", f"{_DRIVE}{before}/view"))
        rows += [Checkpoint(name, source, tuned, f"{_PERSONS}, then {trained_on}", size + more,
                            *numbers[2 * i : 2 * i + 2], f"{_DRIVE}{files[i]}/view")
                 for i, trained_on in enumerate((_MARKET, _MSMT))]
    return rows


def format_checkpoints() -> str:
    """`list_checkpoints` as a table of plain text, with the licences of each source."""
    lines = ["Published, not measured here: mAP and Rank-1 as their authors give them; '-': not found in a source.",
             f"{'file':<38}{'--as':<20}{'trained on':<34}{'mAP':>5}{'Rank-1':>8}  {'of':<56}address"]
    for source, (repository, code, weights) in SOURCES.items():
        lines.append(f"{source} ({repository}); licence of the code: {code or '-'}; of the weights: {weights}")
        lines += [f"  {row.name:<36}{row.layout:<20}{row.trained_on:<34}{row.mAP or '-':>5}{row.rank1 or '-':>8}  "
                  f"{row.recipe or '-':<56}{row.url}" for row in list_checkpoints() if row.source == source]
    return "\n".join([*lines, "DukeMTMC-reID was withdrawn by its authors in 2019: weights trained on it are not "
                              "listed. Weights carry the terms of the pictures that they were trained on."])
