"""What lies in a folder before a command is run; names are those of the lists."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, models

from experiments.data import squad_sample
from tests.test_cases_images import png
from tests.test_images import contents, write_tar, write_tree

Preparation = Callable[[Path, Path], object]  # the folder of inputs, the work directory


def text_file(content: bytes, name: str = "text") -> Preparation:
    """A file of its own."""

    def prepare(given: Path, work: Path) -> None:
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        (given / name).write_bytes(content)

    return prepare


def in_work(name: str, content: bytes) -> Preparation:
    """A file in the work directory."""

    def prepare(given: Path, work: Path) -> None:
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return prepare


def sparse(size: int) -> Preparation:
    """A file with a hole of ``size`` bytes."""

    def prepare(given: Path, work: Path) -> None:
        with (given / "huge").open("wb") as file:
            file.truncate(size)

    return prepare


def questions(change: Callable[[dict], object]) -> Preparation:
    """The embedded questions, changed, in a file."""

    def prepare(given: Path, work: Path) -> None:
        document = squad_sample.document()
        change(document)
        (given / "squad.json").write_text(json.dumps(document))

    return prepare


def tree(change: Callable[[dict[str, bytes]], object]) -> Preparation:
    """Images in a folder, changed."""

    def prepare(given: Path, work: Path) -> None:
        files = contents()
        change(files)
        write_tree(given / "images", files)

    return prepare


def tar(
    mode: str, damage: Callable[[bytes], bytes] = bytes, **others: bytes
) -> Preparation:
    """Images in an archive, damaged."""

    def prepare(given: Path, work: Path) -> None:
        write_tar(given / "images.tar", {**contents(), **others}, mode)
        whole = (given / "images.tar").read_bytes()
        (given / "images.tar").write_bytes(damage(whole))

    return prepare


def tar_with(name: str, kind: bytes, target: str = "") -> Preparation:
    """An archive with a member of another kind."""

    def prepare(given: Path, work: Path) -> None:
        with tarfile.open(given / "images.tar", "w") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)

    return prepare


def config_file(content: str) -> Preparation:
    """A config of the user's own."""
    return lambda given, work: (given / "config.py").write_text(content)


def flipped(place: int) -> Callable[[bytes], bytes]:
    """Changes one bit of a byte."""

    def damage(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[place] ^= 1
        return bytes(changed)

    return damage


def pipe(given: Path, work: Path) -> None:
    """A pipe that nobody writes to, alone and among texts and images."""
    os.mkfifo(given / "pipe")
    (given / "texts").mkdir()
    os.mkfifo(given / "texts" / "a.txt")


def first(document: dict) -> dict:
    """The first question of all."""
    return document["data"][0]["paragraphs"][0]["qas"][0]


DIGITS = (
    "from experiments.configs import digits_zoo\n\n\ndef get_config(variant='full'):\n"
)
END = "    return config\n"
SMOKE = f"{DIGITS}    config = digits_zoo.get_config('smoke')\n"

BY_NAME: dict[str, Preparation] = {
    "nothing": lambda given, work: None,
    "a file": text_file(b"kept", "file"),
    "pipe": pipe,
    "sparse file": sparse(2**33),
    "empty text": text_file(b""),
    "white text": text_file(b" \n \n\t\n"),
    "mark alone": text_file(b"\xef\xbb\xbf"),
    "latin text": text_file("caf\u00e9 au lait\n\nbread".encode("latin-1")),
    "utf-16 text": text_file("caf\u00e9 au lait\n\nbread".encode("utf-16")),
    "one document": text_file(b"one document only, of some words"),
    "equal documents": text_file(b"same words\n\nsame  words\n\nsame words"),
    "short text": text_file(b"a b c d\n\nd e f\n\ng"),
    "folder of no texts": text_file(b"a", "notes.md"),
    "folder of hidden texts": text_file(b"a", "._a.txt"),
    "folder of a bad text": text_file(b"\xff", "a.txt"),
    "text with a line break in its name": text_file(b"\xff", "a\nb.txt"),
    "tokenizer: garbage": in_work("tokenizer.json", b"garbage"),
    "tokenizer: empty": in_work("tokenizer.json", b""),
    "tokenizer: object": in_work("tokenizer.json", b"{}"),
    "tokenizer: binary": in_work("tokenizer.json", b"\0\xff\xfe"),
    "tokenizer: folder": in_work("tokenizer.json/a", b""),
    "tokenizer: of another kind": lambda given, work: (
        work.mkdir(),
        Tokenizer(models.BPE()).save(str(work / "tokenizer.json")),
    ),
    "tokenizer: pipe": lambda given, work: (
        work.mkdir(),
        os.mkfifo(work / "tokenizer.json"),
    ),
    "work: config is a list": in_work("config.json", b"[]"),
    "work: config is empty": in_work("config.json", b""),
    "work: config is binary": in_work("config.json", b"\xff\0"),
    "work: config is nested": in_work("config.json", b"[" * 100_000),
    "work: config is a folder": in_work("config.json/a", b""),
    "work: config is null": in_work("config.json", b"null"),
    "work: config of something else": in_work("config.json", b'{"a": 1}'),
    "results: a folder": lambda given, work: (given / "table.md").mkdir(),
    "checkpoint: empty": text_file(b"", "run/checkpoints/2/about/x"),
    "checkpoint: garbage": text_file(b"{", "run/checkpoints/2/about/metadata"),
    "follow: binary": in_work("curvature.jsonl", b"\xff\0\n"),
    "follow: a list": in_work("curvature.jsonl", b"[]\n"),
    "follow: other settings": in_work(
        "curvature.jsonl", b'{"kind": "header", "settings": {}}\n'
    ),
    "follow: a folder": in_work("curvature.jsonl/a", b""),
    "records without config": in_work("metrics.jsonl", b'{"kind": "final"}\n'),
    "squad: not JSON": text_file(b"{", "squad.json"),
    "squad: empty": text_file(b"", "squad.json"),
    "squad: deep": text_file(b"[" * 100_000, "squad.json"),
    "squad: long number": text_file(b'{"data": ' + b"9" * 5000 + b"}", "squad.json"),
    "squad: binary": text_file(b"\x80\x81", "squad.json"),
    "squad: list": text_file(b"[]", "squad.json"),
    "squad: null": text_file(b"null", "squad.json"),
    "squad: text": text_file(b'"data"', "squad.json"),
    "squad: nothing in it": text_file(b"{}", "squad.json"),
    "squad: no article": questions(lambda d: d.update(data=[])),
    "squad: data is a text": questions(lambda d: d.update(data="x")),
    "squad: article is a number": questions(lambda d: d["data"].insert(1, 3)),
    "squad: no paragraphs": questions(lambda d: d["data"][1].pop("paragraphs")),
    "squad: paragraph is null": questions(
        lambda d: d["data"][0]["paragraphs"].append(None)
    ),
    "squad: no context": questions(
        lambda d: d["data"][0]["paragraphs"][0].pop("context")
    ),
    "squad: context is a list": questions(
        lambda d: d["data"][0]["paragraphs"][0].update(context=[])
    ),
    "squad: no id": questions(lambda d: first(d).pop("id")),
    "squad: id is a number": questions(lambda d: first(d).update(id=7)),
    "squad: no question": questions(lambda d: first(d).pop("question")),
    "squad: no answers": questions(lambda d: first(d).pop("answers")),
    "squad: empty answers": questions(lambda d: first(d).update(answers=[])),
    "squad: white answer": questions(
        lambda d: first(d).update(answers=[{"answer_start": 3, "text": " "}])
    ),
    "squad: wrong place": questions(
        lambda d: first(d)["answers"][0].update(answer_start=1)
    ),
    "squad: place before the start": questions(
        lambda d: first(d)["answers"][0].update(answer_start=-3)
    ),
    "squad: place beyond the end": questions(
        lambda d: first(d)["answers"][0].update(answer_start=10**12)
    ),
    "squad: place is a text": questions(
        lambda d: first(d)["answers"][0].update(answer_start="4")
    ),
    "squad: place is half": questions(
        lambda d: first(d)["answers"][0].update(answer_start=4.5)
    ),
    "squad: half of a character": questions(
        lambda d: first(d).update(question="\ud83d")
    ),
    "squad: equal ids": questions(lambda d: d["data"].append(d["data"][0])),
    "squad: equal ids of two lines": questions(
        lambda d: first(d).update(id="a\nb") or d["data"].append(d["data"][0])
    ),
    "squad: one article": questions(lambda d: d.update(data=d["data"][:1])),
    "images: none": lambda given, work: (given / "images").mkdir(),
    "images: train alone": tree(lambda f: [f.pop(n) for n in list(f) if "val" in n]),
    "images: no training": tree(lambda f: [f.pop(n) for n in list(f) if "train" in n]),
    "images: class in one split": tree(
        lambda f: [f.pop(n) for n in list(f) if n.startswith("val/dog")]
    ),
    "images: one class": tree(lambda f: [f.pop(n) for n in list(f) if "eel" not in n]),
    "images: cut": tree(
        lambda f: f.update({"train/cat/1.JPEG": f["train/cat/1.JPEG"][:99]})
    ),
    "images: empty file": tree(lambda f: f.update({"train/cat/z.png": b""})),
    "images: text": tree(lambda f: f.update({"train/cat/z.png": b"no image"})),
    "images: program": tree(
        lambda f: f.update({"train/cat/z.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n"})
    ),
    "images: web page": tree(lambda f: f.update({"val/cat/z.jpg": b"<html>404"})),
    "images: too many pixels": tree(
        lambda f: f.update({"train/cat/z.png": png(13_000, 13_000, 8, 2)})
    ),
    "images: too large a file": lambda given, work: (
        write_tree(given / "images", contents()),
        sparse(2**33)(given / "images/train/cat", work),
        (given / "images/train/cat/huge").rename(given / "images/train/cat/z.png"),
    ),
    "images: line break in a name": tree(
        lambda f: f.update({"train/cat/a\nb.png": b"?"})
    ),
    "images: markup in a name": tree(
        lambda f: f.update({"train/cat/[red]<b>.png": b"?"})
    ),
    "tar: cut": tar("w", lambda data: data[:-9000]),
    "tar: cut at its end": tar("w", lambda data: data.rstrip(b"\0")),
    "tar: damaged header": tar("w", flipped(0)),
    "tar.gz: cut": tar("w:gz", lambda data: data[:2000]),
    "tar.gz: flipped": tar("w:gz", flipped(3000)),
    "tar.gz: wrong checksum": tar("w:gz", flipped(-5)),
    "tar.bz2: cut": tar("w:bz2", lambda data: data[:2000]),
    "tar.xz: cut": tar("w:xz", lambda data: data[:-20]),
    "tar.xz: flipped": tar("w:xz", flipped(3000)),
    "tar: text": text_file(b"no tar" * 500, "images.tar"),
    "tar: empty": text_file(b"", "images.tar"),
    "tar: zip": text_file(b"PK\3\4" + bytes(60), "images.tar"),
    "tar: leads out": tar("w", **{"train/../a.png": b"?"}),
    "tar.gz: leads out": tar("w:gz", **{"../train/a/1.png": b"?"}),
    "tar: absolute": tar("w", **{"/train/a/1.png": b"?"}),
    "tar: link": tar_with("train/cat/1.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    "tar: hard link": tar_with("train/cat/1.jpg", tarfile.LNKTYPE, "val/cat/1.jpg"),
    "tar: pipe": tar_with("train/cat/1.jpg", tarfile.FIFOTYPE),
    "tar: device": tar_with("train/cat/1.jpg", tarfile.CHRTYPE),
    "config: empty": config_file(""),
    "config: does not compile": config_file("def get_config(:\n"),
    "config: raises": config_file("def get_config():\n    return 1 / 0\n"),
    "config: none": config_file("def get_config():\n    return None\n"),
    "config: dict": config_file("def get_config():\n    return {'steps': 2}\n"),
    "config: empty ConfigDict": config_file(
        "from ml_collections import ConfigDict\n\nget_config = ConfigDict\n"
    ),
    "config: no optimizers": config_file(f"{SMOKE}    del config.optimizers\n{END}"),
    "config: no checkpoint": config_file(f"{SMOKE}    del config.checkpoint\n{END}"),
    "config: no data": config_file(f"{SMOKE}    del config.data\n{END}"),
    "config: a word for steps": config_file(
        f"{SMOKE}    del config.steps\n    config.steps = 'two'\n{END}"
    ),
    "config: an object for the seed": config_file(
        f"{SMOKE}    del config.seed\n    config.seed = object()\n{END}"
    ),
    "config: imports what is not there": config_file("import no_such_module_at_all\n"),
    "config: binary": lambda given, work: (given / "config.py").write_bytes(b"\0\xff"),
    "config: folder": lambda given, work: (given / "config.py").mkdir(),
}
