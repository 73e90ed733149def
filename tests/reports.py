"""What the tests of the report share: made-up verdicts and records, and a reader of its page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from conftest import write_run

from resrepro.claims import Claim, Ruling, Verdict
from resrepro.records.collection import Collection, collect

KINDS = ("held", "failed", "undecided", "not testable here")
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
LINE_END = "\u2028"  # ends a line in a script, and no record may hold it
VOID = {"meta", "input", "img", "br", "link", "source"}


def ruling(verdict: str = "held", why: str = "difference 49.0, 95 % interval 34.8 to 63.2") -> Ruling:
    """What other runs say of a claim, made up."""
    return Ruling("digits", "49.0 ± 11.5 against 0.1", verdict, why)


def verdict_of(number: int, verdict: str = "held", others: Sequence[Ruling] = (), text: str = "") -> Verdict:
    """A made-up verdict, with `text` in all its places."""
    return Verdict(
        claim=Claim(number, "4.2", text or "plain-56 has a higher training error than plain-20", ()),
        quantity=text or "training error (%)",
        paper=text or "5.9 against 1.4",
        protocol="CIFAR-10",
        ours=text or "13.9 ± 0.6 against 5.7 ± 0.8",
        verdict=verdict,
        why=f"`{text}`" if text else "difference 8.2, 95 % interval 7.1 to 9.2",
        notes=(text or "shortened: 2,000 of 64,000 iterations",),
        others=tuple(others),
    )


def verdicts(count: int = 27) -> list[Verdict]:
    """Verdicts of all kinds in turn."""
    return [verdict_of(number, KINDS[number % 4]) for number in range(1, count + 1)]


def records(folder: Path, notices: tuple[str, ...] = (), mode: str = "default") -> Collection:
    """Plain and residual nets of 20 and 56 layers, shortened, two seeds of each."""
    for depth in (20, 56):
        for net in ("plain", "resnet"):
            for seed in (0, 1):
                write_run(
                    folder, f"cifar10-{net}{depth}", seed, iterations=2000, eval_every=100, notices=notices,
                    mode=mode,
                )  # fmt: skip
    return collect([folder])


@dataclass
class Element:
    """An element of a page, with the text below it."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    inside: tuple[str, ...] = field(default=(), repr=False)


class Page(HTMLParser):
    """The elements of a page in order; fails where one is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), inside=tuple(one.tag for one in self.open))
        assert len(element.attributes) == len(attrs), f"an attribute of {tag} is given twice"
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, *tags: str) -> list[Element]:
        """The elements of some tags."""
        return [element for element in self.elements if element.tag in tags]

    def with_class(self, name: str) -> list[Element]:
        """The elements of a class."""
        return [one for one in self.elements if name in (one.attributes.get("class") or "").split()]

    @property
    def text(self) -> str:
        """What a reader sees."""
        return self.all("body")[0].text
