"""Citations: BibTeX for the teachers' papers and for kdcache.

Titles and authors stand as on arXiv; lists of more than seven authors end in "and others".
"""

from dataclasses import dataclass

import kdcache


@dataclass(frozen=True)
class Paper:
    """What a citation says beside the number of a paper."""

    title: str
    authors: str


PAPERS = {
    "1512.03385": Paper(
        "Deep Residual Learning for Image Recognition",
        "He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
    ),
    "1911.05722": Paper(
        "Momentum Contrast for Unsupervised Visual Representation Learning",
        "He, Kaiming and Fan, Haoqi and Wu, Yuxin and Xie, Saining and Girshick, Ross",
    ),
    "2002.05709": Paper(
        "A Simple Framework for Contrastive Learning of Visual Representations",
        "Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey",
    ),
    "2003.04297": Paper(
        "Improved Baselines with Momentum Contrastive Learning",
        "Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming",
    ),
    "2006.07733": Paper(
        "Bootstrap your own latent: A new approach to self-supervised Learning",
        "Grill, Jean-Bastien and Strub, Florian and Altch{\\'e}, Florent and others",
    ),
    "2006.09882": Paper(
        "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
        "Caron, Mathilde and Misra, Ishan and Mairal, Julien and Goyal, Priya and Bojanowski, Piotr"
        " and Joulin, Armand",
    ),
    "2103.03230": Paper(
        "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
        "Zbontar, Jure and Jing, Li and Misra, Ishan and LeCun, Yann and Deny, St{\\'e}phane",
    ),
    "2104.14294": Paper(
        "Emerging Properties in Self-Supervised Vision Transformers",
        "Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J{\\'e}gou, Herv{\\'e} and Mairal,"
        " Julien and Bojanowski, Piotr and Joulin, Armand",
    ),
    "2105.04906": Paper(
        "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
        "Bardes, Adrien and Ponce, Jean and LeCun, Yann",
    ),
    "2304.07193": Paper(
        "DINOv2: Learning Robust Visual Features without Supervision",
        "Oquab, Maxime and Darcet, Timoth{\\'e}e and Moutakanni, Th{\\'e}o and others",
    ),
    "2309.16588": Paper(
        "Vision Transformers Need Registers",
        "Darcet, Timoth{\\'e}e and Oquab, Maxime and Mairal, Julien and Bojanowski, Piotr",
    ),
}
"""By arXiv number: every paper that the registry of teachers names."""


def cite_paper(reference: str) -> str:
    """BibTeX of a paper given as `arXiv:NUMBER`; only the number where no more is known."""
    number = reference.removeprefix("arXiv:")
    known = PAPERS.get(number)
    fields = {} if known is None else {"title": f"{{{known.title}}}", "author": known.authors}
    fields |= {
        "eprint": number,
        "archivePrefix": "arXiv",
        "year": f"20{number[:2]}",
        "url": f"https://arxiv.org/abs/{number}",
    }
    return _entry("misc", f"arxiv{number.replace('.', '_')}", fields)


def cite_kdcache() -> str:
    """BibTeX of this software."""
    fields = {"title": "{kdcache: pay for the teacher once}", "version": kdcache.__version__}
    return _entry("software", "kdcache", fields)


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    width = max(map(len, fields))
    lines = [f"  {name:{width}} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
